"""HTTP connections with deadlines: uvicorn's own wait for ever for headers and for readers."""

from __future__ import annotations

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from halfbyte.serve.errors import RefusedError
from halfbyte.serve.settings import Limits

_FULL: Final = RefusedError(503, "too many connections; try again later")


class GuardedProtocol(H11Protocol):
    """One connection.

    Closed when: the headers of a request are not there in time, counted from the connection or
    from their first byte; the client stops reading its answer; there are too many connections.
    What is no HTTP is refused in OpenAI's error form.
    """

    limits: Limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client is there: its headers are due. What is written is sent at once."""
        super().connection_made(transport)
        # asyncio does it only for sockets that name their protocol, which those of
        # `socket.create_server` do not: without it a body waits 40 ms for the headers' receipt
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.connections:
            self._refuse(_FULL)
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._stop_headers_timer()
        self._stop_reading_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came: a request is under way now, or its headers are due."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            self._stop_headers_timer()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        if self._reading_due is None:
            due = self.limits.stall_seconds
            self._reading_due = self.loop.call_later(due, self.transport.abort)

    def resume_writing(self) -> None:
        """It read on."""
        self._stop_reading_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP request, or its headers are too long."""
        error = sys.exc_info()[1]  # uvicorn calls this while it handles h11's error
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(RefusedError(status, msg if status == 400 else "the headers are too long"))

    def _stop_headers_timer(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _stop_reading_timer(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            due = self.limits.header_seconds
            self._headers_due = self.loop.call_later(due, self._too_late)

    def _too_late(self) -> None:
        self._headers_due = None
        begun, _ = self.conn.trailing_data
        if begun:
            self._refuse(RefusedError(408, "the request took too long to arrive"))
        else:
            self.transport.close()

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer where an answer can still be begun, and close."""
        free = self.cycle is None or self.cycle.response_complete
        if free and self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = refusal.encoded()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = HTTPStatus(refusal.status).phrase
            response = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol with these limits."""
    return type("Guarded", (GuardedProtocol,), {"limits": limits})
