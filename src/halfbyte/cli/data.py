"""`halfbyte data`: check, preview, stats, split, convert and pull."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from halfbyte.config import Config, load_config
from halfbyte.config.recipes import find
from halfbyte.errors import DataError, MissingError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from halfbyte.data.formats import FormatName
    from halfbyte.data.table import Table

FORMATS = ("messages", "sharegpt", "completion", "instruction", "text")
_RECIPES = (".yaml", ".yml")
_SOURCE = "[SOURCE] [KEY.SUB=VALUE]..."


def _settings(words: Sequence[str], skip_bad: bool = False) -> Config:
    """The settings of `[SOURCE or RECIPE] [key.sub=value …]`."""
    recipe, overrides = None, list(words)
    if words and ("=" not in words[0] or Path(words[0]).exists()):
        first = overrides.pop(0)
        if Path(first).suffix in _RECIPES:
            recipe = find(first)
        else:
            overrides.insert(0, f"data.train={json.dumps(first)}")
    if skip_bad:
        overrides.append("data.skip_bad=true")
    return load_config(recipe, overrides).config


def _tokenizer(config: Config) -> PreTrainedTokenizerBase:
    from halfbyte.model import bases

    return bases.load_tokenizer(bases.resolve(config.model.base, config.model.revision))


@click.group()
def data() -> None:
    """Check, preview, count, split, convert and fetch data.

    SOURCE is a JSON, JSONL, CSV or Parquet file, a folder, a hub data set id, builtin:NAME, or a
    recipe (.yaml) that names one. Settings may follow, as for `train`: data.max_length=1024
    model.base=tinyllama data.columns='{instruction: q, response: a}'.
    """


@data.command()
@click.argument("words", nargs=-1, metavar=_SOURCE)
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out and write them to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(words: tuple[str, ...], skip_bad: bool, as_json: bool) -> None:
    """Read and encode SOURCE as a training would; say what it holds, or every fault."""
    from halfbyte.cli.show import console
    from halfbyte.cli.show_data import show_report
    from halfbyte.data.prepare import prepare
    from halfbyte.model.bases import cache_dir

    config = _settings(words, skip_bad)
    out = console(stderr=as_json)
    try:
        tokenizer = _tokenizer(config)
    except MissingError as error:
        _check_without_base(config, out)
        out.print(f"note: lengths and template are not checked: {error.message}. {error.hint}")
        return
    report = prepare(config.data, tokenizer, cache_dir()).report
    if as_json:
        click.echo(report.to_json())
    else:
        show_report(out, report, config.data)


def _check_without_base(config: Config, out: Console) -> None:
    from halfbyte.cli.show import counted
    from halfbyte.data.table import read_table

    with read_table(config.data.train, config.data) as table:
        rows = counted(len(table), "row")
        left = _left_out(table)
        out.print(f"{config.data.train}: {rows}, {table.format}{left}", markup=False)


def _left_out(table: Table) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in table.bad.items())
    return f"; left out: {kinds}" if kinds else ""


@data.command()
@click.argument("words", nargs=-1, metavar=_SOURCE)
@click.option("--rows", default=3, show_default=True, help="How many rows.")
@click.option("--from", "start", default=1, show_default=True, help="The first of them.")
@click.option("--ids", is_flag=True, help="Print ids and labels too.")
def preview(words: tuple[str, ...], rows: int, start: int, ids: bool) -> None:
    """Show rows of SOURCE as the model sees them, with the trained tokens coloured."""
    from itertools import islice

    from halfbyte.cli.show import console
    from halfbyte.cli.show_data import show_row
    from halfbyte.data import Template
    from halfbyte.data.table import read_table

    config = _settings(words)
    template = Template.load(config.data.template, _tokenizer(config))
    out = console(stderr=False)
    with read_table(config.data.train, config.data, limit=start + rows - 1) as table:
        out.print(f"{table.format}; template {template.name}", style="dim")
        for place in islice(range(len(table)), start - 1, None):
            row = template.encode(table.example(place), config.data.train_on)
            show_row(out, table.where(place), row, template.tokens.tokenizer, ids=ids)


@data.command()
@click.argument("words", nargs=-1, metavar=_SOURCE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(words: tuple[str, ...], as_json: bool) -> None:
    """Count SOURCE: rows, tokens, lengths, what is trained, repeats."""
    from halfbyte.cli.show import console
    from halfbyte.cli.show_data import counts, show_counts
    from halfbyte.data.prepare import prepare
    from halfbyte.model.bases import cache_dir

    config = _settings(words)
    prepared = prepare(config.data, _tokenizer(config), cache_dir())
    if as_json:
        click.echo(json.dumps(counts(prepared), indent=1))
    else:
        show_counts(console(stderr=False), prepared)


@data.command()
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("--size", type=float, help="As data.valid_size: a fraction, or a number of rows.")
@click.option("--force", is_flag=True, help="Overwrite the files of an earlier split.")
def split(
    source: str, folder: Path, overrides: tuple[str, ...], size: float | None, force: bool
) -> None:
    """Split SOURCE by content into FOLDER/train.jsonl and FOLDER/valid.jsonl.

    Rows with the same prompt stay together, and the order of the rows does not matter.
    """
    from halfbyte.cli.show import counted
    from halfbyte.data.split import choose_held_out
    from halfbyte.data.table import read_table
    from halfbyte.data.writers import write_rows

    more = [] if size is None else [f"data.valid_size={size}"]
    config = _settings([source, *overrides, *more])
    targets = {part: folder / f"{part}.jsonl" for part in ("train", "valid")}
    _refuse_existing(targets.values(), force)
    with read_table(config.data.train, config.data) as table:
        out = choose_held_out(table.prompt_keys, config.data.valid_size)
        for part, chosen in (("train", ~out), ("valid", out)):
            places = chosen.nonzero()[0].tolist()
            write_rows(targets[part], partial(table.rows, table.format.name, places))
            click.echo(f"{targets[part]}: {counted(len(places), 'row')}")
        if table.bad:
            click.echo(f"{source}{_left_out(table)}")


@data.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")
@click.option("--to", "form", type=click.Choice(FORMATS), help="The format of the rows.")
@click.option("--force", is_flag=True, help="Overwrite TARGET.")
def convert(
    source: str, target: Path, overrides: tuple[str, ...], form: FormatName | None, force: bool
) -> None:
    """Write SOURCE as TARGET: .jsonl, .json, .csv or .parquet, by its suffix.

    The rows keep their format unless --to names another.
    """
    from halfbyte.cli.show import counted
    from halfbyte.data.table import read_table
    from halfbyte.data.writers import write_rows

    config = _settings([source, *overrides])
    _refuse_existing([target], force)
    with read_table(config.data.train, config.data) as table:
        chosen = form or table.format.name
        write_rows(target, partial(table.rows, chosen))
        click.echo(f"{target}: {counted(len(table), 'row')}, {chosen}{_left_out(table)}")


def _refuse_existing(paths: Iterable[Path], force: bool) -> None:
    there = [str(path) for path in paths if os.path.lexists(path)]  # asks no name to be short
    if there and not force:
        raise DataError(f"{', '.join(there)}: exists already", hint="--force overwrites.")


@data.command()
@click.argument("name")
@click.option("--revision", help="A branch, tag or commit.")
def pull(name: str, revision: str | None) -> None:
    """Fetch a hub data set (owner/name), so that it is found without a network."""
    from halfbyte.data.pull import pull as fetch

    click.echo(f"{name}: {fetch(name, revision)}")
