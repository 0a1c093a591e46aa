"""The view of a report: everything its four forms show, chosen and put into words once."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from halfbyte.evaluate.compare import Comparison
from halfbyte.evaluate.gate import Finding
from halfbyte.evaluate.metric import Metric
from halfbyte.evaluate.records import Evaluation, Row
from halfbyte.evaluate.scores import Confusion, confusion
from halfbyte.evaluate.scores.registry import pool_of
from halfbyte.evaluate.text import words

Points = list[tuple[float, float]]
_SHOWN: Final = 6  # rows each of best, worst and random
_FLIPS: Final = 12  # flips shown each way
_GROUPS: Final = 12  # a column with more values is no grouping


@dataclass(frozen=True, slots=True, eq=False)
class ReportInput:
    """What a report is made of; all of it plain records.

    `train_loss`, `held_out_loss`: (step, nats a token). `data`: what preparing the data found, as
    a tree. `settings`, `receipt`, `decoding`: trees to be shown. `created`: ISO 8601.
    """

    name: str
    comparison: Comparison
    base: Evaluation
    tuned: Evaluation
    created: str
    retention: tuple[Evaluation, Evaluation] | None = None
    train_loss: Sequence[tuple[float, float]] = ()
    held_out_loss: Sequence[tuple[float, float]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Finding] = ()


@dataclass(frozen=True, slots=True)
class RowView:
    """One row with both answers and the values of the headline score."""

    row: Row
    base: str
    tuned: str
    base_value: float
    tuned_value: float
    base_stopped: bool
    tuned_stopped: bool


@dataclass(frozen=True, slots=True)
class GroupView:
    """The headline score of the rows with one value in one column."""

    column: str
    value: str
    rows: int
    base: float
    tuned: float


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The rows a report shows, and what is counted over all of them."""

    main: Metric
    gained: tuple[RowView, ...]
    lost: tuple[RowView, ...]
    best: tuple[RowView, ...]
    worst: tuple[RowView, ...]
    random: tuple[RowView, ...]
    groups: tuple[GroupView, ...]
    lengths: tuple[tuple[str, str, tuple[int, ...]], ...]
    confusions: tuple[tuple[str, Confusion], ...]


def losses(records: Iterable[Mapping[str, Any]]) -> tuple[Points, Points]:
    """Training and held-out loss from the events of metrics.jsonl; steps without one left out."""
    train: Points = []
    held_out: Points = []
    for record in records:
        into = {"stepped": train, "evaluated": held_out}.get(str(record.get("event")))
        if into is not None and record.get("loss") is not None:
            into.append((float(record["step"]), float(record["loss"])))
    return train, held_out


def view_of(given: ReportInput) -> View:
    """Choose the rows to show: flips, the largest gains and losses, and random ones (seeded)."""
    main = given.comparison.metric(given.comparison.headline)
    answered = answered_rows(given)
    by_index = {one.row.index: one for one in answered}
    ordered = _by_gain(answered, main)
    rest = [one for one in answered if one not in ordered[:_SHOWN] and one not in ordered[-_SHOWN:]]
    chance = random.Random(0)
    return View(
        main=main,
        gained=tuple(by_index[i] for i in main.gained[:_FLIPS] if i in by_index),
        lost=tuple(by_index[i] for i in main.lost[:_FLIPS] if i in by_index),
        best=tuple(one for one in ordered[:_SHOWN] if _gain(one, main) > 0),
        worst=tuple(one for one in reversed(ordered[-_SHOWN:]) if _gain(one, main) < 0),
        random=tuple(chance.sample(rest or answered, min(_SHOWN, len(rest or answered)))),
        groups=tuple(_groups(given)),
        lengths=tuple(_lengths(answered)),
        confusions=tuple(_confusions(given)),
    )


def answered_rows(given: ReportInput) -> list[RowView]:
    """Every row that both models answered, in order."""
    name = given.comparison.headline
    before, after = given.base.columns.get(name), given.tuned.columns.get(name)
    found = []
    for place, row in enumerate(given.base.rows):
        one, two = given.base.answers[place], given.tuned.answers[place]
        if one is not None and two is not None:
            found.append(
                RowView(
                    row=row,
                    base=one.text,
                    tuned=two.text,
                    base_value=float(before.values[place]) if before else float("nan"),
                    tuned_value=float(after.values[place]) if after else float("nan"),
                    base_stopped=one.stopped,
                    tuned_stopped=two.stopped,
                )
            )
    return found


def _gain(one: RowView, main: Metric) -> float:
    change = one.tuned_value - one.base_value
    if np.isnan(change):
        return 0.0
    return -change if main.info.better == "lower" else change


def _by_gain(rows: Sequence[RowView], main: Metric) -> list[RowView]:
    return sorted(rows, key=lambda one: (-_gain(one, main), one.row.index))


def _groups(given: ReportInput) -> list[GroupView]:
    """The headline score by the first column that sorts the rows into two to twelve kinds."""
    name = given.comparison.headline
    before, after = given.base.columns[name], given.tuned.columns[name]
    there = before.applies & after.applies
    for column in ("kind", "category", "task", "subject", "source", "type"):
        kinds = [str(row.extra[column]) if column in row.extra else "" for row in given.base.rows]
        values = sorted({kind for kind, used in zip(kinds, there, strict=True) if used} - {""})
        if 2 <= len(values) <= _GROUPS:
            break
    else:
        return []
    found = []
    pool = pool_of(before.info)
    for value in values:
        places = np.array([kind == value for kind in kinds]) & there
        found.append(
            GroupView(
                column=column,
                value=value,
                rows=int(places.sum()),
                base=float(pool(before.stats[places].sum(0))),
                tuned=float(pool(after.stats[places].sum(0))),
            )
        )
    return found


def _lengths(rows: Sequence[RowView]) -> list[tuple[str, str, tuple[int, ...]]]:
    if not rows:
        return []
    return [
        ("reference", "reference", tuple(len(words(one.row.reference)) for one in rows)),
        ("base", "base", tuple(len(words(one.base)) for one in rows)),
        ("tuned", "tuned", tuple(len(words(one.tuned)) for one in rows)),
    ]


def _confusions(given: ReportInput) -> list[tuple[str, Confusion]]:
    found = []
    for name, evaluation in (("base", given.base), ("tuned", given.tuned)):
        matrix = confusion(evaluation.rows, evaluation.answers)
        # twenty labels still fit a page; more would be dust
        if matrix is not None and len(matrix.labels) <= 20:
            found.append((name, matrix))
    return found
