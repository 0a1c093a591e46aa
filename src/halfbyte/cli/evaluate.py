"""`halfbyte eval`, `compare` and `report`: scores, evidence, and a page to show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from halfbyte.cli.heavy import before_torch
from halfbyte.cli.show import console

if TYPE_CHECKING:
    from rich.console import Console

    from halfbyte.api import Asked, Compared
    from halfbyte.evaluate.compare import Comparison

_STYLES = {"better": "green", "worse": "red", "": ""}


def _shared(command: Any) -> Any:
    """The options that eval and compare have in common."""
    options = (
        click.option("--data", help="A file with held-out rows (default: the run's own)."),
        click.option("--rows", type=int, help="How many rows are answered."),
        click.option("--max-new-tokens", type=int, help="Longest answer, in tokens."),
        click.option("--retention/--no-retention", default=None, help="General rows too."),
        click.option("--step", type=int, help="A checkpoint's step instead of the result."),
        click.option("--runs", default="runs", show_default=True, help="The folder of runs."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("run")
@click.option("--base", is_flag=True, help="Score the run's base: its adapter off.")
@click.option(
    "--tasks",
    help="lm-eval's tasks in place of the scores: names or .yaml files, with commas between.",
)
@_shared
def evaluate(
    run: str, base: bool, tasks: str | None, runs: str, as_json: bool, **given: Any
) -> None:
    """Score RUN (`latest`: the newest) on held-out rows."""
    before_torch()
    if tasks is not None:
        with _asking(**given) as asked:
            _show_tasks(run, tasks, asked, runs, base=base)
        return
    from halfbyte import api
    from halfbyte.evaluate.scores import pooled

    with _asking(**given) as asked:
        found = api.evaluate_run(run, asked, runs, base=base)
    scores = {name: pooled(column) for name, column in found.columns.items()}
    if as_json:
        click.echo(json.dumps({"model": found.model, "scores": scores}))
        return
    table = Table("score", "value", "rows", "what it is", box=None)
    for name, column in found.columns.items():
        rows = str(int(column.applies.sum()))
        short = column.info.definition.partition(". ")[0]
        table.add_row(name, f"{scores[name]:.4g}", rows, escape(short))
    console(stderr=False).print(table)


def _show_tasks(run: str, tasks: str, asked: Asked, runs: str, *, base: bool) -> None:
    from halfbyte.api.tasks import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    found, path = evaluate_tasks(run, names, asked, runs, base=base)
    table = Table("task", "score", "value", "± (standard error)", box=None)
    for task, scores in found["results"].items():
        for name, value in scores.items():
            score, _, kind = name.partition(",")
            if kind and not score.endswith("_stderr") and isinstance(value, int | float):
                error = scores.get(f"{score}_stderr,{kind}")
                spread = f"{error:.4f}" if isinstance(error, int | float) else ""
                table.add_row(escape(task), escape(name), f"{value:.4f}", spread)
    console(stderr=False).print(table)
    click.echo(path)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN [RUN]...")
@click.option(
    "--against", help="In place of the base: a run, RUN@STEP, or a base as NAME or NAME@nf4."
)
@click.option("--require", multiple=True, help='A condition, e.g. "exact_match > base".')
@click.option("--show", default=0, help="Print so many answers side by side.")
@_shared
def compare(
    names: tuple[str, ...],
    against: str | None,
    require: tuple[str, ...],
    show: int,
    runs: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare each RUN (`latest`: the newest) with its base, row by row, and write the report.

    Several runs answer the held-out rows of the first, and are shown beside each other. Exits
    with 6 when a condition of --require does not hold.
    """
    before_torch()
    from halfbyte import api

    out = console(stderr=False)
    with _asking(**given) as asked:
        found = list(api.compare_runs(names, asked, runs, against=against, require=require))
    for name, done in zip(names, found, strict=True):
        page = api.report_run(name, runs, asked.data)[0]
        if not as_json:
            show_comparison(out, done, show)
            out.print(f"report  {page}", soft_wrap=True, highlight=False)
    comparisons = [done.comparison for done in found]
    if as_json:
        trees = [comparison.to_json() for comparison in comparisons]
        click.echo(json.dumps(trees if len(trees) > 1 else trees[0]))
    elif len(found) > 1:
        _show_joint(out, comparisons)
    for done in found:
        api.require(done)


@click.command()
@click.argument("run")
@click.option("--data", help="The held-out file of the comparison (default: the run's own rows).")
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
def report(run: str, data: str | None, runs: str) -> None:
    """Write the report of the last comparison of RUN (`latest`: the newest), in four formats."""
    from halfbyte import api

    for path in api.report_run(run, runs, data):
        click.echo(path)


def show_comparison(out: Console, done: Compared, show: int) -> None:
    """Verdict, table and some answers side by side."""
    from halfbyte.evaluate.table import HEADER, table_rows

    comparison = done.comparison
    table = Table(box=None, title=f"{comparison.base} → {comparison.tuned}")
    for name in HEADER:
        table.add_column(name, no_wrap=True)
    still = []
    for row in table_rows(comparison):
        metric = comparison.metric(row.name)
        if metric.wins or metric.losses or metric.info.name == comparison.headline:
            table.add_row(*map(escape, row.cells), style=_STYLES[row.outcome])
        else:
            still.append(row.name)
    out.print(table)
    if still:
        out.print(f"the same on every row: {', '.join(still)}", style="dim")
    for answers in _answers(done, show):
        out.print(answers)
    for finding in done.findings:
        mark = "[green]holds[/]" if finding.holds else "[red]not shown[/]"
        out.print(f"{mark}: {escape(finding.requirement.text)} · {escape(finding.evidence)}")
    out.print(f"\n{escape(comparison.verdict.sentence)}", style="bold")


def _show_joint(out: Console, comparisons: Sequence[Comparison]) -> None:
    """All runs beside each other, one table a score."""
    from halfbyte.evaluate.table import JOINT_HEADER, joint_rows

    for name, rows in groupby(joint_rows(comparisons), key=lambda row: row.name):
        table = Table(*JOINT_HEADER, box=None, title=name, title_justify="left")
        for row in rows:
            table.add_row(*map(escape, row.cells), style=_STYLES[row.outcome])
        out.print()
        out.print(table)


def _answers(done: Compared, show: int) -> Iterator[Table]:
    asked = [i for i, answer in enumerate(done.tuned.answers) if answer is not None]
    for place in asked[:: max(1, len(asked) // max(1, show))][:show]:
        row, base, tuned = (
            done.tuned.rows[place],
            done.base.answers[place],
            done.tuned.answers[place],
        )
        assert base is not None
        assert tuned is not None
        table = Table("base", "tuned", title=escape(row.prompt), expand=True, title_justify="left")
        table.caption = escape(f"reference: {row.reference}")
        table.caption_justify = "left"
        table.add_row(escape(base.text.strip()), escape(tuned.text.strip()))
        yield table


@contextmanager
def _asking(**given: Any) -> Iterator[Asked]:
    """What is asked, with progress shown while it is answered: before that, rich's would leave an
    empty line in front of an error."""
    from halfbyte import api

    bar = Progress(console=console(), transient=True)
    with ExitStack() as shown:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if not tasks:
                shown.enter_context(bar)
            if what not in tasks:
                tasks[what] = bar.add_task(escape(what), total=total)
            bar.update(tasks[what], completed=done)

        yield api.Asked(progress=show, **given)
