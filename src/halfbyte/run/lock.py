"""One writer per run folder: a lock that names its holder and does not outlive it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from halfbyte.errors import InputError
from halfbyte.run.files import writing

# File systems without flock (some FUSE mounts): there the pid and its start time decide.
_NO_FLOCK: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: a process, known by its pid and start time (seconds since 1970)."""

    pid: int
    started: float
    host: str

    @property
    def alive(self) -> bool:
        """Whether that very process still runs (on another host nobody can tell: yes)."""
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.Error:
            return False


@contextmanager
def locked(path: Path) -> Iterator[Holder | None]:
    """Hold the lock file `path` for the block; yields the dead holder it was taken over from.

    Raises:
        InputError: a living process holds it; the message has its pid.
        ResourceError: the folder cannot be written.
    """
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        free = _try_flock(handle)
        before = _read(path)
        if free is False or (free is None and before is not None and before.alive):
            raise _refusal(path, before)
        me = Holder(os.getpid(), psutil.Process().create_time(), socket.gethostname())
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)
        try:
            yield before
        finally:
            os.truncate(handle, 0)  # emptied, not removed: a waiting opener keeps the same file
    finally:
        os.close(handle)


def holder(path: Path) -> Holder | None:
    """The living process that holds the lock, if any."""
    found = _read(path)
    if found is None or not found.alive:
        return None
    if found.host != socket.gethostname():  # its pid means nothing here, the lock itself does
        with path.open("rb") as file:
            if _try_flock(file.fileno()):
                return None
    return found


def _try_flock(handle: int) -> bool | None:
    """True: ours now. False: somebody else's. None: this file system knows no flock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _refusal(path: Path, found: Holder | None) -> InputError:
    if found is None:  # between its flock and its first write
        return InputError(f"{path.parent}: another process is using this run", "Try again shortly.")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started))
    return InputError(
        f"{path.parent}: process {found.pid} on {found.host} is using this run, started {since}",
        f"Wait for it, or stop it: kill -INT {found.pid} (it saves a checkpoint first).",
    )


def _read(path: Path) -> Holder | None:
    try:
        record = json.loads(path.read_bytes())
        return Holder(int(record["pid"]), float(record["started"]), str(record["host"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # empty or torn: its writer died before it held anything worth protecting
