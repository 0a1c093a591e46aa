"""`halfbyte runs`: list, show and remove run folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import click
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from halfbyte.cli.show import console
from halfbyte.run import RunDetails, RunFolder, RunSummary, describe, summarize

_STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow", "stopped": "red"}
_WIDE: Final = 100  # columns of a terminal; in fewer, a list leaves to `runs show` what it can
_LEFT_OUT: Final = ("method", "base", "loss")
_runs_option = click.option(
    "--runs", "where", default="runs", show_default=True, help="The folder that holds the runs."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")


@click.group()
def runs() -> None:
    """List, show and remove runs."""


@runs.command("list")
@_runs_option
@_json_option
def list_runs(where: str, as_json: bool) -> None:
    """List the runs, oldest first."""
    found = [summarize(run) for run in RunFolder.all(where)]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        click.echo(f"No run under {where}/ yet; `halfbyte train` makes one.")
        return
    out = console(stderr=False)
    out.print(_listed([_row(one) for one in found], narrow=out.width < _WIDE))


@runs.command("show")
@click.argument("run")
@_runs_option
@_json_option
def show_run(run: str, where: str, as_json: bool) -> None:
    """Show one RUN (`latest`: the newest): its state, evaluations, checkpoints and origin."""
    details = describe(RunFolder.find(run, where))
    if as_json:
        click.echo(json.dumps(asdict(details), indent=2))
        return
    out = console(stderr=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    for name, value in (*_summary_facts(details.summary), *_receipt_facts(details)):
        facts.add_row(name, escape(value))
    out.print(facts)
    for table in (_evaluations(details), _checkpoints(details), _contents(details)):
        if table.row_count:
            out.print()
            out.print(table)


@runs.command("remove")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@_runs_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove_runs(names: tuple[str, ...], where: str, yes: bool) -> None:
    """Delete one or more runs (names or paths) with all they hold. Asks first."""
    # all are known before one goes; `latest` names none: what is deleted is said in full
    folders = [RunFolder.open(name, where) for name in names]
    for folder in folders:
        size = _size(summarize(folder).bytes)
        if not yes:
            click.confirm(f"Delete {folder.path} ({size})?", abort=True)
        folder.remove()
        click.echo(f"Deleted {folder.path} ({size}).")


def _row(one: RunSummary) -> dict[str, str]:
    return {
        "run": escape(one.name),
        "status": f"[{_STYLES.get(one.status, 'dim')}]{one.status}[/]",
        "method": one.method,
        "base": escape(one.base),
        "step": f"{one.step}/{one.steps or '?'}",
        "loss": _number(one.loss),
        "held-out": _number(one.held_out),
        "size": _size(one.bytes),
        "created": one.created[:16].replace("T", " "),
    }


def _listed(rows: list[dict[str, str]], *, narrow: bool) -> Table:
    """One line a run; where there is no room, names go on in the next line, figures never."""
    table = Table(box=None, pad_edge=False)
    names = [name for name in rows[0] if not (narrow and name in _LEFT_OUT)]
    for name in names:
        figures = name in ("step", "loss", "held-out", "size")
        folds = name in ("run", "base")
        justify: JustifyMethod = "right" if figures else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not folds)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _summary_facts(one: RunSummary) -> Iterator[tuple[str, str]]:
    yield "run", one.name
    yield "folder", one.path
    yield "status", one.status
    yield "method", f"{one.method} on {one.base}"
    yield "step", f"{one.step} of {one.steps or '?'}"
    yield "last loss", _number(one.loss)
    if one.best_step is not None:
        yield "best held-out loss", f"{_number(one.held_out)} at step {one.best_step}"
    yield "size", _size(one.bytes)
    yield "created", one.created


def _receipt_facts(details: RunDetails) -> Iterator[tuple[str, str]]:
    receipt = details.receipt
    if receipt is None:
        return
    if receipt["revision"]:
        yield "revision", str(receipt["revision"])
    yield "seed", str(receipt["seed"])
    yield "device", f"{receipt['device']}, {receipt['threads']} threads"
    for part, digest in receipt["data"].items():
        if digest:  # empty: no file of its own played this part
            yield f"{part} data", f"sha256 {digest[:16]}…"
    yield "versions", ", ".join(f"{name} {text}" for name, text in receipt["versions"].items())
    for one in receipt["resumed"]:
        forced = f", forced over: {'; '.join(one['differences'])}" if one["forced"] else ""
        yield "resumed", f"{one['time']} from step {one['step']}{forced}"


def _evaluations(details: RunDetails) -> Table:
    table = Table("step", "held-out loss", "perplexity", "", title="Evaluations", box=None)
    for one in details.evaluations:
        best = one["step"] == details.summary.best_step
        loss, perplexity = _number(one.get("loss")), _number(one.get("perplexity"), 3)
        table.add_row(str(one["step"]), loss, perplexity, "best" if best else "")
    for one in details.skipped:
        table.add_row(str(one["step"]), "[yellow]skipped[/]", "", escape(str(one.get("reason"))))
    return table


def _checkpoints(details: RunDetails) -> Table:
    table = Table("step", "size", "path", "", title="Checkpoints", box=None)
    for one in details.checkpoints:
        best = "best" if one["best"] else ""
        table.add_row(str(one["step"]), _size(one["bytes"]), escape(one["path"]), best)
    return table


def _contents(details: RunDetails) -> Table:
    table = Table("file", "size", title="Also in the folder", box=None)
    for name, size in details.contents.items():
        table.add_row(escape(name), _size(size))
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _size(count: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"
