"""What evaluation is about: a row, a model's answer to it, how likely the reference is to a model.

Everything here is plain data: it can be written to JSON and read back unchanged, so that scoring,
comparing and reporting run apart from the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Better = Literal["higher", "lower", "neither"]
Unit = Literal["share", "points", "ratio", "plain"]


@dataclass(frozen=True, slots=True)
class Row:
    """What was asked and what is expected.

    `index` is the row's number in its data set. `prompt` is everything the model was shown but the
    context (system and user turns, earlier answers), one turn a paragraph. `references` are all
    accepted answers, the main one first. `labels` is the closed set the answer comes from, empty
    where there is none. `facts` are the key facts the row itself names. `extra` is every other
    column.
    """

    index: int
    prompt: str
    references: tuple[str, ...]
    context: str | None = None
    facts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The main accepted answer."""
        return self.references[0] if self.references else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer. `stopped`: it ended by itself, not at the limit; `tokens`: its length."""

    text: str
    stopped: bool = True
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the row's trained tokens are: `nll` is the sum of their negative natural-log
    probabilities, `correct` how many of the `tokens` were the most likely one."""

    nll: float
    tokens: int
    correct: int


@dataclass(frozen=True, slots=True)
class ScoreInfo:
    """What a score is, without its code.

    `better` says which way is good (`neither`: shown, never judged). `unit` says how to print it:
    a `share` of 0..1 as percent, `points` of 0..100, a `ratio`, or `plain`. `binary` scores are
    right or wrong. `pool` names how rows become one number (see `scores.pools`).
    """

    name: str
    group: str
    better: Better
    unit: Unit
    binary: bool
    pool: str
    definition: str


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One score over all rows of one model.

    `values`: float [rows], NaN where the score does not apply. `stats`: float [rows, k], the
    additive statistics its pool function turns into one number (zero where it does not apply).
    """

    info: ScoreInfo
    values: Floats
    stats: Floats

    @property
    def applies(self) -> npt.NDArray[np.bool_]:
        """Bool [rows]: where the score has a value."""
        return ~np.isnan(self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One model on one set of rows: its answers (None: not asked) and its scores by name."""

    model: str
    rows: tuple[Row, ...]
    answers: tuple[Answer | None, ...]
    columns: Mapping[str, Column]
    likelihoods: tuple[Likelihood | None, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `from_json` gives the same evaluation back."""
        return {
            "model": self.model,
            "rows": [_row_json(row) for row in self.rows],
            "answers": [
                None
                if answer is None
                else {"text": answer.text, "stopped": answer.stopped, "tokens": answer.tokens}
                for answer in self.answers
            ],
            "likelihoods": [
                None if item is None else [item.nll, item.tokens, item.correct]
                for item in self.likelihoods
            ],
            "scores": [_column_json(column) for column in self.columns.values()],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Evaluation:
        """Read back what `to_json` wrote."""
        columns = [_column_of(item) for item in tree["scores"]]
        return cls(
            model=tree["model"],
            rows=tuple(_row_of(item) for item in tree["rows"]),
            answers=tuple(None if item is None else Answer(**item) for item in tree["answers"]),
            columns={column.info.name: column for column in columns},
            likelihoods=tuple(
                None if item is None else Likelihood(*item) for item in tree["likelihoods"]
            ),
        )


def nullable(values: Sequence[float] | Floats) -> list[float | None]:
    """The numbers for JSON, which has no NaN: null where there is none."""
    return [None if np.isnan(value) else float(value) for value in values]


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "index": row.index,
        "prompt": row.prompt,
        "references": list(row.references),
        "context": row.context,
        "facts": list(row.facts),
        "labels": list(row.labels),
        "extra": dict(row.extra),
    }


def _row_of(tree: Mapping[str, Any]) -> Row:
    return Row(
        index=tree["index"],
        prompt=tree["prompt"],
        references=tuple(tree["references"]),
        context=tree["context"],
        facts=tuple(tree["facts"]),
        labels=tuple(tree["labels"]),
        extra=tree["extra"],
    )


def _column_json(column: Column) -> dict[str, Any]:
    info = column.info
    tree: dict[str, Any] = {
        "name": info.name,
        "group": info.group,
        "better": info.better,
        "unit": info.unit,
        "binary": info.binary,
        "pool": info.pool,
        "definition": info.definition,
        "values": nullable(column.values),
    }
    if info.pool != "mean":  # a mean's statistics are (value, 1): nothing to keep
        tree["stats"] = column.stats.tolist()
    return tree


def _column_of(tree: Mapping[str, Any]) -> Column:
    names = ("name", "group", "better", "unit", "binary", "pool", "definition")
    info = ScoreInfo(**{name: tree[name] for name in names})
    values = np.array([np.nan if v is None else v for v in tree["values"]], dtype=np.float64)
    stats = mean_stats(values) if info.pool == "mean" else np.array(tree["stats"], np.float64)
    return Column(info, values, stats)


def mean_stats(values: Floats) -> Floats:
    """The additive statistics of a mean: [rows, 2] with (value, 1), (0, 0) where NaN."""
    there = ~np.isnan(values)
    return np.stack([np.where(there, values, 0.0), there.astype(np.float64)], axis=1)
