"""Taking the address before anything is loaded: who cannot have it learns so at once."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from halfbyte.errors import InputError


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that listen at every address of `host` while the block runs.

    Bound is not enough: two servers may bind one port, and only the first to listen keeps it.
    Clients who come before the server accepts wait in the sockets' queues.

    Raises:
        InputError: the address is taken, is not this machine's, or needs rights.
    """
    with ExitStack() as held:
        sockets: list[socket.socket] = []
        try:
            for family, address in _addresses(host, port):
                # port 0: what the first one was given holds for all
                whole = (address, sockets[0].getsockname()[1] if sockets else port)
                if one := _opened(family, whole):
                    sockets.append(held.enter_context(one))
        except (OSError, UnicodeError) as error:
            raise _refused(host, port, error) from None
        if not sockets:
            raise _refused(host, port, OSError(errno.EADDRNOTAVAIL, "not this machine's address"))
        yield sockets


def _opened(family: socket.AddressFamily, whole: tuple[str, int]) -> socket.socket | None:
    """None where the address is no one's here: `localhost` may name ::1 without IPv6."""
    try:
        return socket.create_server(whole, family=family)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Where a name leads; `localhost` is 127.0.0.1 and ::1 where there is IPv6."""
    found = socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _refused(host: str, port: int, error: OSError | UnicodeError) -> InputError:
    reason = error.errno if isinstance(error, OSError) else None
    if reason == errno.EADDRINUSE:
        return InputError(
            f"--port {port}: another program listens at {host}:{port}",
            "Stop it, or take another port: --port 0 finds a free one.",
        )
    if reason == errno.EACCES:
        return InputError(
            f"--port {port}: this user may not listen there",
            "Take a port from 1024 on.",
        )
    return InputError(
        f"--host {host}: cannot listen there: {getattr(error, 'strerror', None) or error}",
        "Give an address of this machine: 127.0.0.1 for itself, 0.0.0.0 for all its networks.",
    )
