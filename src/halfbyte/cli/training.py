"""`halfbyte train` and `halfbyte resume`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.heavy import before_torch
from halfbyte.config import Resolved, load_config
from halfbyte.config.recipes import find

if TYPE_CHECKING:
    from halfbyte.api import Training


def read_recipe(words: tuple[str, ...]) -> Resolved:
    """The settings of `[RECIPE] [key.sub=value …]`; a recipe is the first word without `=`."""
    recipe = find(words[0]) if words and ("=" not in words[0] or Path(words[0]).exists()) else None
    return load_config(recipe, words[1:] if recipe else words)


@click.command()
@click.argument("recipe", nargs=-1, metavar="[RECIPE] [KEY.SUB=VALUE]...")
@click.option("--compare", is_flag=True, help="Then compare with the base and write the report.")
@click.option("--quiet", is_flag=True, help="Only say where the run is.")
@click.pass_context
def train(context: click.Context, recipe: tuple[str, ...], compare: bool, quiet: bool) -> None:
    """Fine-tune a base.

    RECIPE is a YAML file or the name of one that comes with halfbyte (`halfbyte recipes`);
    settings given as KEY.SUB=VALUE win over it (`halfbyte config` lists them all).
    """
    resolved = read_recipe(recipe)
    before_torch()
    from halfbyte import api

    training = api.prepare_training(resolved)
    _follow(training, quiet)
    if compare and training.main:
        path = str(training.run.path)
        del training  # frees the model: comparing loads it as any later command would
        from halfbyte.cli.evaluate import compare as comparing

        context.invoke(comparing, names=(path,), runs=resolved.config.runs)


@click.command()
@click.argument("run")
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
@click.option("--force", is_flag=True, help="Go on although data, base or settings changed.")
@click.option("--quiet", is_flag=True, help="Only say where the run is.")
def resume(run: str, runs: str, force: bool, quiet: bool) -> None:
    """Go on with a stopped RUN from its newest checkpoint (`latest`: the newest run).

    It takes no settings: they are those in RUN/config.yaml. To train longer or otherwise, change
    them there and resume with --force; the receipt then says what was changed. Where runs are, how
    often they save and how much is computed at once may change without it.
    """
    before_torch()
    from halfbyte import api

    _follow(api.prepare_resume(run, runs, force=force), quiet)


def _follow(training: Training, quiet: bool) -> None:
    from halfbyte.cli.show import console, show_finish, show_summary
    from halfbyte.model.fast import status
    from halfbyte.train import ConsoleProgress

    if not training.main:
        for _ in training.events():
            pass
        return
    out = console(quiet)
    model: Any = training.state.bare.model
    show_summary(out, training.summary, training.run, status(model))
    with closing(ConsoleProgress(out)) as show:
        for event in training.events():
            show(event)
    show_finish(out, training)
    if quiet:
        click.echo(training.run.path)
