"""The compare table as plain rows of text: the console, Markdown and the report print the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from halfbyte.evaluate.compare import Comparison
from halfbyte.evaluate.metric import Metric
from halfbyte.evaluate.statistics import holm
from halfbyte.evaluate.verdict import ALPHA, show_difference, show_interval, show_value

HEADER: Final = ("score", "base", "tuned", "difference", "95 % interval", "p (Holm)", "+ / − / =")

JOINT_HEADER: Final = ("run", "base", "tuned", "difference", "95 % interval", "p (Holm)")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One metric: its `cells` fit HEADER; `outcome` is better, worse, or empty where not shown."""

    name: str
    group: str
    cells: tuple[str, ...]
    outcome: str


def table_rows(comparison: Comparison) -> list[TableRow]:
    """All metrics, the headline first, the rest in the order of their groups."""
    groups = list(dict.fromkeys(metric.info.group for metric in comparison.metrics))
    metrics = sorted(
        comparison.metrics,
        key=lambda m: (m.info.name != comparison.headline, groups.index(m.info.group)),
    )
    return [_row(metric, comparison.headline) for metric in metrics]


def _row(metric: Metric, headline: str) -> TableRow:
    main = metric.info.name == headline
    p = metric.p if main else metric.p_holm
    cells = (
        metric.info.name,
        show_value(metric, metric.base),
        show_value(metric, metric.tuned),
        show_difference(metric),
        show_interval(metric),
        "" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}"),
        f"{metric.wins} / {metric.losses} / {metric.ties}"
        if metric.info.better != "neither"
        else "",
    )
    shown = p is not None and p < ALPHA and (metric.low > 0 or metric.high < 0)
    outcome = ("better" if metric.improved else "worse") if shown else ""
    return TableRow(metric.info.name, metric.info.group, cells, outcome)


def joint_rows(comparisons: Sequence[Comparison]) -> list[TableRow]:
    """Several runs on the same rows: each one's headline score, perplexity and general
    perplexity against its base. Each score's p is corrected by Holm over the runs."""
    found = []
    names = (comparisons[0].headline, "perplexity", "retention_perplexity")
    for name in dict.fromkeys(names):
        pairs = [
            (one.tuned, metric)
            for one in comparisons
            for metric in one.metrics
            if metric.info.name == name
        ]
        corrected = holm([metric.p for _, metric in pairs])
        for (run, metric), p in zip(pairs, corrected, strict=True):
            row = _row(replace(metric, p_holm=p), "")
            found.append(TableRow(name, row.group, (run, *row.cells[1:6]), row.outcome))
    return found
