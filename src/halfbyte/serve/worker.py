"""A thread that works off what it is given, one after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """All that computes with torch belongs in one such thread, loading a model included.

    OpenMP keeps a team of threads for every thread that computes. With more of them than cores
    they no longer wait for the next loop but sleep and must be woken: 40 tokens a second instead of
    155 on two cores, where the main thread had loaded the model and another one used it.
    """

    def __init__(self, name: str) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        # a daemon: an interrupt while a large model loads ends the program at once
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anything is still worked off."""
        return self._thread.is_alive()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue some work; its result, or what it raised, is the future's."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001  handed over to whoever asked for the work
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def stop(self) -> None:
        """End after the work under way, and wait for that."""
        self._stopping = True
        self._inbox.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._inbox.get()()
