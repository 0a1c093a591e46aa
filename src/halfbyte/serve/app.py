"""The application: routes, errors in OpenAI's form, and the guard around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from halfbyte import __version__
from halfbyte.errors import HalfbyteError
from halfbyte.serve.errors import RefusedError, refusal_of
from halfbyte.serve.guard import Guard
from halfbyte.serve.routes import ClientGoneError, router
from halfbyte.serve.service import Service

_LOG = logging.getLogger("halfbyte.serve")
_GONE = 499  # nginx' number for a client that left; nobody reads it


class _Application(FastAPI):
    """FastAPI describes its own 422 on every route, and errors in the type of the route's answer;
    ours are 400, and JSON on every route.
    """

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        table = super().openapi()
        for path in table["paths"].values():
            for operation in path.values():
                responses = operation["responses"]
                responses.pop("422", None)
                for status in responses.keys() - {"200"}:
                    (content,) = responses[status]["content"].values()
                    responses[status]["content"] = {"application/json": content}
        for unused in ("HTTPValidationError", "ValidationError"):
            table["components"]["schemas"].pop(unused, None)
        return table


def create_app(service: Service) -> tuple[FastAPI, Guard]:
    """The application, and the guard to serve in its place."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = _Application(
        title="halfbyte",
        version=__version__,
        description="OpenAI's interface to one base and the adapters trained on it.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    _handle_errors(app)
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app, Guard(app, service.settings, service.metrics)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return _response(error)

    @app.exception_handler(HalfbyteError)
    async def ours(_: Request, error: HalfbyteError) -> Response:
        return _response(refusal_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _response(_explained(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        response = _response(RefusedError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, __: ClientGoneError) -> Response:
        return Response(status_code=_GONE)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        _LOG.error("a request failed", exc_info=error)
        return _response(RefusedError(500, "the server failed; its log says how"))


def _response(refusal: RefusedError) -> Response:
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)


def _explained(faults: Sequence[Any]) -> RefusedError:
    """The first faults in words; `param` is the place of the first. What was sent is not repeated:
    it may be long, or no JSON at all.
    """
    if faults[0]["type"] == "json_invalid":
        after, why = faults[0]["loc"][-1], faults[0].get("ctx", {}).get("error", "")
        return RefusedError(400, f"the body is not JSON: after {after} characters: {why}")
    places = [_place(cast("Sequence[object]", fault["loc"])) for fault in faults]
    said = [f"{place}: {_words(fault)}" for place, fault in zip(places, faults, strict=True)]
    more = f" (and {len(said) - 3} more)" if len(said) > 3 else ""
    return RefusedError(400, "; ".join(said[:3]) + more, param=places[0][:200])


def _words(fault: Mapping[str, Any]) -> str:
    unknown = fault["type"] == "extra_forbidden"
    return "this server does not support it" if unknown else str(fault["msg"])


def _place(location: Sequence[object]) -> str:
    return ".".join(str(part)[:50] for part in location[1:]) or "body"
