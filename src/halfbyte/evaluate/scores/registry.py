"""The one table of scores: each is a function of an answer and its row, with what it means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from halfbyte.evaluate.records import (
    Answer,
    Better,
    Column,
    Floats,
    Likelihood,
    Row,
    ScoreInfo,
    Unit,
    mean_stats,
)
from halfbyte.evaluate.scores.pools import POOLS
from halfbyte.evaluate.statistics import Pool

Measure = Callable[[Answer, Row], float]
Statistics = Callable[[Answer, Row], Sequence[float]]
Applies = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Score:
    """A score that can be computed.

    `measure` gives one row's value; `applies` looks at the row alone, never at the answer, so that
    two models are always compared on the same rows. `statistics` are the row's additive
    statistics where the rows do not simply average.
    """

    info: ScoreInfo
    measure: Measure
    applies: Applies
    statistics: Statistics | None = None


REGISTRY: Final[dict[str, Score]] = {}


def always(_row: Row) -> bool:
    """For scores that every row has."""
    return True


@dataclass(frozen=True, slots=True)
class Kind:
    """What a score is like: see ScoreInfo."""

    group: str
    better: Better = "higher"
    unit: Unit = "share"
    binary: bool = False
    pool: str = "mean"


def score(
    kind: Kind, applies: Applies = always, statistics: Statistics | None = None
) -> Callable[[Measure], Measure]:
    """Enter the decorated function into the registry under its name.

    Its docstring is the definition that reports show: what it is, its range, its source.
    """

    def enter(measure: Measure) -> Measure:
        register(make_score(measure, kind, applies, statistics))
        return measure

    return enter


def make_score(
    measure: Measure, kind: Kind, applies: Applies, statistics: Statistics | None = None
) -> Score:
    """A score named and described by its function."""
    info = ScoreInfo(
        name=measure.__name__,
        group=kind.group,
        better=kind.better,
        unit=kind.unit,
        binary=kind.binary,
        pool=kind.pool,
        definition=inspect.cleandoc(measure.__doc__ or "").replace("\n", " "),
    )
    return Score(info, measure, applies, statistics)


def register(entry: Score) -> None:
    """Add a score; a name can be taken only once."""
    if entry.info.name in REGISTRY:
        raise ValueError(f"two scores are named {entry.info.name}")
    REGISTRY[entry.info.name] = entry


def pool_of(info: ScoreInfo) -> Pool:
    """The function from sums [..., k] to the metric [...]."""
    return POOLS[info.pool]


def pooled(column: Column) -> float:
    """The metric over all rows where it applies; NaN where it applies to none."""
    return float(pool_of(column.info)(column.stats.sum(0)))


def score_answers(
    rows: Sequence[Row], answers: Sequence[Answer | None], scores: Mapping[str, Score]
) -> dict[str, Column]:
    """Every score of every answered row; scores that apply to no row are left out."""
    columns = {}
    for name, entry in scores.items():
        places = [
            place
            for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
            if answer is not None and entry.applies(row)
        ]
        if places:
            columns[name] = _column(entry, rows, answers, places)
    return columns


def _column(
    entry: Score, rows: Sequence[Row], answers: Sequence[Answer | None], places: Sequence[int]
) -> Column:
    values = np.full(len(rows), np.nan)
    stats: Floats | None = None
    for place in places:
        answer = answers[place]
        assert answer is not None  # `places` holds answered rows only
        values[place] = entry.measure(answer, rows[place])
        if entry.statistics is not None:
            vector = entry.statistics(answer, rows[place])
            if stats is None:
                stats = np.zeros((len(rows), len(vector)))
            stats[place] = vector
    return Column(entry.info, values, mean_stats(values) if stats is None else stats)


PERPLEXITY: Final = ScoreInfo(
    name="perplexity",
    group="likelihood",
    better="lower",
    unit="plain",
    binary=False,
    pool="perplexity",
    definition="exp(total negative log-likelihood / total tokens) of the references' tokens, end "
    "mark included; of all rows together, so that it does not depend on batching. 1 to infinity.",
)
TOKEN_ACCURACY: Final = ScoreInfo(
    name="token_accuracy",
    group="likelihood",
    better="higher",
    unit="share",
    binary=False,
    pool="share",
    definition="Share of the references' tokens that were the model's most likely next token. "
    "0 to 1.",
)


def likelihood_columns(items: Sequence[Likelihood | None]) -> dict[str, Column]:
    """Perplexity and token accuracy; empty where no row has a likelihood."""
    there = np.array([item is not None and item.tokens > 0 for item in items], dtype=bool)
    if not there.any():
        return {}
    parts = np.array(
        [(item.nll, item.tokens, item.correct) if item else (0.0, 0, 0) for item in items], float
    )
    parts[~there] = 0.0
    nll, tokens, correct = parts.T
    with np.errstate(divide="ignore", invalid="ignore"):
        perplexity = np.where(there, np.exp(nll / tokens), np.nan)
        accuracy = np.where(there, correct / tokens, np.nan)
    return {
        "perplexity": Column(PERPLEXITY, perplexity, np.stack([nll, tokens], 1)),
        "token_accuracy": Column(TOKEN_ACCURACY, accuracy, np.stack([correct, tokens], 1)),
    }
