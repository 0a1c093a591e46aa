"""Progress for people: a bar in a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from halfbyte.train import events
from halfbyte.train.events import Event

_PLAIN_EVERY: Final = 15.0  # seconds between plain step lines: a log, not a flood


class ConsoleProgress:
    """Shows loss, tokens/s, memory and time left; prints evaluations and whatever is unusual."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._began = self._shown = clock()
        self._first = self._steps = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case events.Started():
                self._start(event)
            case events.Stepped():
                self._step(event)
            case events.Finished():
                self._finish(event)
            case events.Evaluated() if event.step == self._first:
                self._began = self._clock()  # the look before the first step is nobody's pace
            case events.Skipped():
                self._update(event.step, "loss    –")  # the number shown was another step's
        for text, style in _notices(event):
            self._say(text, event, style)

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self, event: events.Started) -> None:
        self._began = self._shown = self._clock()
        self._first, self._steps = event.step, event.steps
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed:>4.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=event.steps, completed=event.step)

    def _step(self, event: events.Stepped) -> None:
        text = (
            f"loss {event.loss:.4f} · {event.tokens_per_second:,.0f} tokens/s · "
            f"{event.memory / 1e9:.1f} GB · {self._left(event.step)} left"
        )
        self._update(event.step, text)
        now = self._clock()
        edge = event.step in (self._first + 1, self._steps)
        if self._bar is None and (edge or now - self._shown >= _PLAIN_EVERY):
            self._shown = now
            self._say(text.replace("·", "|"), event)

    def _update(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)

    def _left(self, step: int) -> str:
        """Time left at the pace of the steps, evaluations and checkpoints between them included."""
        pace = (self._clock() - self._began) / max(1, step - self._first)
        return str(timedelta(seconds=round(pace * (self._steps - step))))

    def _finish(self, event: events.Finished) -> None:
        self.close()
        why = (
            "no better held-out loss for long" if event.reason == "patience" else "all steps taken"
        )
        text = f"{why}; {event.tokens:,} tokens in {timedelta(seconds=round(event.seconds))}"
        if event.best_loss is not None:
            text += f"; best held-out loss {event.best_loss:.4f} at step {event.best_step}"
        self._say(text, event, "bold")

    def _say(self, text: str, event: Event, style: str = "") -> None:
        line = Text(f"step {event.step:>5}  ", style="dim") + Text(text, style=style)
        self._console.print(line, soft_wrap=not self._console.is_terminal)


def _notices(event: Event) -> Iterator[tuple[str, str]]:
    """What deserves a line of its own, with its style."""
    match event:
        case events.Skipped():
            yield f"skipped: {event.reason}; rows {_some(event.rows)}", "yellow"
        case events.Shrunk():
            most = f"{event.micro_batches} micro-batches of at most {event.rows} rows"
            yield f"memory was short: {most} from now on ({event.reason})", "yellow"
        case events.Evaluated():
            best = ", the best so far" if event.best else ""
            text = f"held-out loss {event.loss:.4f}, perplexity {event.perplexity:.3f}{best}"
            yield text, "green" if event.best else ""
        case events.Resumed():
            yield f"goes on from {event.path}", "cyan"
            for text in event.damaged:
                yield f"damaged, left aside: {text}", "yellow"
            for text in event.notes:
                yield text, "yellow"
        case events.Dropped():
            yield f"damaged, left aside: {event.reason}", "yellow"
            instead = f"the result has the weights of this step, not of step {event.best_step}"
            yield instead, "yellow"
        case events.Stopped():
            yield "stopped by a signal; everything is saved", "yellow"


def _some(rows: tuple[int, ...], most: int = 8) -> str:
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, rows[:most])) + more
