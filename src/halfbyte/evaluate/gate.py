"""The gate: conditions on a comparison that CI can insist on, met only where the evidence is.

    SCORE > base            SCORE < 1.05 * base          SCORE > base + 0.05          SCORE >= 0.8

The comparison signs are > >= < <=; the right side is `base`, `base` times a number, `base` plus or
minus a number, or a number. A condition holds when the whole 95 % interval of
(tuned - right side), drawn row by row from the same resamples for both, lies on the stated side of
zero. Against plain `base` the test of the score (McNemar or randomization) must give p < 0.05 too.
With fewer than ten rows nothing holds: an interval of so few rows promises too much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from halfbyte.errors import GateError, InputError
from halfbyte.evaluate.compare import RETENTION, pair_of
from halfbyte.evaluate.metric import test_p
from halfbyte.evaluate.records import Column, Evaluation, Floats
from halfbyte.evaluate.statistics import Interval, Resampling, paired_interval
from halfbyte.evaluate.verdict import ALPHA

MIN_ROWS: Final = 10
_NUMBER: Final = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+"
_FORM: Final = re.compile(
    rf"^\s*(?P<score>[A-Za-z_]\w*)\s*(?P<sign>>=|<=|>|<)\s*"
    rf"(?:(?P<alone>-?(?:{_NUMBER}))"
    rf"|(?:(?P<times>{_NUMBER})\s*\*\s*)?base(?:\s*\*\s*(?P<times2>{_NUMBER}))?"
    rf"(?:\s*(?P<plus>[+-])\s*(?P<offset>{_NUMBER}))?)\s*$"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """`score sign factor * base + offset`; a plain number has the factor 0."""

    text: str
    score: str
    sign: str
    factor: float
    offset: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A requirement, whether it holds, and the evidence in words."""

    requirement: Requirement
    holds: bool
    evidence: str


def parse_requirement(text: str) -> Requirement:
    """Read one condition.

    Raises:
        InputError: when it is none; the hint shows the forms.
    """
    match = _FORM.match(text)
    if match is None:
        raise InputError(
            f"--require {text!r}: not a condition",
            'Write "exact_match > base", "retention_perplexity < 1.05 * base", '
            '"final_answer_match > base + 0.1" or "label_accuracy >= 0.8".',
        )
    if match["alone"] is not None:
        return Requirement(text, match["score"], match["sign"], 0.0, float(match["alone"]))
    factor = float(match["times"] or 1) * float(match["times2"] or 1)
    offset = float(match["offset"] or 0) * (-1 if match["plus"] == "-" else 1)
    return Requirement(text, match["score"], match["sign"], factor, offset)


def check(
    requirements: Sequence[Requirement],
    base: Evaluation,
    tuned: Evaluation,
    retention: tuple[Evaluation, Evaluation] | None = None,
    resampling: Resampling | None = None,
) -> list[Finding]:
    """Judge every condition.

    Raises:
        InputError: for a score that was not computed; the message lists those that were.
    """
    draw = resampling or Resampling()
    pairs = _columns(base, tuned, retention)
    missing = [one.score for one in requirements if one.score not in pairs]
    if missing:
        raise InputError(
            f"--require: no score named {', '.join(missing)} was computed on these rows",
            f"There are: {', '.join(sorted(pairs))}",
        )
    return [_judge(one, *pairs[one.score], draw) for one in requirements]


def enforce(findings: Sequence[Finding]) -> None:
    """Pass if every condition holds.

    Raises:
        GateError: (exit 6) with the evidence for each that does not.
    """
    failed = [finding for finding in findings if not finding.holds]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(findings)} requirements not met:",
            [f"{finding.requirement.text}: {finding.evidence}" for finding in failed],
            "More held-out rows narrow the interval; `halfbyte report RUN` writes a page with all "
            "scores.",
        )


def _columns(
    base: Evaluation, tuned: Evaluation, retention: tuple[Evaluation, Evaluation] | None
) -> dict[str, tuple[Column, Column]]:
    found = {n: (base.columns[n], tuned.columns[n]) for n in base.columns if n in tuned.columns}
    if retention is not None:
        kept, now = (evaluation.columns for evaluation in retention)
        found |= {RETENTION + name: (kept[name], now[name]) for name in kept if name in now}
    return found


def _judge(one: Requirement, base: Column, tuned: Column, draw: Resampling) -> Finding:
    pair, _ = pair_of(base, tuned)
    rows = len(pair)
    if rows < MIN_ROWS:
        few = f"only {rows} row{'s' if rows != 1 else ''}; with fewer than {MIN_ROWS} "
        return Finding(one, False, few + "no requirement is met, whatever the difference")

    def gap(of_base: Floats, of_tuned: Floats) -> Floats:
        return of_tuned - (one.factor * of_base + one.offset)

    span = paired_interval(pair, gap, draw)
    holds = {
        ">": span.low > 0,
        ">=": span.low >= 0,
        "<": span.high < 0,
        "<=": span.high <= 0,
    }[one.sign]
    evidence = _evidence(one, span, rows)
    if holds and (one.factor, one.offset) == (1.0, 0.0) and one.sign in {"<", ">"}:
        p = test_p(pair, base.info, draw)
        return Finding(one, p < ALPHA, f"{evidence}, p = {p:.3g}")
    return Finding(one, holds, evidence)


def _evidence(one: Requirement, span: Interval, rows: int) -> str:
    right = f"{one.offset:g}" if one.factor == 0 else one.text.split(one.sign, 1)[1].strip()
    return (
        f"{one.score} - ({right}) = {span.estimate:+.4g}, "
        f"95 % interval {span.low:+.4g} to {span.high:+.4g} on {rows} rows"
    )
