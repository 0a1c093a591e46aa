"""`halfbyte generate`: answers from a run or a base."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.heavy import before_torch
from halfbyte.errors import InputError

if TYPE_CHECKING:
    from halfbyte.api import Question

PRESETS = ("creative", "balanced", "deterministic")


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what is asked; the command gets the questions as `asked`."""

    @wraps(command)
    def with_questions(
        prompts: tuple[str, ...], demo: bool, file: Path | None, context: str | None, **given: Any
    ) -> None:
        texts = list(prompts) + _lines(file)
        if not texts and not demo:
            texts = [sys.stdin.read().strip()]
        if not all(texts):
            raise InputError(
                "an empty prompt", "Give the prompt as an argument, a file or on stdin."
            )
        before_torch()
        from halfbyte import api

        asked = [api.Question(text, context) for text in texts]
        command(asked=asked + (api.demo_questions() if demo else []), **given)

    options = (
        click.argument("prompts", nargs=-1, metavar="[PROMPT]..."),
        click.option("--demo", is_flag=True, help="One built-in example of each kind of task."),
        click.option("--file", type=click.Path(path_type=Path), help="A prompt a line."),
        click.option("--context", help="A context for every prompt."),
    )
    for option in reversed(options):
        with_questions = option(with_questions)
    return with_questions


@click.command()
@click.argument("model")
@_asking
@click.option("--system", help="A system message.")
@click.option("--base", is_flag=True, help="Answer with the run's base: its adapter off.")
@click.option("--preset", type=click.Choice(PRESETS), default="deterministic", show_default=True)
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-p", type=float)
@click.option("--top-k", type=int)
@click.option("--min-p", type=float)
@click.option("--repetition-penalty", type=float)
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
@click.option("--stop", multiple=True, help="Text that ends an answer (may be repeated).")
@click.option("--seed", type=int)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
def generate(
    model: str,
    asked: list[Question],
    system: str | None,
    base: bool,
    as_json: bool,
    runs: str,
    **sampling: Any,
) -> None:
    """Answer PROMPTs with MODEL: a run (`latest` is the newest), or a base by name.

    Without a prompt, standard input is one.
    """
    from halfbyte import api

    chosen = api.sampling(**{name: value for name, value in sampling.items() if value is not None})
    answers = api.answer(api.open_any(model, runs), asked, chosen, system=system, base=base)
    for one, done in zip(asked, answers, strict=True):
        if as_json:
            record = {"prompt": one.prompt, "answer": done.text, "finish": done.finish}
            click.echo(json.dumps({**record, "tokens": len(done.ids)}, ensure_ascii=False))
        else:
            click.echo(_shown(one, done.text) if len(asked) > 1 else done.text)


def _shown(one: Question, answer: str) -> str:
    given = f"| {one.context}\n" if one.context is not None else ""
    return f"{given}> {one.prompt}\n{answer}\n"


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    return [line for line in text.splitlines() if line.strip()]
