"""Refusals in OpenAI's error form."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel

from halfbyte.errors import HalfbyteError, InputError, IntegrityError, MissingError

_LONGEST: Final = 2000  # characters of a message: it may quote what the client sent
KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error form."""

    error: ErrorDetail


class RefusedError(Exception):
    """A request that gets no answer: HTTP status, message, and where it applies OpenAI's `param`
    and `code`.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in {409, 429, 503} else {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error form, ready for JSON."""
        kind = KINDS.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        detail = ErrorDetail(
            message=_sendable(self.message),
            type=kind,
            param=None if self.param is None else _sendable(self.param),
            code=self.code,
        )
        return {"error": detail.model_dump()}

    def encoded(self) -> bytes:
        """The body as bytes."""
        return json.dumps(self.body()).encode()


def _sendable(text: str) -> str:
    """JSON strings may hold halves of characters, which no response can."""
    return text.encode("utf-8", "replace").decode()[:_LONGEST]


def failure_event(error: RefusedError) -> bytes:
    """An error in a stream that has begun: clients read it in place of a part."""
    return b"data: " + error.encoded() + b"\n\n"


def refusal_of(error: HalfbyteError) -> RefusedError:
    """A halfbyte error as the client sees it; the hints are for whoever runs the server."""
    if isinstance(error, MissingError):
        return RefusedError(404, error.message, code="not_found")
    if isinstance(error, IntegrityError):
        return RefusedError(400, error.message, code="adapter_refused")
    if isinstance(error, InputError):
        return RefusedError(400, error.message, code="invalid_value")
    return RefusedError(503, error.message)


def unknown_model(name: str) -> RefusedError:
    """No model of this name; nothing is said about what else there is on disk."""
    return RefusedError(
        404,
        f"the model {name[:100]!r} does not exist; GET /v1/models lists those there are",
        param="model",
        code="model_not_found",
    )
