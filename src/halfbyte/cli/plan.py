"""`halfbyte plan`: what a training would take of memory, time and disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfbyte.cli.show import console, duration, size
from halfbyte.cli.training import read_recipe
from halfbyte.importing import uncollected

if TYPE_CHECKING:
    from halfbyte.api.planning import Plan

_PARTS = {
    "runtime": "Python and its libraries",
    "base": "base weights",
    "adapter": "adapter weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "logits": "logits",
    "working": "layer being computed, beyond them",
    "scattered": "gaps in freed memory",
}


@click.command()
@click.argument("recipe", nargs=-1, metavar="[RECIPE] [KEY.SUB=VALUE]...")
@click.option("--card", help="Plan for a GPU: T4, RTX3060, RTX4090, A100 or H100.")
@click.option(
    "--calibrate/--no-calibrate", default=True, help="Time this machine first, for ten seconds."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not tables.")
def plan(recipe: tuple[str, ...], card: str | None, calibrate: bool, as_json: bool) -> None:
    """Say what a training would take of memory, time and disk, before it takes it.

    Reads settings, config and tokenizer, never weights; bases of the catalogue need not be on this
    machine. RECIPE and KEY.SUB=VALUE are as for `halfbyte train`.
    """
    resolved = read_recipe(recipe)
    with uncollected():
        from halfbyte.api.planning import plan_training

    made = plan_training(resolved, card, timed=calibrate)
    if as_json:
        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    out = console(stderr=False)
    _facts(out, made)
    _memory(out, made)
    _fits(out, made)


def _facts(out: Console, made: Plan) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    share = made.trainable / max(1, made.parameters)
    for name, text in (
        ("base", f"{made.base} · {made.parameters:,} parameters"),
        ("method", f"{made.method} · {made.trainable:,} trainable ({share:.2%})"),
        ("compute", f"{made.compute} on {made.where}"),
        ("data", _data(made)),
        ("steps", _steps(made)),
        ("at once", _at_once(made)),
        ("time", _time(made)),
        (
            "disk",
            f"run with checkpoints {size(made.disk.run)} · merged {size(made.disk.merged)} · "
            f"exported as q8_0 {size(made.disk.exported)}",
        ),
    ):
        table.add_row(name, escape(text))
    out.print(table)


def _data(made: Plan) -> str:
    data = made.data
    if data.rows is None:
        return f"unknown: {data.note}"
    most = "" if data.exact else "at most "
    trained = "" if data.trained is None else f", {data.trained:,} trained"
    note = f" ({data.note})" if data.note else ""
    return (
        f"{data.rows:,} rows, {data.held_out:,} held out · {most}{data.tokens:,} tokens{trained} · "
        f"longest row {data.longest:,}{note}"
    )


def _steps(made: Plan) -> str:
    if made.steps is None:
        return "unknown without rows"
    each = "" if made.steps_per_epoch is None else f" ({made.steps_per_epoch:,} an epoch)"
    return f"{made.steps:,}{each}"


def _at_once(made: Plan) -> str:
    again = (
        f"{made.recomputed} of {made.layers} layers recomputed"
        if made.recomputed
        else "nothing recomputed"
    )
    return f"{made.tokens_at_once:,} tokens, {made.rows_at_once} rows at most · {again}"


def _time(made: Plan) -> str:
    if made.step_seconds is None:
        return "not measured"
    kind = "estimated from published figures" if made.estimated else "measured here just now"
    whole = "" if made.seconds is None else f"{duration(made.seconds)} · "
    return f"{whole}{duration(made.step_seconds)} a step ({kind}; without evaluation)"


def _memory(out: Console, made: Plan) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="memory", title_justify="left")
    table.add_column("for")
    table.add_column("bytes", justify="right")
    for name, words in _PARTS.items():
        count = getattr(made.memory, name)
        if count:
            table.add_row(words, size(count))
    table.add_row("[bold]peak[/]", f"[bold]{size(made.peak)}[/]")
    out.print()
    out.print(table)
    if made.over:
        out.print(escape(made.over), style="yellow")


def _fits(out: Console, made: Plan) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="fits", title_justify="left")
    table.add_column("memory", justify="right")
    table.add_column("")
    table.add_column("with this change", overflow="fold")
    for one in made.fits:
        mark = "[green]yes[/]" if one.fits else "[yellow]no[/]"
        change = "" if one.fits else (one.change or "nothing in the catalogue fits")
        table.add_row(f"{one.gigabytes} GB", mark, escape(change))
    out.print()
    out.print(table)
