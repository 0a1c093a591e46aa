"""`halfbyte doctor`: what this machine is, has and can hold."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfbyte.cli.show import console, size
from halfbyte.importing import uncollected
from halfbyte.model.fast import alloc
from halfbyte.model.machine import Machine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not tables.")
def doctor(as_json: bool) -> None:
    """Say what this machine is, has and can hold."""
    alloc.set_up()  # as `halfbyte train` does, so that what is said holds for it
    from halfbyte.model.machine import fast_parts, inspect_machine

    with uncollected():  # most of what they do is to load
        machine = inspect_machine()
        parts = fast_parts(machine)
    if as_json:
        fast = [part._asdict() for part in parts]
        click.echo(json.dumps({**asdict(machine), "fast": fast}, indent=2))
        return
    out = console(stderr=False)
    _facts(out, machine)
    _bases(out, machine)
    out.print("\n[bold]fast path[/], for a Llama-shaped base with an adapter")
    for part in parts:
        mark = "[green]on [/]" if part.active else "[yellow]off[/]"
        out.print(f"  {mark} {part.name}: {escape(part.reason)}")


def _facts(out: Console, machine: Machine) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = [
        ("system", f"{machine.system}, Python {machine.python}"),
        ("processor", f"{machine.processor}, {machine.cores} cores, {machine.threads} threads"),
        ("instructions", ", ".join(machine.instructions) or "none that help"),
        ("memory", f"{size(machine.memory)}, {size(machine.memory_free)} free"),
        ("cache", f"{machine.cache}, {size(machine.disk_free)} free"),
    ]
    rows += [
        ("card", f"{one.name} ({one.capability}), {size(one.total)}, {size(one.free)} free")
        for one in machine.cards
    ] or [("card", "none that torch can see")]
    rows.append(("compute", machine.compute))
    rows.append(("installed", _pairs(machine.versions)))
    rows.append(("optional", _pairs(machine.optional)))
    for name, text in rows:
        table.add_row(name, escape(text))
    out.print(table)


def _pairs(table: dict[str, str]) -> str:
    return " · ".join(f"{name} {value}" for name, value in table.items())


def _bases(out: Console, machine: Machine) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), title="fits", title_justify="left")
    for name in ("base", "here", "lora", "qlora"):
        table.add_column(name)
    for base in machine.bases:
        table.add_row(base.name, *(_mark(yes) for yes in (base.here, base.lora, base.qlora)))
    out.print()
    out.print(table)


def _mark(yes: bool) -> str:
    return "[green]yes[/]" if yes else "[dim]no[/]"
