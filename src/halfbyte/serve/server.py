"""Running the server: uvicorn with our connections, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from halfbyte.serve.app import create_app
from halfbyte.serve.connection import guarded
from halfbyte.serve.guard import Guard
from halfbyte.serve.service import Service
from halfbyte.serve.settings import ServeSettings

Ready = Callable[[str], object]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn's server; a first signal lets answers finish, a second ends at once.

    `caught` is the signal that stopped it. `ready` is told the address once it listens.
    """

    def __init__(self, config: uvicorn.Config, ready: Ready = str) -> None:
        super().__init__(config)
        self.caught = 0
        self._ready = ready

    @property
    def address(self) -> str:
        """Where it listens, as a URL."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready(self.address)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but it would raise the signal again after an orderly end."""
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        except ValueError:  # not the main thread, as in tests: it is told by `should_exit`
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's signature
        """A signal came."""
        self.force_exit = bool(self.caught)
        self.caught = self.caught or int(sig)
        self.should_exit = True


def make_server(
    service: Service, settings: ServeSettings, ready: Ready = str
) -> tuple[Server, Guard]:
    """A server that is not running yet, and the guard that knows what it had to cut off."""
    limits = settings.limits
    _, guard = create_app(service)
    config = uvicorn.Config(
        guard,
        loop="asyncio",
        http=guarded(limits),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=int(limits.grace_seconds),
    )
    return Server(config, ready), guard


def run(
    service: Service, settings: ServeSettings, sockets: list[socket.socket], ready: Ready
) -> int:
    """Serve on sockets that listen already, until a signal comes.

    Returns:
        0 when every running answer was finished; else 128 plus the signal's number, 130 or 143.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    server, guard = make_server(service, settings, ready)
    asyncio.run(server.serve(sockets))
    return exit_code(server, guard)


def exit_code(server: Server, guard: Guard) -> int:
    """0, or 128 plus the signal's number when answers had to be cut off."""
    return 128 + server.caught if guard.cut or server.force_exit else 0
