"""The parent's side of jinja_worker: one process for all templates from outside."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from halfbyte.data import jinja_worker
from halfbyte.errors import IntegrityError

_WORKER: Final = Path(jinja_worker.__file__)
_LARGEST: Final = 1 << 28  # bytes of a reply
_SECONDS: Final = 2.0  # of processor time for a request
_WALL: Final = 60.0  # seconds until the worker is killed: it may hang where it cannot stop itself


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's text, and for each cut the length of its prompt, or the prompt if `text` does not
    begin with it."""

    text: str
    prompts: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The template would not render this row; `reason` in its own words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of each row, in order, and which variables the template reads."""

    rows: tuple[Rendered | Refusal, ...]
    reads: frozenset[str]


Row = Mapping[str, Any]  # {"messages", "context", "cuts"} and perhaps "holes", as in jinja_worker


class Sandbox:
    """Renders rows in another process under limits of time, memory and output.

    Started with the first request; a fork of the caller gets its own. Safe to share by threads.
    """

    def __init__(self, seconds: float = _SECONDS, wall: float = _WALL) -> None:
        self._seconds = seconds
        self._wall = wall
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, variables: Mapping[str, str], rows: Sequence[Row]) -> Reply:
        """Render rows.

        Raises:
            IntegrityError: the template is hostile or no template.
        """
        request = {
            "source": source,
            "variables": variables,
            "seconds": self._seconds,
            "rows": rows,
        }
        with self._lock:
            return _understood(json.loads(self._ask(json.dumps(request).encode())))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, frame: bytes) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack(">I", len(frame)) + frame)
            process.stdin.flush()
            deadline = time.monotonic() + self._wall
            (length,) = struct.unpack(">I", _receive(process.stdout, 4, deadline))
            return _receive(process.stdout, length, deadline)
        except BrokenPipeError:
            self.close()
            raise IntegrityError("the chat template ended the process that renders it") from None
        except _GoneError as error:
            self.close()
            raise IntegrityError(f"the chat template was stopped: {error}") from None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            # a session of its own: Ctrl-C in the terminal is for the training, not for this
            self._process = subprocess.Popen(  # noqa: S603 - our own file, no shell
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._owner = os.getpid()
        return self._process


class _GoneError(Exception):
    pass


def _receive(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    if size > _LARGEST:
        raise _GoneError("its output is too large")
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while size:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise _GoneError("it takes longer than a template may")
            part = os.read(pipe.fileno(), min(size, 1 << 20))
            if not part:
                raise _GoneError("it ended the process that renders it")
            parts.append(part)
            size -= len(part)
    return b"".join(parts)


def _understood(reply: Mapping[str, Any]) -> Reply:
    if "hostile" in reply:
        raise IntegrityError(f"the chat template cannot be used: {reply['hostile']}")
    rows = tuple(
        Refusal(str(row["refused"])) if isinstance(row, dict) else Rendered(row[0], tuple(row[1]))
        for row in reply["rows"]
    )
    return Reply(rows, frozenset(reply["reads"]))


def render_trusted(source: str, variables: Mapping[str, str], rows: Sequence[Row]) -> Reply:
    """Render rows in this process: for the built-in templates."""
    return _understood(
        jinja_worker.answer({"source": source, "variables": variables, "rows": rows})
    )


SANDBOX: Final = Sandbox()
atexit.register(SANDBOX.close)
