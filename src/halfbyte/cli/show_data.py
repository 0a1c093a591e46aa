"""What is said about data: reports as tables, rows with their trained tokens coloured."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from halfbyte.cli.show import counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from halfbyte.config import DataSettings
    from halfbyte.data import Encoded, EncodedSet, Prepared
    from halfbyte.data.report import Repeats, Report, SetReport

_TRAINED = "bold green"
_BARS = 12  # lines of the histogram


def show_report(out: Console, report: Report, settings: DataSettings) -> None:
    """A report of prepared data, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, one in (("training", report.train), ("held out", report.valid)):
        table.add_row(name, escape(_set_words(one)))
        table.add_row("", escape(_length_words(one, settings)))
    table.add_row("format", escape(report.train.format))
    table.add_row("template", escape(report.template))
    table.add_row("repeats", _repeat_words(report.duplicates, "training rows repeat earlier ones"))
    table.add_row("leakage", _repeat_words(report.leakage, "training rows stand in the held-out"))
    if report.leaks_dropped:
        table.add_row("", f"{report.leaks_dropped:,} of them left out")
    for kind, count in report.bad.items():
        table.add_row("left out", escape(f"{count:,} {kind}"))
    if report.rejects:
        table.add_row("rejects", escape(report.rejects))
    out.print(table)
    for title, repeats in (("repeats", report.duplicates), ("leakage", report.leakage)):
        for match in repeats.first:
            how = f"{match.alike:.0%} alike" if match.alike else "the same prompt"
            out.print(
                f"  {title}: {match.row} and {match.other}: {how}", style="yellow", markup=False
            )
    for note in report.notes:
        out.print(f"note: {note}", style="yellow", markup=False)


def _set_words(one: SetReport) -> str:
    share = one.trained_tokens / max(one.tokens, 1)
    return (
        f"{counted(one.rows, 'row')} from {one.source}: {counted(one.tokens, 'token')}, "
        f"{one.trained_tokens:,} trained ({share:.0%})"
    )


def _length_words(one: SetReport, settings: DataSettings) -> str:
    lengths = ", ".join(f"{name} {value:,}" for name, value in one.lengths.items())
    losses = one.losses
    lost = []
    if losses.rows_dropped:
        lost.append(
            f"{counted(losses.rows_dropped, 'row')} ({losses.tokens_dropped:,} tokens) left out"
        )
    if losses.rows_cut:
        lost.append(
            f"{counted(losses.rows_cut, 'prompt')} cut ({losses.tokens_cut:,} tokens, "
            f"{losses.trained_cut:,} of them trained)"
        )
    above = f"; above {settings.max_length:,}: {', '.join(lost)}" if lost else ""
    return f"lengths {lengths}{above}"


def _repeat_words(repeats: Repeats, what: str) -> str:
    if not repeats:
        return "none"
    return (
        f"{repeats.exact:,} exactly, {repeats.near:,} nearly, {repeats.same_prompt:,} with the "
        f"same prompt only: {what}"
    )


def show_row(
    out: Console,
    where: str,
    row: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ids: bool = False,
) -> None:
    """A row as the model sees it; without colours the trained parts stand in ⟦ ⟧."""
    trained = int(row.trained.sum())
    out.rule(f"{escape(where)}: {len(row):,} tokens, {trained:,} trained", align="left")
    text = Text()
    for start, stop in _runs(row.trained):
        part = str(tokenizer.decode(row.ids[start:stop]))
        if not row.trained[start]:
            text.append(part)
        elif out.is_terminal and not out.no_color:
            text.append(part, style=_TRAINED)
        else:
            text.append(f"⟦{part}⟧")
    out.print(text, soft_wrap=True)
    if ids:
        labels = np.where(row.trained, row.ids, -100)
        out.print(Text(f"ids     {row.ids.tolist()}"), soft_wrap=True)
        out.print(Text(f"labels  {labels.tolist()}"), soft_wrap=True)


def _runs(trained: np.ndarray[Any, np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(trained)) + 1
    bounds = [0, *edges.tolist(), len(trained)]
    return list(pairwise(bounds))


def counts(prepared: Prepared) -> dict[str, Any]:
    """The counts of prepared data as plain values."""
    found: dict[str, Any] = {}
    for name, rows in (("train", prepared.train), ("valid", prepared.valid)):
        edges, heights = _histogram(rows)
        found[name] = {
            "rows": len(rows),
            "tokens": int(rows.lengths.sum(dtype=np.int64)),
            "trained_tokens": int(rows.trained_tokens.sum(dtype=np.int64)),
            "prompts": len(np.unique(rows.keys)),
            "lengths": {"edges": edges, "rows": heights},
        }
    return found


def _histogram(rows: EncodedSet) -> tuple[list[int], list[int]]:
    shortest, longest = int(rows.lengths.min()), int(rows.lengths.max())
    edges = np.unique(np.linspace(shortest, longest + 1, _BARS + 1).astype(int))
    heights, _ = np.histogram(rows.lengths, edges)
    return edges.tolist(), heights.tolist()


def show_counts(out: Console, prepared: Prepared) -> None:
    """The counts of prepared data, with a histogram of lengths."""
    for name, one in counts(prepared).items():
        share = one["trained_tokens"] / max(one["tokens"], 1)
        out.print(
            f"[bold]{name}[/]  {counted(one['rows'], 'row')}, {counted(one['prompts'], 'prompt')}, "
            f"{one['tokens']:,} tokens, {one['trained_tokens']:,} trained ({share:.0%})"
        )
        edges, heights = one["lengths"]["edges"], one["lengths"]["rows"]
        for (left, right), height in zip(pairwise(edges), heights, strict=True):
            bar = "█" * round(40 * height / max(heights))
            out.print(f"  {left:>6,} to {right - 1:>6,}  {bar} {height:,}", highlight=False)
