"""Plots as SVG text: no script, no fonts, colours from the page's own variables.

Every plot has a `viewBox` and scales with the page; what it shows is said in its `<title>` too.
Colours are classes (`base`, `tuned`, `reference`, `better`, `worse`), so that light and dark pages
and print need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
_CORNER: Final = "reference ↓  answer →"
_CHAR: Final = 7.2  # width of a label's character in units of the drawing, roughly


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values `low..high` onto places `start..stop`; `ticks` are round values within."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], start: float, stop: float, count: int = 5) -> Axis:
        """An axis over all values, widened to round ticks."""
        low, high = min(values), max(values)
        if high - low < 1e-12:
            low, high = low - 0.5, high + 0.5
        step = round_step((high - low) / count)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        size = round((high - low) / step)
        return cls(low, high, start, stop, tuple(low + i * step for i in range(size + 1)))

    def at(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def round_step(rough: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def tick_text(value: float) -> str:
    """A tick's label: short, without a trailing zero."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.6g}"


def drawing(width: float, height: float, title: str, parts: Sequence[str], name: str) -> Markup:
    """An SVG of class `name` that says its title to those who cannot see it."""
    # every part is made here from numbers and escaped texts
    return Markup(  # noqa: S704
        f'<svg class="plot {name}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def label(x: float, y: float, text: str, anchor: str = "middle", kind: str = "label") -> str:
    """A text at a place."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def interval(low: float, value: float, high: float, reach: float, kind: str) -> Markup:
    """A difference with its interval around zero; `reach` is the largest value of either side.

    `kind` is better, worse or unclear. Lower-is-better scores come with their sign turned, so that
    right is always better.
    """
    axis = Axis(-reach, reach, 6, 194, ())
    x1, x, x2 = (axis.at(max(-reach, min(reach, one))) for one in (low, value, high))
    parts = [
        line(100, 2, 100, 22, "zero"),
        f'<rect class="span {kind}" x="{x1:.1f}" y="9" width="{max(x2 - x1, 1):.1f}" '
        f'height="6" rx="3"/>',
        f'<circle class="dot {kind}" cx="{x:.1f}" cy="12" r="4.5"/>',
    ]
    title = f"{value:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}; right is better"
    return drawing(200, 24, title, parts, "interval")


def loss_chart(train: Points, held_out: Points) -> Markup | None:
    """Training loss (steps faint, running mean bold) and held-out loss; None without any."""
    shown = [*train, *held_out]
    if not shown:
        return None
    x_axis = Axis.of([0.0, *(x for x, _ in shown)], 62, 700)
    y_axis = Axis.of(_without_spikes([y for _, y in shown]), 250, 14, 4)
    parts = _grid(x_axis, y_axis, "step", "loss")
    if train:
        parts.append(_path(train, x_axis, y_axis, "curve base faint"))
        parts.append(_path(_smoothed(train), x_axis, y_axis, "curve base"))
    if held_out:
        parts.append(_path(held_out, x_axis, y_axis, "curve tuned"))
        parts += [
            f'<circle class="mark tuned" cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="4"/>'
            for x, y in held_out
        ]
    last = f"; held-out {held_out[0][1]:.3f} to {held_out[-1][1]:.3f}" if held_out else ""
    return drawing(720, 300, f"Loss over {int(shown[-1][0])} steps{last}", parts, "loss")


def _without_spikes(values: Sequence[float]) -> list[float]:
    """What the axis has to hold: a single spike must not flatten everything else."""
    ordered = sorted(values)
    top = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    return [ordered[0], top]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """Exponential running mean over about a twentieth of the points."""
    keep = 1 - 1 / max(1.0, len(points) / 20)
    mean, weight, found = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, mean / weight))
    return found


def _path(points: Points, x_axis: Axis, y_axis: Axis, kind: str) -> str:
    stride = max(1, len(points) // 600)  # more points than places show nothing more
    kept = [*points[::stride], points[-1]]
    low, high = min(y_axis.stop, y_axis.start), max(y_axis.stop, y_axis.start)
    places = (f"{x_axis.at(x):.1f},{min(high, max(low, y_axis.at(y))):.1f}" for x, y in kept)
    return f'<polyline class="{kind}" points="{" ".join(places)}"/>'


def _grid(x_axis: Axis, y_axis: Axis, x_name: str, y_name: str) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(line(x_axis.start, y, x_axis.stop, y, "grid"))
        parts.append(label(x_axis.start - 8, y + 4, tick_text(tick), "end"))
    parts += [label(x_axis.at(tick), y_axis.start + 20, tick_text(tick)) for tick in x_axis.ticks]
    parts.append(label((x_axis.start + x_axis.stop) / 2, y_axis.start + 42, x_name))
    turn = f'transform="rotate(-90 14 {(y_axis.start + y_axis.stop) / 2:.0f})"'
    middle = (y_axis.start + y_axis.stop) / 2
    text = (
        f'<text class="label" x="14" y="{middle:.0f}" text-anchor="middle" {turn}>{y_name}</text>'
    )
    return [*parts, text]


def length_chart(series: Sequence[tuple[str, str, Sequence[int]]]) -> Markup | None:
    """Lengths in words as histograms one under the other, on one scale; None without any.

    `series`: (class, name, lengths). The last bin holds everything beyond the 98th percentile.
    """
    every = sorted(length for _, _, lengths in series for length in lengths)
    if not every:
        return None
    top = max(8, every[int(0.98 * (len(every) - 1))])
    step = max(1, int(round_step(top / 24)))
    bins = top // step + 1
    x_axis = Axis(0, bins * step, 112, 700, ())
    each = 64
    bottom = 10 + each * len(series)
    parts = []
    for number, (kind, name, lengths) in enumerate(series):
        floor = 10 + each * (number + 1) - 8
        parts += _bars(_binned(lengths, step, bins), x_axis, step, floor, each - 18, kind)
        parts.append(line(x_axis.start, floor, x_axis.stop, floor, "grid"))
        parts.append(label(104, floor - 14, name, "end"))
        middle = sorted(lengths)[len(lengths) // 2] if lengths else 0
        x = min(x_axis.at(middle), x_axis.stop)
        parts.append(line(x, floor - each + 18, x, floor, f"median {kind}"))
    for tick in Axis.of([0, bins * step], x_axis.start, x_axis.stop, 8).ticks:
        if tick <= bins * step:
            parts.append(label(x_axis.at(tick), bottom + 12, tick_text(tick)))
    parts.append(label(400, bottom + 34, "words (the line is the median)"))
    return drawing(720, bottom + 44, "Lengths of references and answers", parts, "lengths")


def _binned(lengths: Sequence[int], step: int, bins: int) -> list[int]:
    counts = [0] * bins
    for length in lengths:
        counts[min(bins - 1, length // step)] += 1
    return counts


def _bars(
    counts: Sequence[int], x_axis: Axis, step: int, floor: float, height: float, kind: str
) -> list[str]:
    most = max(counts) or 1
    parts = []
    for place, count in enumerate(counts):
        if count:
            x1, x2 = x_axis.at(place * step), x_axis.at((place + 1) * step)
            tall = max(1.5, height * count / most)
            parts.append(
                f'<rect class="bar {kind}" x="{x1 + 0.5:.1f}" y="{floor - tall:.1f}" '
                f'width="{max(1, x2 - x1 - 1):.1f}" height="{tall:.1f}"/>'
            )
    return parts


def confusion_chart(
    labels: Sequence[str], given: Sequence[str], counts: Sequence[Sequence[int]], name: str
) -> Markup:
    """A confusion matrix: the rows' labels down, the model's labels across, darker is more."""
    cell, left = 54, min(190.0, 20 + max(len(one) for one in labels) * _CHAR)
    left = max(left, 20 + len(_CORNER) * _CHAR)  # the corner's words fit
    top = 26 + min(110.0, max(len(one) for one in given) * _CHAR * 0.75)
    parts = [label(left - 10, top - 12, _CORNER, "end", "label small")]
    for column, one in enumerate(given):
        x = left + column * cell + cell / 2
        turn = f'transform="rotate(-45 {x:.0f} {top - 8:.0f})"'
        parts.append(
            f'<text class="label" x="{x:.0f}" y="{top - 8:.0f}" {turn}>{escape(_cut(one))}</text>'
        )
    for row, one in enumerate(labels):
        y = top + row * cell
        total = sum(counts[row]) or 1
        parts.append(label(left - 10, y + cell / 2 + 4, _cut(one, 24), "end"))
        for column, count in enumerate(counts[row]):
            parts += _cell(left + column * cell, y, cell, count, count / total)
    width = left + len(given) * cell + 70
    return drawing(
        width, top + len(labels) * cell + 6, f"Confusion matrix of {name}", parts, "confusion"
    )


def _cell(x: float, y: float, size: float, count: int, share: float) -> list[str]:
    kind = "label on" if share > 0.55 else "label"
    return [
        f'<rect class="cell" x="{x + 1:.0f}" y="{y + 1:.0f}" width="{size - 2:.0f}" '
        f'height="{size - 2:.0f}" rx="5" style="--share:{share:.3f}"/>',
        label(x + size / 2, y + size / 2 + 4, str(count), "middle", kind),
    ]


def _cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
