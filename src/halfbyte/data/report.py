"""What preparing the data found: counts, lengths, losses, duplicates and leakage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import TypeAdapter

from halfbyte.data.encoded import EncodedSet
from halfbyte.data.fit import Losses


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set of rows: `tokens` and `trained_tokens` in all, `lengths` in ids at quantiles."""

    source: str
    format: str
    rows: int
    tokens: int
    trained_tokens: int
    lengths: Mapping[str, int]
    losses: Losses

    def to_json(self) -> str:
        """As JSON."""
        return _SET_ADAPTER.dump_json(self, indent=1).decode()

    @staticmethod
    def from_json(text: str | bytes) -> SetReport:
        """The inverse of `to_json`."""
        return _SET_ADAPTER.validate_json(text)

    @classmethod
    def of(cls, source: str, form: str, rows: EncodedSet, losses: Losses) -> SetReport:
        """Measure an encoded set."""
        points = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        quantiles = np.quantile(rows.lengths, list(points.values())) if len(rows) else [0] * 5
        return cls(
            source=source,
            format=form,
            rows=len(rows),
            tokens=int(rows.lengths.sum(dtype=np.int64)),
            trained_tokens=int(rows.trained_tokens.sum(dtype=np.int64)),
            lengths={name: int(value) for name, value in zip(points, quantiles, strict=True)},
            losses=losses,
        )


@dataclass(frozen=True, slots=True)
class Match:
    """Two rows that say the same: `row` and `other` are places (`file:line`), `alike` is 1 for
    the same words, else the share of common word parts (Jaccard)."""

    row: str
    other: str
    alike: float


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows that stand elsewhere too, counted by rows; `first` are the first twenty.

    `exact`: prompt and answer the same but for case and white space. `near`: nearly.
    `same_prompt`: the same prompt with another answer.
    """

    exact: int = 0
    near: int = 0
    same_prompt: int = 0
    first: tuple[Match, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.exact or self.near or self.same_prompt)


@dataclass(frozen=True, slots=True)
class Report:
    """All that preparing the data found.

    `duplicates`: training rows that repeat an earlier one. `leakage`: training rows that stand in
    the held-out rows too; `leaks_dropped` of them were left out. `bad`: rows left out by kind of
    fault, written to `rejects`. `notes`: what else was done to the rows, in sentences.
    """

    template: str
    train: SetReport
    valid: SetReport
    duplicates: Repeats = Repeats()
    leakage: Repeats = Repeats()
    leaks_dropped: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    rejects: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As JSON."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Report:
        """The inverse of `to_json`."""
        return _ADAPTER.validate_json(text)


_SET_ADAPTER: TypeAdapter[SetReport] = TypeAdapter(SetReport)
_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)
