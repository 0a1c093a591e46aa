"""Work on many pieces by all processors, in order, with few pieces in memory at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, Final, TypeVar

from halfbyte.errors import ResourceError

A = TypeVar("A")
B = TypeVar("B")

_ALONE: Final = 8  # pieces done before others are asked: small data is not worth it
_AHEAD: Final = 2  # pieces a process has before it
_MOST: Final = 8  # processes; then the one that reads and writes is what they wait for

_work: Callable[[Any], Any]  # in a forked process: what it was forked for


def in_order(work: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
    """`work` on every piece, in their order.

    From the ninth piece on, processes forked from this one do the work: it may hold whatever this
    one holds, but pieces and results are sent, and what it changes is lost. Where processes cannot
    be forked safely (Windows, macOS), and with one processor, all is done here.

    Raises:
        ResourceError: a process was killed.
        Exception: whatever `work` raises.
    """
    pieces = iter(pieces)
    for piece in islice(pieces, _ALONE):
        yield work(piece)
    count = min(processors(), _MOST)
    first = next(pieces, None) if count > 1 else None
    if first is None:
        yield from map(work, pieces)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, fork, initializer=_begin, initargs=(work,))
    waiting = deque([pool.submit(_do, first)])
    try:
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) >= count * _AHEAD:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """How many processors this process may use; 1 where it cannot be forked."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _result(waiting: deque[Future[B]]) -> B:
    try:
        return waiting.popleft().result()
    except BrokenProcessPool:
        raise ResourceError(
            "a process that prepares rows was killed, most likely for want of memory",
            "Free some memory, or prepare fewer rows: data.limit.",
        ) from None


def _begin(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603  the only thing a forked process is for
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(piece: Any) -> Any:
    return _work(piece)
