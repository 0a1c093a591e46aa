"""`halfbyte recipes` and `halfbyte config`: what can be set, and what a recipe amounts to."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from halfbyte.config import Config, load_config, write_config
from halfbyte.config.load import setting_rows
from halfbyte.config.recipes import find, headline, shipped


@click.command()
def recipes() -> None:
    """List the recipes that come with halfbyte."""
    table = Table("recipe", "what it is for", box=None)
    for name, path in shipped():
        table.add_row(name, headline(path))
    Console().print(table)


@click.command()
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a recipe.")
def config(recipe: str | None, overrides: tuple[str, ...], schema: bool) -> None:
    """List every setting; with a RECIPE (and key.sub=value OVERRIDES), show what it resolves to."""
    if schema:
        click.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    if recipe is None:
        table = Table("setting", "default", "what it does", box=None)
        for name, default, text in setting_rows():
            table.add_row(name, default, text)
        Console().print(table)
        return
    resolved = load_config(find(recipe), overrides)
    click.echo(write_config(resolved.config), nl=False)
    for name, where in resolved.origin.items():
        click.echo(f"# {name}: from {where}")
