"""The verdict: one outcome and one sentence, both following from the statistics by rule.

The headline score is chosen from the rows before any answer is seen, so it is tested on its own at
5 %. Every other score is reported as better or worse only if it stays significant after Holm's
correction over all judged scores. "Better" and "worse" need both: p below 0.05 and a 95 % interval
that leaves out zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from halfbyte.evaluate.metric import Metric

ALPHA: Final = 0.05
Outcome = Literal["better", "worse", "no difference shown", "no difference"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`outcome` is about the headline score; `gains` and `losses` name the other scores that
    differ after correction; `sentence` says all of it."""

    outcome: Outcome
    sentence: str
    gains: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()


def give_verdict(
    metrics: Sequence[Metric], headline: str, *, identical: bool, note: str = ""
) -> Verdict:
    """The verdict on these metrics, of which `headline` names one; `note` is said beside it."""
    main = next(metric for metric in metrics if metric.info.name == headline)
    if identical:
        return Verdict(
            "no difference",
            f"No difference: the two gave the same answers and scores on all {main.rows} rows.",
        )
    shown = [m for m in metrics if m is not main and _shown(m, m.p_holm)]
    gains = tuple(metric.info.name for metric in shown if metric.improved)
    losses = tuple(metric.info.name for metric in shown if not metric.improved)
    outcome: Outcome = "no difference shown"
    if _shown(main, main.p):
        outcome = "better" if main.improved else "worse"
    sentence = _headline_sentence(main, outcome) + note + _others(gains, losses)
    return Verdict(outcome, sentence, gains, losses)


def _shown(metric: Metric, p: float | None) -> bool:
    judged = metric.info.better != "neither" and p is not None and p < ALPHA
    return judged and (metric.low > 0 or metric.high < 0)


def _headline_sentence(metric: Metric, outcome: Outcome) -> str:
    name, rows = metric.info.name, f"{metric.rows} rows"
    levels = f"{show_value(metric, metric.base)} → {show_value(metric, metric.tuned)}"
    if outcome in {"better", "worse"}:
        return (
            f"{outcome.capitalize()}: {name} {levels} on {rows}, "
            f"{show_difference(metric)} (95 % interval {show_interval(metric)}, "
            f"p {show_p(metric.p)})."
        )
    need = ""
    if metric.needed is not None and metric.needed > metric.rows:
        need = f"; about {round_up(metric.needed)} would be needed to see {show_needed(metric)}"
    elif metric.needed is not None:
        need = f", which would have shown {show_needed(metric)} four times in five"
    return (
        f"No difference shown with {rows}{need}: {name} {levels} "
        f"({show_difference(metric)}, 95 % interval {show_interval(metric)})."
    )


def _others(gains: Sequence[str], losses: Sequence[str]) -> str:
    text = ""
    if gains:
        text += f" Better after correction for many scores: {_some(gains)}."
    if losses:
        text += f" Worse after correction: {', '.join(losses)}."
    return text


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def show_value(metric: Metric, value: float) -> str:
    """A score as people read it: shares in percent."""
    if metric.info.unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if metric.info.unit == "points" else show_number(value)


def show_number(value: float) -> str:
    """Three digits, and never as a power of ten where a person would write the number."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show_difference(metric: Metric) -> str:
    """The difference with its sign: shares in points, perplexity as a ratio."""
    if metric.info.unit in {"share", "points"}:
        scale = 100 if metric.info.unit == "share" else 1
        return f"{scale * metric.difference:+.1f} points"
    if metric.info.name.endswith("perplexity") and metric.ratio is not None:
        return f"× {show_number(metric.ratio)}"
    return f"{metric.difference:+.3g}"


def show_interval(metric: Metric) -> str:
    """The interval of what `show_difference` shows."""
    if metric.info.unit in {"share", "points"}:
        scale = 100 if metric.info.unit == "share" else 1
        return f"{scale * metric.low:+.1f} to {scale * metric.high:+.1f}"
    if metric.info.name.endswith("perplexity") and metric.ratio_low is not None:
        assert metric.ratio_high is not None
        return f"× {show_number(metric.ratio_low)} to {show_number(metric.ratio_high)}"
    return f"{metric.low:+.3g} to {metric.high:+.3g}"


def show_needed(metric: Metric) -> str:
    """The difference the power statement is about."""
    if metric.info.unit == "share":
        return f"{100 * metric.needed_for:.0f} points"
    if metric.info.unit == "points":
        return f"{metric.needed_for:.0f} points"
    return "5 %"


def show_p(p: float) -> str:
    """A p-value for reading."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def round_up(rows: int) -> int:
    """Rows to two leading digits, upwards: a power figure is a rough one."""
    step = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // step) * step
