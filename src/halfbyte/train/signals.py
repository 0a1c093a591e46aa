"""Ctrl-C and SIGTERM ask the loop to stop after the step; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal as signals
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

# A launcher forwards the Ctrl-C that its children got from the terminal too: that is no second one.
_FORWARDED_WITHIN: Final = 1.0


class Stop:
    """A request to stop, made by a signal or by `request`.

    As a context manager it listens to SIGINT and SIGTERM (in the main thread; elsewhere only
    `request` counts) and puts the former handlers back in the end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._signal = 0
        self._since = 0.0
        self._former: dict[int, Any] = {}

    @property
    def signal(self) -> int:
        """The number of the signal that asked to stop; 0 while none did."""
        return self._signal

    def request(self, number: int = signals.SIGTERM) -> None:
        """Ask to stop after the current step, as if the signal `number` had arrived."""
        if not self._signal:
            self._signal, self._since = int(number), self._clock()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signals.SIGINT, signals.SIGTERM):
                self._former[number] = signals.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._former:
            number, handler = self._former.popitem()
            signals.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        again = self._signal and self._clock() - self._since > _FORWARDED_WITHIN
        if again and number == signals.SIGINT:
            raise KeyboardInterrupt
        self.request(number)
