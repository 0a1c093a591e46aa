"""Two models on the same rows: every score's difference with its interval, its test, its flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from halfbyte.errors import InputError
from halfbyte.evaluate.metric import Metric, test_p
from halfbyte.evaluate.records import Column, Evaluation, ScoreInfo
from halfbyte.evaluate.scores import most_frequent
from halfbyte.evaluate.scores.registry import pool_of, pooled
from halfbyte.evaluate.statistics import (
    Pair,
    Resampling,
    difference,
    holm,
    influence_spread,
    paired_interval,
    ratio,
    rows_needed,
    rows_needed_binary,
)
from halfbyte.evaluate.verdict import Verdict, give_verdict

RETENTION: Final = "retention_"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Base against tuned: every metric, and what follows from them."""

    base: str
    tuned: str
    rows: int
    answered: int
    headline: str
    verdict: Verdict
    metrics: tuple[Metric, ...]
    resampling: Resampling

    def metric(self, name: str) -> Metric:
        """The metric of this name.

        Raises:
            InputError: if there is none; the message lists those there are.
        """
        for metric in self.metrics:
            if metric.info.name == name:
                return metric
        names = ", ".join(metric.info.name for metric in self.metrics)
        raise InputError(f"no score named {name} was computed on these rows", f"There are: {names}")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `from_json` gives the same comparison back."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Comparison:
        """Read back what `to_json` wrote, also after a journey through JSON text."""
        metrics = tuple(
            Metric(
                **{
                    **item,
                    "info": ScoreInfo(**item["info"]),
                    "gained": tuple(item["gained"]),
                    "lost": tuple(item["lost"]),
                }
            )
            for item in tree["metrics"]
        )
        verdict = Verdict(
            **{
                **tree["verdict"],
                "gains": tuple(tree["verdict"]["gains"]),
                "losses": tuple(tree["verdict"]["losses"]),
            }
        )
        resampling = Resampling(**tree["resampling"])
        return cls(**{**tree, "metrics": metrics, "verdict": verdict, "resampling": resampling})


def compare(
    base: Evaluation,
    tuned: Evaluation,
    retention: tuple[Evaluation, Evaluation] | None = None,
    resampling: Resampling | None = None,
) -> Comparison:
    """Compare two models row by row.

    `retention` is the pair of evaluations on general rows; its scores are entered as
    `retention_NAME`.

    Raises:
        InputError: when the two did not answer the same rows.
    """
    draw = resampling or Resampling()
    metrics = _metrics(base, tuned, draw)
    if retention is not None:
        metrics += [_as_retention(metric) for metric in _metrics(*retention, draw)]
    metrics = _corrected(metrics)
    headline = headline_score(base)
    same = all(metric.difference == 0 and not metric.wins + metric.losses for metric in metrics)
    return Comparison(
        base=base.model,
        tuned=tuned.model,
        rows=len(base.rows),
        answered=sum(answer is not None for answer in base.answers),
        headline=headline,
        verdict=give_verdict(
            metrics,
            headline,
            identical=same and base.answers == tuned.answers,
            note=_note(headline, base),
        ),
        metrics=tuple(metrics),
        resampling=draw,
    )


def _note(headline: str, base: Evaluation) -> str:
    """What a label score must be held against: labels are not equally frequent."""
    if headline != "label_accuracy":
        return ""
    pairs = zip(base.rows, base.answers, strict=True)
    often = most_frequent([row for row, answer in pairs if answer is not None])
    if often is None:
        return ""
    label, share = often
    return f" Always answering “{label}” would give {100 * share:.1f} %."


def headline_score(evaluation: Evaluation) -> str:
    """The score the verdict is about, chosen from the rows alone before any answer is seen:
    the final answer where rows have one, the label where they have a closed set, exact match for
    short references, else chrF; perplexity where nothing was answered.

    Raises:
        InputError: when no row has any score.
    """
    columns = evaluation.columns
    if not columns:
        raise InputError(
            "nothing was scored: there are no rows, or none has an answer to compare with",
            "Give held-out rows with references: `--data FILE`.",
        )
    asked = sum(answer is not None for answer in evaluation.answers)
    lengths = [len(row.reference.split()) for row in evaluation.rows]
    short = bool(lengths) and float(np.median(lengths)) <= 5  # a name, a date, a label
    wishes = ["final_answer_match", "label_accuracy", "exact_match" if short else "chrf"]
    for name in wishes:
        if name in columns and int(columns[name].applies.sum()) * 2 >= asked > 0:
            return name
    return next(name for name in ("perplexity", *columns) if name in columns)


def pair_of(base: Column, tuned: Column) -> tuple[Pair, npt.NDArray[np.intp]]:
    """The rows where the score applies to both, as a Pair, and their places."""
    places = np.flatnonzero(base.applies & tuned.applies)
    return Pair(base.stats[places], tuned.stats[places], pool_of(base.info)), places


def _metrics(base: Evaluation, tuned: Evaluation, draw: Resampling) -> list[Metric]:
    _check_same_rows(base, tuned)
    found = []
    for name, column in base.columns.items():
        other = tuned.columns.get(name)
        if other is not None and (column.applies & other.applies).any():
            found.append(_metric(column, other, [row.index for row in base.rows], draw))
    return found


def _check_same_rows(base: Evaluation, tuned: Evaluation) -> None:
    keys = [[(row.prompt, row.context, row.references) for row in e.rows] for e in (base, tuned)]
    if keys[0] == keys[1]:
        return
    if len(keys[0]) != len(keys[1]):
        what = f"{base.model} has {len(keys[0])} rows, {tuned.model} {len(keys[1])}"
    else:
        first = next(i for i, (a, b) in enumerate(zip(*keys, strict=True)) if a != b)
        what = f"row {first} of {base.model} is not row {first} of {tuned.model}"
    raise InputError(
        f"only the same rows can be compared: {what}",
        "Score both on one file: `halfbyte compare RUN RUN --data FILE`.",
    )


def _metric(base: Column, tuned: Column, indices: Sequence[int], draw: Resampling) -> Metric:
    info = base.info
    pair, places = pair_of(base, tuned)
    change = tuned.values[places] - base.values[places]
    if info.better == "lower":
        change = -change
    # rounding in a sum of log-likelihoods is not a win: 1e-9 of the value is a tie
    scale = np.maximum(1.0, np.abs(base.values[places])) * 1e-9
    wins, losses = change > scale, change < -scale
    span = paired_interval(pair, difference, draw)
    times = paired_interval(pair, ratio, draw)
    gained = tuple(indices[place] for place in places[wins]) if info.binary else ()
    lost = tuple(indices[place] for place in places[losses]) if info.binary else ()
    needed_for = _smallest_interesting(info, pooled(Column(info, base.values, base.stats)))
    spread = influence_spread(pair, difference)
    needed = (
        rows_needed_binary((len(gained) + len(lost)) / len(pair), needed_for)
        if info.binary
        else rows_needed(spread, needed_for)
    )
    return Metric(
        info=info,
        rows=len(pair),
        base=float(pair.pool(pair.base.sum(0))),
        tuned=float(pair.pool(pair.tuned.sum(0))),
        difference=span.estimate,
        low=span.low,
        high=span.high,
        ratio=_finite(times.estimate),
        ratio_low=_finite(times.low),
        ratio_high=_finite(times.high),
        p=test_p(pair, info, draw),
        p_holm=None,
        wins=int(wins.sum()),
        losses=int(losses.sum()),
        ties=len(pair) - int(wins.sum()) - int(losses.sum()),
        needed=needed,
        needed_for=needed_for,
        gained=gained,
        lost=lost,
    )


def _smallest_interesting(info: ScoreInfo, base: float) -> float:
    """The difference a power statement is about: 5 points of a share, 2 of chrF or BLEU, 5 % of
    anything else."""
    if info.unit == "share":
        return 0.05
    return 2.0 if info.unit == "points" else 0.05 * abs(base)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _as_retention(metric: Metric) -> Metric:
    info = replace(metric.info, name=RETENTION + metric.info.name, group="retention")
    return replace(metric, info=info)


def _corrected(metrics: Sequence[Metric]) -> list[Metric]:
    judged = [metric for metric in metrics if metric.info.better != "neither"]
    corrected = holm([metric.p for metric in judged])
    by_name = {m.info.name: p for m, p in zip(judged, corrected, strict=True)}
    return [replace(metric, p_holm=by_name.get(metric.info.name)) for metric in metrics]
