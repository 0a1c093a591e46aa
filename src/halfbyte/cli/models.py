"""`halfbyte models`: list, fetch and quantize bases."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.table import Table

from halfbyte.model.bases import is_here
from halfbyte.model.catalogue import CATALOGUE, Entry

_COUNTED = (
    "16-bit, 4-bit: the weights alone, 4-bit as nf4 with double quantization. In memory layers "
    "below a million weights take 3 bytes more for 64 of them: `halfbyte plan` counts that."
)


@click.group()
def models() -> None:
    """List, fetch and quantize bases."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
def list_models(as_json: bool) -> None:
    """List the bases known by name; any hub id, folder or .gguf file will do too."""
    rows = [(entry, is_here(entry)) for entry in CATALOGUE]
    if as_json:
        click.echo(json.dumps([_as_json(entry, here) for entry, here in rows], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("weights", "16-bit", "4-bit"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("here", "licence", "about"):
        table.add_column(name)
    for entry, here in rows:
        table.add_row(
            entry.name,
            _count(entry.parameters),
            _size(entry.weight_bytes()),
            _size(entry.quantized_bytes()),
            "[green]yes[/]" if here else "[dim]no[/]",
            entry.licence + (" (gated)" if entry.gated else ""),
            entry.about,
        )
    out = Console()
    out.print(table)
    out.print(_COUNTED, style="dim")


@models.command("pull")
@click.argument("name")
@click.option("--revision", help="A branch, tag or commit of a hub id.")
def pull_model(name: str, revision: str | None) -> None:
    """Fetch a base, by name or hub id, so that it works without a network."""
    from halfbyte.model.pull import pull

    base = pull(name, revision)
    size = sum(path.stat().st_size for path in base.weights)
    at = f" at {base.revision}" if base.revision else ""
    click.echo(f"{base.name}{at}: {_size(size)} in {base.folder}")


@models.command("quantize")
@click.argument("name")
@click.option("--revision", help="A branch, tag or commit of a hub id.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["nf4", "fp4", "int8"]),
    default="nf4",
    show_default=True,
    help="As model.quantization.",
)
@click.option(
    "--compute",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="As model.compute: the form serves runs that compute in this type.",
)
@click.option(
    "--double/--no-double", default=True, show_default=True, help="As model.double_quant."
)
def quantize_model(
    name: str,
    revision: str | None,
    kind: Literal["nf4", "fp4", "int8"],
    compute: Literal["auto", "bf16", "fp16", "fp32"],
    double: bool,
) -> None:
    """Keep a base's quantized form in the cache, so that the next start takes seconds."""
    from halfbyte.config import Config, ModelSettings
    from halfbyte.model.assemble import form_of
    from halfbyte.model.bases import resolve
    from halfbyte.model.kept import keep

    base = resolve(name, revision)
    settings = ModelSettings(
        base=name, revision=revision, compute=compute, quantization=kind, double_quant=double
    )
    form = form_of(Config(method="qlora", model=settings))
    start = time.monotonic()
    folder = keep(base, form)
    before, after = _bytes(base.folder), _bytes(folder)
    click.echo(
        f"{base.name}: {_size(before)} → {_size(after)} ({kind}, computing in "
        f"{form.compute.name}) in {time.monotonic() - start:.0f} s\n{folder}"
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _as_json(entry: Entry, here: bool) -> dict[str, object]:
    return {
        "name": entry.name,
        "hub": entry.hub,
        "parameters": entry.parameters,
        "bytes_16bit": entry.weight_bytes(),
        "bytes_4bit": entry.quantized_bytes(),
        "here": here,
        "licence": entry.licence,
        "gated": entry.gated,
        "about": entry.about,
    }


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
