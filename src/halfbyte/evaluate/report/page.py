"""The report as one web page: no script, nothing loaded, readable on a phone, light and dark."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from halfbyte.evaluate.metric import Metric
from halfbyte.evaluate.report import svg
from halfbyte.evaluate.report.plain import flat
from halfbyte.evaluate.report.view import ReportInput, RowView, View
from halfbyte.evaluate.report.words import word_differences
from halfbyte.evaluate.table import TableRow, table_rows
from halfbyte.evaluate.verdict import show_difference, show_interval, show_value

_REACH: Final = 100.0  # points or percent: what lies beyond is drawn at the edge
_TILES: Final = ("perplexity", "retention_perplexity", "retention_contains", "stopped", "key_facts")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the score table with its plot."""

    cells: tuple[str, ...]
    group: str
    first: bool
    headline: bool
    outcome: str
    definition: str
    plot: Markup | None


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the top; the shares are widths of its two bars in percent."""

    title: str
    base: str
    tuned: str
    base_share: float
    tuned_share: float
    change: str
    interval: str
    outcome: str


def page(given: ReportInput, view: View) -> str:
    """The whole page as HTML text."""
    comparison = given.comparison
    main, _, others = comparison.verdict.sentence.partition("). ")
    lines = _lines(given)
    return _template().render(
        name=given.name,
        when=_when(given.created),
        comparison=comparison,
        sentence=main + (")." if others else ""),
        others=others,
        style=Markup(_read("style.css")),  # noqa: S704 - our own file
        main=view.main,
        view=view,
        tiles=_tiles(given),
        lines=lines,
        groups=_groups(view),
        findings=given.findings,
        loss=svg.loss_chart(given.train_loss, given.held_out_loss),
        lengths=svg.length_chart(view.lengths),
        confusions=[
            (who, svg.confusion_chart(matrix.labels, matrix.given, matrix.counts, who))
            for who, matrix in view.confusions
        ],
        row_groups=[
            ("Largest gains", view.best, True),
            ("Largest losses", view.worst, True),
            ("Random rows", view.random, not view.best),
        ],
        differences=word_differences,
        value=lambda value: _row_value(view.main, value),
        turn=lambda one: _turn(one, view.main),
        decoding=flat(given.decoding),
        data=flat(given.data),
        settings=flat(given.settings),
        receipt=flat(given.receipt),
    )


def _when(created: str) -> str:
    """An ISO time as people write it; anything else as it stands."""
    try:
        return f"{datetime.fromisoformat(created):%-d %B %Y, %H:%M %Z}".rstrip(", ")
    except ValueError:
        return created


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_read("page.html.j2"))


def _read(name: str) -> str:
    return files("halfbyte.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _lines(given: ReportInput) -> list[Line]:
    metrics = {metric.info.name: metric for metric in given.comparison.metrics}
    rows = table_rows(given.comparison)
    reach = _reach([metrics[row.name] for row in rows])
    lines = [
        _line(row, metrics[row.name], reach, headline=row.name == given.comparison.headline)
        for row in rows
    ]
    group = ""
    for place, line in enumerate(lines):
        lines[place] = replace(line, first=line.group != group and not line.headline)
        group = line.group if not line.headline else group
    return lines


def _line(row: TableRow, metric: Metric, reach: float, *, headline: bool) -> Line:
    plot = None
    ends = oriented(metric)
    if ends is not None and metric.info.better != "neither":
        plot = svg.interval(*ends, reach, row.outcome or "unclear")
    return Line(
        row.cells, metric.info.group, False, headline, row.outcome, metric.info.definition, plot
    )


def oriented(metric: Metric) -> tuple[float, float, float] | None:
    """(low, difference, high) with better to the right: in points for shares and points, else in
    percent of the base; None where that is not a number."""
    scale = {"share": 100.0, "points": 1.0}.get(metric.info.unit)
    if scale is None:
        if metric.base == 0:
            return None
        scale = 100.0 / abs(metric.base)
    ends = [scale * one for one in (metric.low, metric.difference, metric.high)]
    if not all(map(math.isfinite, ends)):
        return None
    if metric.info.better == "lower":
        ends = [-one for one in reversed(ends)]
    return ends[0], ends[1], ends[2]


def _reach(metrics: list[Metric]) -> float:
    ends = [oriented(metric) for metric in metrics if metric.info.better != "neither"]
    most = max((max(abs(end[0]), abs(end[2])) for end in ends if end), default=1.0)
    return min(_REACH, max(1.0, 1.05 * most))


def _tiles(given: ReportInput) -> list[Tile]:
    metrics = {metric.info.name: metric for metric in given.comparison.metrics}
    outcomes = {row.name: row.outcome for row in table_rows(given.comparison)}
    names = dict.fromkeys((given.comparison.headline, *_TILES))
    chosen = [metrics[name] for name in names if name in metrics][:4]
    return [_tile(metric, outcomes[metric.info.name]) for metric in chosen]


def _tile(metric: Metric, outcome: str) -> Tile:
    full = {"share": 1.0, "points": 100.0}.get(metric.info.unit) or max(metric.base, metric.tuned)
    shares = [_share(value, full) for value in (metric.base, metric.tuned)]
    return Tile(
        title=metric.info.name.replace("_", " "),
        base=show_value(metric, metric.base),
        tuned=show_value(metric, metric.tuned),
        base_share=shares[0],
        tuned_share=shares[1],
        change=show_difference(metric),
        interval=show_interval(metric),
        outcome=outcome,
    )


def _share(value: float, full: float) -> float:
    return round(100 * min(1.0, max(0.0, value / full)), 1) if full and math.isfinite(value) else 0


def _groups(view: View) -> list[dict[str, Any]]:
    full = 1.0 if view.main.info.unit == "share" else 100.0
    if view.main.info.unit in {"plain", "ratio"}:
        full = max((max(group.base, group.tuned) for group in view.groups), default=1.0)
    return [
        {
            "value": group.value,
            "rows": group.rows,
            "base": show_value(view.main, group.base),
            "tuned": show_value(view.main, group.tuned),
            "base_share": _share(group.base, full),
            "tuned_share": _share(group.tuned, full),
        }
        for group in view.groups
    ]


def _row_value(main: Metric, value: float) -> str:
    if math.isnan(value):
        return "–"
    if main.info.binary:
        return "right" if value else "wrong"
    return show_value(main, value)


def _turn(one: RowView, main: Metric) -> str:
    if math.isnan(one.base_value) or one.base_value == one.tuned_value:
        return ""
    up = one.tuned_value > one.base_value
    return "better" if up == (main.info.better == "higher") else "worse"
