"""Consumers of events: each is a function of one event, and is closed in the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from halfbyte.run import MetricsLog, RunFolder
from halfbyte.train.events import Evaluated, Event, Finished, Saved, Stepped, Stopped, to_record


class Observer(Protocol):
    """Takes every event in order; `close` comes once, after the last or after a failure."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Release files and the terminal."""


def observe(events: Iterable[Event], observers: Sequence[Observer]) -> Iterator[Event]:
    """Show every event to each observer, then pass it on."""
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(closing(observer))
        for event in events:
            for observer in observers:
                observer(event)
            yield event


class JsonLines:
    """Appends every event to the run's metrics.jsonl, with the time in seconds since 1970."""

    def __init__(self, run: RunFolder) -> None:
        self._log = MetricsLog(run.metrics)

    def __call__(self, event: Event) -> None:
        """Write one line; it has reached the operating system when this returns."""
        self._log.append({**to_record(event), "time": round(time.time(), 3)})

    def close(self) -> None:
        """Close the file."""
        self._log.close()


class TensorBoard:
    """Scalars for TensorBoard; after a resume at `step`, what was written past it is hidden."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # heavy: half a second

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __call__(self, event: Event) -> None:
        """Write the scalars of a step or an evaluation."""
        if isinstance(event, Stepped):
            self._write(
                event.step,
                {
                    "train/loss": event.loss,
                    "train/learning_rate": event.lr,
                    "train/gradient_norm": event.grad_norm,
                    "train/tokens_per_second": event.tokens_per_second,
                },
            )
        elif isinstance(event, Evaluated):
            self._write(
                event.step, {"held_out/loss": event.loss, "held_out/perplexity": event.perplexity}
            )
        elif isinstance(event, Saved | Stopped | Finished):
            self._writer.flush()

    def close(self) -> None:
        """Write what is waiting and close the file."""
        self._writer.close()

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
