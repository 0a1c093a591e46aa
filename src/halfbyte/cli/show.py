"""What a training says before it starts and after it ends, as tables."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfbyte.run import folder_bytes

if TYPE_CHECKING:
    from halfbyte.api import Summary, Training
    from halfbyte.data.report import Report, SetReport
    from halfbyte.model.fast.parts import Part
    from halfbyte.run import RunFolder


def console(quiet: bool = False, *, stderr: bool = True) -> Console:
    """Where people are talked to: stderr, so that stdout stays for results; nowhere if quiet."""
    if quiet:
        return Console(file=io.StringIO())
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # without a terminal, lines are for a log or a file: no wrapping at 80 columns
    return Console(stderr=stderr, width=None if terminal else 140)


def size(count: float) -> str:
    """Bytes for people: 1 MB is 1,000,000 bytes."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time for people: 0.42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def show_summary(
    out: Console, summary: Summary, run: RunFolder, parts: Sequence[Part] = ()
) -> None:
    """Base, method, memory, data, steps and fast path of the training that is about to start."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in (*_model_rows(summary), *_data_rows(summary.data.report)):
        table.add_row(name, escape(text))
    train, limits = summary.config.train, summary.limits
    table.add_row(
        "steps",
        f"{summary.steps:,} of {train.batch_size} rows ({summary.steps_per_epoch:,} an epoch), "
        f"at most {limits.rows} rows and {limits.tokens:,} tokens at once",
    )
    arrangement = summary.arrangement
    table.add_row(
        "memory",
        f"about {size(arrangement.peak)} at the peak, {arrangement.recomputed} of "
        f"{summary.blocks} layers recomputed",
    )
    table.add_row("rate", f"{summary.config.learning_rate:g}, {train.schedule}")
    for name, text in _fast_rows(parts, summary):
        table.add_row(name, escape(text))
    table.add_row("run", str(run.path))
    out.print(table)
    for note in (*summary.notes, *summary.data.report.notes):
        out.print(f"note: {escape(note)}", style="yellow")


def _model_rows(summary: Summary) -> list[tuple[str, str]]:
    model, config, form = summary.model, summary.config, summary.form
    held = form.quantization or str(form.weights).removeprefix("torch.")
    rows = [
        ("base", f"{summary.base.name} · {model.parameters:,} parameters"),
        ("compute", f"{form.compute.name} on {form.device} ({form.compute.reason})"),
    ]
    if form.quantization:
        before, after = size(model.base_bytes_16bit), size(model.base_bytes)
        rows.append(("weights", f"{held}: {before} in 16 bits → {after}"))
    else:
        rows.append(("weights", f"{held}: {size(model.base_bytes)}"))
    share = f"{model.trainable:,} trainable ({model.share:.2%})"
    if config.method == "full":
        rows.append(("method", f"full · {share}"))
    else:
        rows.append(
            (
                "method",
                f"{config.method} · rank {config.lora.rank} on {_targets(config.lora.targets)} · "
                f"{share} · adapter {size(model.adapter_bytes)}",
            )
        )
    return rows


def _fast_rows(parts: Sequence[Part], summary: Summary) -> Iterator[tuple[str, str]]:
    """What of the fast path this training takes, and what not and why: by model and by setting."""
    switched_off = {
        "packing": ("train.pack=false", summary.limits.pack),
        "shared prefixes": ("train.share_prefixes=false", summary.limits.share),
    }
    on, off = [], []
    for part in parts:
        setting, taken = switched_off.get(part.name, ("", True))
        if part.active and taken:
            on.append(part.name)
        else:
            off.append(f"{part.name}: {part.reason if not part.active else setting}")
    if on:
        yield "fast path", ", ".join(on)
    if off:
        yield "not taken", "; ".join(off)


def _targets(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _data_rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("data", _set(report.train)),
        ("held out", _set(report.valid)),
        ("format", f"{report.train.format} · template {report.template}"),
    ]
    lost = report.train.losses
    if lost.rows_dropped or lost.rows_cut:
        rows.append(
            (
                "too long",
                f"{lost.rows_dropped:,} rows left out ({lost.tokens_dropped:,} tokens), "
                f"{lost.rows_cut:,} prompts cut ({lost.tokens_cut:,} tokens)",
            )
        )
    if report.bad:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.bad.items())
        rows.append(("bad rows", f"left out: {kinds} (see {report.rejects})"))
    if report.duplicates:
        found = report.duplicates
        rows.append(("repeated", f"{found.exact:,} rows exactly, {found.near:,} nearly"))
    if report.leakage:
        found = report.leakage
        first = f", first {found.first[0].row} = {found.first[0].other}" if found.first else ""
        rows.append(
            (
                "leakage",
                f"{found.exact:,} training rows stand in the held-out rows, {found.near:,} nearly; "
                f"{report.leaks_dropped:,} left out{first}",
            )
        )
    return rows


def _set(one: SetReport) -> str:
    lengths = one.lengths
    return (
        f"{one.source} · {one.rows:,} rows · {one.tokens:,} tokens, {one.trained_tokens:,} trained"
        f" · length {lengths['median']} (median) to {lengths['max']}"
    )


def show_finish(out: Console, training: Training) -> None:
    """Where the result is and what to do next."""
    run = training.run
    result = run.model if training.summary.config.method == "full" else run.adapter
    out.print(f"result   {result} ({size(folder_bytes(result))})")
    out.print(f"plot     {run.loss_plot}")
    out.print(f"next     halfbyte compare {run.path}", style="bold")
