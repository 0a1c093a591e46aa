"""The loss plot of a run, drawn from its metrics.jsonl, so that it covers every resume."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from halfbyte.run import RunFolder, read_metrics, write_atomic
from halfbyte.train.events import Evaluated, Event, Finished, Stopped

_TRAIN: Final = "#3b6ea5"
_HELD_OUT: Final = "#c2571a"
_FAINT: Final = "#b4c8de"
_INK: Final = "#333333"


@dataclass(slots=True)
class Losses:
    """What a plot shows: (step, loss) of training and held-out rows, and the steps skipped."""

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    best: tuple[int, float] | None = None

    @classmethod
    def read(cls, metrics: Path) -> Losses:
        """From a metrics.jsonl; a missing one gives no points."""
        found = cls()
        for record in read_metrics(metrics):
            kind, step, loss = record.get("event"), record.get("step"), record.get("loss")
            if kind == "skipped" and isinstance(step, int):
                found.skipped.append(step)
            if not isinstance(step, int) or not isinstance(loss, float):
                continue
            if kind == "stepped":
                found.train.append((step, loss))
            elif kind == "evaluated":
                found.held_out.append((step, loss))
                found.best = (step, loss) if record.get("best") else found.best
        return found


class LossPlot:
    """Redraws the run's loss.svg after evaluations and at the end."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def __call__(self, event: Event) -> None:
        """Redraw if the event changes the picture for long."""
        if isinstance(event, Stopped | Finished) or (isinstance(event, Evaluated) and event.step):
            draw_losses(Losses.read(self._run.metrics), self._run.loss_plot, self._run.name)

    def close(self) -> None:
        """Nothing is held."""


def draw_losses(losses: Losses, target: Path, title: str) -> None:
    """Write the plot as SVG; without a training step or evaluation nothing is written."""
    if not losses.train and not losses.held_out:
        return
    from matplotlib.figure import Figure  # heavy: half a second

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, losses)
    _dress(axes, losses, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomic(target, buffer.getvalue())


def smooth(points: Sequence[tuple[int, float]]) -> list[float]:
    """An exponential mean, corrected for its start as Adam's moments are.

    It remembers a twentieth of the points: long enough to still the noise of single steps, short
    enough not to lag visibly behind a falling loss.
    """
    smoothed, total, weight = [], 0.0, 0.0
    keep = 1.0 - 1.0 / max(1.0, len(points) / 20)
    for _, loss in points:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return smoothed


def _draw(axes: Any, losses: Losses) -> None:
    if losses.train:
        steps = [step for step, _ in losses.train]
        axes.plot(steps, [loss for _, loss in losses.train], color=_FAINT, linewidth=0.8)
        axes.plot(steps, smooth(losses.train), color=_TRAIN, linewidth=1.8, label="training")
    if losses.held_out:
        label = "held out"
        if losses.best:
            step, loss = losses.best
            perplexity = math.exp(min(loss, 700))
            label += f", best {loss:.3f} at step {step} (perplexity {perplexity:.2f})"
            axes.plot([step], [loss], "o", color="none", markeredgecolor=_HELD_OUT, markersize=11)
        steps = [step for step, _ in losses.held_out]
        values = [loss for _, loss in losses.held_out]
        axes.plot(steps, values, "o-", color=_HELD_OUT, linewidth=1.5, markersize=4.5, label=label)
    for step in losses.skipped:
        axes.axvline(step, color="#999999", linewidth=0.8, linestyle=":")


def _dress(axes: Any, losses: Losses, title: str) -> None:
    count = len(losses.skipped)
    note = f" · {count} step{'s' if count > 1 else ''} skipped (dotted)" if count else ""
    axes.set_title(title + note, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss (nats a trained token)", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper right")
