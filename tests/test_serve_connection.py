"""Connections by themselves, without a model: deadlines of reading and writing."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from halfbyte.serve import Limits, ServeSettings
from halfbyte.serve.connection import guarded
from halfbyte.serve.guard import Guard
from halfbyte.serve.listening import listening
from halfbyte.serve.metrics import Metrics

LIMITS = replace(Limits(), stall_seconds=0.3, header_seconds=5.0, connections=3)
HEAD = b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Endless:
    """An application that never stops sending, and says when it had to."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            while (await send_or_stop(receive, send)) is None:
                pass
            self.ended.set()
        await send({"type": "http.response.body", "body": b"over"})


async def send_or_stop(receive: Any, send: Any) -> str | None:
    """Send 64 KB; "gone" once nobody is there to read them."""
    await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    try:
        async with asyncio.timeout(0.001):
            message = await receive()
    except TimeoutError:
        return None
    return "gone" if message["type"] == "http.disconnect" else None


@pytest.fixture
def app() -> Endless:
    return Endless()


@pytest.fixture
def server(app: Endless) -> Iterator[uvicorn.Server]:
    guard = Guard(app, ServeSettings(limits=LIMITS), Metrics())
    config = uvicorn.Config(guard, http=guarded(LIMITS), ws="none", lifespan="on", log_config=None)
    made = uvicorn.Server(config)
    with listening("127.0.0.1", 0) as sockets:
        thread = threading.Thread(target=made.run, args=(sockets,), daemon=True)
        thread.start()
        while not made.started:
            time.sleep(0.01)
        yield made
        made.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def connect(server: uvicorn.Server) -> socket.socket:
    port = server.servers[0].sockets[0].getsockname()[1]
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_a_client_that_stops_reading_is_cut_off(server: uvicorn.Server, app: Endless) -> None:
    """Fault 25: when what is sent to a client is not read for longer than the deadline, its
    connection is broken off and the application hears of it."""
    with connect(server) as one:
        one.sendall(HEAD)
        assert one.recv(100).startswith(b"HTTP/1.1 200")
        assert app.ended.wait(10)
        assert not server.server_state.connections


def test_what_is_written_is_sent_at_once(server: uvicorn.Server) -> None:
    """Small packets do not wait for receipts: with Nagle's algorithm a body came 40 ms after its
    headers."""
    with connect(server) as one:
        one.sendall(HEAD)
        assert one.recv(100)
        (held,) = server.server_state.connections
        mine = held.transport.get_extra_info("socket")  # type: ignore[union-attr]  # connected
        assert mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_slow_reader_is_not_cut_off(server: uvicorn.Server, app: Endless) -> None:
    """A client that reads on, if slowly, keeps its connection."""
    with connect(server) as one:
        one.sendall(HEAD)
        until = time.monotonic() + 1.0  # three times the deadline
        while time.monotonic() < until:
            assert one.recv(1 << 20)
            time.sleep(0.02)
        assert not app.ended.is_set()


def test_too_many_connections_are_refused(server: uvicorn.Server) -> None:
    """Beyond the limit a connection gets 503 at once; when others have left it is served."""
    held = [connect(server) for _ in range(3)]
    while len(server.server_state.connections) < 3:
        time.sleep(0.005)
    with connect(server) as one:
        assert one.recv(100).startswith(b"HTTP/1.1 503 Service Unavailable")
    for each in held:
        each.close()
    while server.server_state.connections:
        time.sleep(0.005)
    with connect(server) as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 200 OK")
