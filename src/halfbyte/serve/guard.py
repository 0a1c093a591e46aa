"""What every request passes before the application sees it: who, from where, how much, how long."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halfbyte.serve.access import Access
from halfbyte.serve.errors import RefusedError, failure_event
from halfbyte.serve.metrics import Metrics
from halfbyte.serve.settings import ServeSettings

_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")
Headers = Mapping[bytes, bytes]


class Guard:
    """ASGI middleware around the whole application.

    The body is read here, within its limits, and handed on whole. `cut` counts requests that
    were ended because the server stops.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.cut = 0
        self._app, self._limits, self._metrics = app, settings.limits, metrics
        self._access = Access(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(send)
        began = time.monotonic()
        try:
            await self._answer(scope, receive, exchange)
        except RefusedError as refusal:
            await exchange.refuse(refusal)
        except asyncio.CancelledError:
            # only uvicorn cancels us, once the time for running answers is over
            self.cut += 1
            await exchange.refuse(RefusedError(503, "the server is stopping"))
        except ConnectionError:
            pass  # the client left while its body was read
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, exchange.status, time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        headers = dict(scope["headers"])
        if sum(len(k) + len(v) + 4 for k, v in scope["headers"]) > self._limits.header_bytes:
            raise RefusedError(431, "the headers are too long")
        self._access.check(scope["method"], scope["path"], headers)
        if scope["method"] in {"POST", "PUT", "PATCH"}:
            body = await self._body(headers, receive)
            receive = _replay(body, receive)
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._app(scope, receive, exchange.send)
        except TimeoutError:
            raise RefusedError(
                504, f"no answer within {self._limits.request_seconds:.0f} s", code="deadline"
            ) from None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RefusedError(415, "the content type must be application/json")
        most = self._limits.body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise RefusedError(413, f"a body has at most {most} bytes")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await _read(receive, most)
        except TimeoutError:
            raise RefusedError(408, "the body took too long to arrive") from None
        _check_depth(body, self._limits.json_depth)
        return body


class _Exchange:
    """The response as it goes out: whether it has begun, and with which status."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self._send = send
        self._streams = False
        self._over = False

    async def send(self, message: Message) -> None:
        """Pass on, and remember."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
        elif message["type"] == "http.response.body":
            self._over = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """An error in place of the response, or at the end of a stream that has begun."""
        if self._over:
            return
        if not self.status:
            body = refusal.encoded()
            table = {"content-type": "application/json", "content-length": str(len(body))}
            table |= refusal.headers
            pairs = [(name.lower().encode(), value.encode()) for name, value in table.items()]
            await self.send(
                {"type": "http.response.start", "status": refusal.status, "headers": pairs}
            )
        else:
            body = failure_event(refusal) if self._streams else b""
        await self.send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise RefusedError(413, f"a body has at most {most} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever else the client does: that is, leave."""
    rest: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return rest.pop() if rest else await receive()

    return again


def _check_depth(body: bytes, most: int) -> None:
    """Refuse JSON nested so deep that parsers of it, ours or others', would run out of stack."""
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", body)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > most:
            raise RefusedError(400, f"the JSON is nested more than {most} deep")
