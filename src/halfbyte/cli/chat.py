"""`halfbyte chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import yaml

from halfbyte.cli.generating import PRESETS
from halfbyte.cli.heavy import before_torch
from halfbyte.errors import HalfbyteError, InputError

if TYPE_CHECKING:
    from halfbyte.api import Chat

HELP: Final = """\
/base                   the base answers (adapters off)
/adapter [NAME]         a run's adapter answers; without a name, list them
/system [TEXT]          begin anew under a system message
/settings [NAME VALUE]  show or change sampling settings
/retry                  answer the last message again
/save FILE              write the conversation as a row of data
/clear                  forget the conversation
/quit                   leave (also Ctrl-D)
A line of three quotes begins and ends a message of several lines. Ctrl-C stops an answer."""


@click.command()
@click.argument("model", default="smollm2-135m")
@click.option("--preset", type=click.Choice(PRESETS), default="balanced", show_default=True)
@click.option("--max-new-tokens", type=int, default=512, show_default=True)
@click.option("--seed", type=int)
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
def chat(model: str, preset: str, max_new_tokens: int, seed: int | None, runs: str) -> None:
    """Talk with MODEL: a run (`latest` is the newest) or a base."""
    before_torch(shares=True)
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  gives `input` editing and the lines entered before
    from halfbyte import api

    wanted = api.sampling(preset, max_new_tokens=max_new_tokens, seed=seed)
    talk = api.Chat(api.open_any(model, runs), wanted, runs)
    click.secho(f"{talk.opened.name} · /help for commands, Ctrl-D to leave", dim=True)
    while (text := _read(talk)) is not None:
        try:
            if text.startswith("/"):
                if text.split()[0] in {"/quit", "/exit"}:
                    return
                _command(talk, text)
            elif text:
                _show(talk, talk.say(text))
        except HalfbyteError as error:
            click.secho(str(error), fg="red")


def _read(talk: Chat) -> str | None:
    """What the user enters; None at the end of input."""
    try:
        line = input(f"\n{talk.adapter or 'base'}> ").strip()
        if line != '"""':
            return line
        lines: list[str] = []
        while (more := input()) != '"""':
            lines.append(more)
        return "\n".join(lines)
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""


def _show(talk: Chat, updates: Iterator[Any]) -> None:
    """Print an answer as it comes; Ctrl-C stops it, and it stays as far as it came."""
    try:
        for update in updates:
            click.echo(update.text, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        updates.close()  # type: ignore[attr-defined]  # a generator: its answer is cancelled
    click.echo()
    click.secho(f"{talk.speed:.1f} tokens/s", dim=True)


def _command(talk: Chat, text: str) -> None:
    name, _, rest = text[1:].partition(" ")
    commands: dict[str, Callable[[Chat, str], None]] = {
        "help": lambda _talk, _rest: click.echo(HELP),
        "base": lambda talk, _rest: talk.use_base(),
        "adapter": _adapter,
        "system": _system,
        "settings": _settings,
        "retry": lambda talk, _rest: _show(talk, talk.retry()),
        "save": _save,
        "clear": _clear,
    }
    if name not in commands:
        raise InputError(f"/{name}: no such command", HELP)
    commands[name](talk, rest.strip())


def _adapter(talk: Chat, name: str) -> None:
    if name:
        talk.use_adapter(name)
    else:
        click.echo("\n".join(talk.adapters) or "no adapter is loaded; /adapter RUN loads one")


def _system(talk: Chat, text: str) -> None:
    talk.set_system(text)
    click.secho("a new conversation", dim=True)


def _clear(talk: Chat, _rest: str) -> None:
    first = (
        talk.messages[0].content if talk.messages[:1] and talk.messages[0].role == "system" else ""
    )
    talk.set_system(first)


def _settings(talk: Chat, text: str) -> None:
    name, _, value = text.partition(" ")
    if name:
        talk.set(name, yaml.safe_load(value))
    from halfbyte.api.chatting import SETTINGS

    for field in SETTINGS:
        click.echo(f"{field:20} {getattr(talk.sampling, field)}")


def _save(talk: Chat, name: str) -> None:
    if not name:
        raise InputError("/save needs a file", "/save chat.jsonl")
    talk.save(Path(name))
    click.secho(f"{name}: {len(talk.messages)} messages", dim=True)
