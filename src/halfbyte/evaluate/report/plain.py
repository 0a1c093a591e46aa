"""The report's plain forms: Markdown, answers side by side, and JSON in lm-eval's result shape."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from halfbyte.evaluate.records import Column, Evaluation
from halfbyte.evaluate.report.view import ReportInput, RowView, View, answered_rows
from halfbyte.evaluate.scores import pooled
from halfbyte.evaluate.scores.registry import pool_of
from halfbyte.evaluate.statistics import Pair, influence_spread
from halfbyte.evaluate.table import HEADER, table_rows
from halfbyte.evaluate.verdict import show_value

_WIDTH: Final = 100


def markdown(given: ReportInput, view: View) -> str:
    """The report as Markdown: verdict, table, flips, data, settings."""
    comparison = given.comparison
    lines = [
        f"# {given.name}: {comparison.tuned} against {comparison.base}",
        "",
        f"**{comparison.verdict.sentence}**",
        "",
        f"{comparison.rows} held-out rows, {comparison.answered} of them answered. "
        f"Measured {given.created}.",
        "",
        *_table(given),
        "",
        _TABLE_NOTE,
        "",
        *_groups(view),
        *_findings(given),
        *_flips(view),
        *_tree("Data", given.data),
        *_tree("Decoding", given.decoding),
        *_tree("Settings", given.settings),
        *_tree("Receipt", given.receipt),
    ]
    return "\n".join(lines).rstrip() + "\n"


_TABLE_NOTE: Final = (
    "Intervals: paired bootstrap over rows, 95 %. p: McNemar's exact test for right/wrong scores, "
    "else the paired randomization test; Holm-corrected for all but the first row, which the "
    "verdict is about. + / − / =: rows where tuned is better, worse, equal."
)


def _table(given: ReportInput) -> list[str]:
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    for row in table_rows(given.comparison):
        cells = [_escape(cell) for cell in row.cells]
        if row.outcome:
            cells[0] = f"**{cells[0]}** ({row.outcome})"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _groups(view: View) -> list[str]:
    if not view.groups:
        return []
    lines = [
        f"## {view.main.info.name} by {view.groups[0].column}",
        "",
        f"| {view.groups[0].column} | rows | base | tuned |",
        "|---|---|---|---|",
    ]
    for group in view.groups:
        base, tuned = (show_value(view.main, value) for value in (group.base, group.tuned))
        lines.append(f"| {_escape(group.value)} | {group.rows} | {base} | {tuned} |")
    return [*lines, ""]


def _findings(given: ReportInput) -> list[str]:
    if not given.findings:
        return []
    lines = ["## Requirements", ""]
    for finding in given.findings:
        mark = "met" if finding.holds else "**not met**"
        lines.append(f"- `{finding.requirement.text}`: {mark} ({finding.evidence})")
    return [*lines, ""]


def _flips(view: View) -> list[str]:
    lines: list[str] = []
    for title, rows in (("Turned right", view.gained), ("Turned wrong", view.lost)):
        if rows:
            lines += [f"## {title}", ""]
            for one in rows:
                lines += [f"- row {one.row.index}: {_short(one.row.prompt)}"]
                lines += [f"  - base: {_short(one.base)}", f"  - tuned: {_short(one.tuned)}"]
            lines.append("")
    return lines


def _short(text: str, most: int = 200) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _tree(title: str, tree: Mapping[str, Any]) -> list[str]:
    entries = list(flat(tree))
    if not entries:
        return []
    return [f"## {title}", "", *(f"- {name}: {_short(value)}" for name, value in entries), ""]


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A tree as (dotted name, text) pairs; empty values left out."""
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value not in (None, "", (), []):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found.append((f"{prefix}{key}", text))
    return found


def side_by_side(given: ReportInput) -> str:
    """Every answered row with reference, base and tuned answer, wrapped for reading."""
    comparison = given.comparison
    head = [
        f"{given.name}: {comparison.tuned} against {comparison.base}",
        comparison.verdict.sentence,
        "",
    ]
    rows = [_block(one, comparison.headline) for one in answered_rows(given)]
    return "\n".join([*head, *rows])


def _block(one: RowView, headline: str) -> str:
    values = f"{headline}: base {one.base_value:.4g}, tuned {one.tuned_value:.4g}"
    parts = [("PROMPT", one.row.prompt)]
    if one.row.context:
        parts.append(("CONTEXT", one.row.context))
    parts += [
        ("REFERENCE", one.row.reference),
        ("BASE" + ("" if one.base_stopped else " (cut off)"), one.base),
        ("TUNED" + ("" if one.tuned_stopped else " (cut off)"), one.tuned),
    ]
    lines = [f"{'=' * 10} row {one.row.index} {'=' * 10}  {values}"]
    for name, text in parts:
        lines.append(f"--- {name}")
        for paragraph in text.splitlines() or [""]:
            lines += textwrap.wrap(paragraph, _WIDTH, break_long_words=False) or [""]
    return "\n".join([*lines, ""])


def lm_eval_results(given: ReportInput) -> dict[str, Any]:
    """Both models' scores in the shape of lm-eval's result files, the comparison beside them.

    Tasks are `held_out` and `retention`; keys read `score,none` and `score_stderr,none`, the
    filters being model names: `base` and `tuned`.
    """
    sets = {"held_out": (given.base, given.tuned)}
    if given.retention is not None:
        sets["retention"] = given.retention
    results: dict[str, Any] = {}
    for name, (base, tuned) in sets.items():
        task: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(base.rows)}
        for who, evaluation in (("base", base), ("tuned", tuned)):
            for score, column in evaluation.columns.items():
                task[f"{score},{who}"] = _finite(pooled(column))
                task[f"{score}_stderr,{who}"] = _finite(standard_error(column))
        results[name] = task
    return {
        "results": results,
        "group_subtasks": {name: [] for name in sets},
        "configs": {name: _config(name, given) for name in sets},
        "versions": dict.fromkeys(sets, 1),
        "n-shot": dict.fromkeys(sets, 0),
        "higher_is_better": {name: _directions(pair[0]) for name, pair in sets.items()},
        "n-samples": {name: _samples(pair[0]) for name, pair in sets.items()},
        "config": {
            "model": given.comparison.tuned,
            "model_args": {"base": given.comparison.base},
            "gen_kwargs": dict(given.decoding),
            "bootstrap_iters": given.comparison.resampling.resamples,
        },
        "date": given.created,
        "model_name": given.name,
        "halfbyte": {
            "comparison": given.comparison.to_json(),
            "requirements": [
                {"text": f.requirement.text, "holds": f.holds, "evidence": f.evidence}
                for f in given.findings
            ],
            "receipt": dict(given.receipt),
        },
    }


def standard_error(column: Column) -> float:
    """The jackknife standard error of one model's score: that of the mean for plain scores."""
    rows = column.stats[column.applies]
    nothing = np.zeros_like(rows)
    pair = Pair(nothing, rows, pool_of(column.info))
    spread = influence_spread(pair, lambda _, tuned: tuned)
    return spread / math.sqrt(len(rows)) if len(rows) else float("nan")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _config(name: str, given: ReportInput) -> dict[str, Any]:
    return {
        "task": name,
        "output_type": "generate_until",
        "generation_kwargs": dict(given.decoding),
        "num_fewshot": 0,
    }


def _directions(evaluation: Evaluation) -> dict[str, bool | None]:
    way = {"higher": True, "lower": False, "neither": None}
    return {name: way[column.info.better] for name, column in evaluation.columns.items()}


def _samples(evaluation: Evaluation) -> dict[str, int]:
    answered = sum(answer is not None for answer in evaluation.answers)
    return {"original": len(evaluation.rows), "effective": answered or len(evaluation.rows)}
