"""Every halfbyte command in the README and the docs is one that exists, with options it has."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from halfbyte.cli import cli
from halfbyte.config import load_config
from halfbyte.config.recipes import find, shipped

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each halfbyte command in the shell blocks of a page."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:  # an environment variable before the command
                words.pop(0)
            if words[:1] == ["halfbyte"]:
                yield words[1:]


def require_command(words: list[str]) -> None:
    """Parse it: its name, its options and how many arguments it takes."""
    found: click.Command | None = cli
    rest = words
    while isinstance(found, click.Group):
        found, rest = found.get_command(click.Context(found), rest[0]), rest[1:]
    assert found is not None, f"no such command: halfbyte {shlex.join(words)}"
    found.make_context(words[0], list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Each command of a page parses."""
    for words in commands(page.read_text(encoding="utf-8")):
        require_command(words)


def test_the_readme_has_commands_and_shows_every_recipe() -> None:
    """The README is not empty of commands, and its table has each recipe that is shipped."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(list(commands(text))) >= 10
    for name, _ in shipped():
        assert f"`{name}`" in text


def test_the_readme_says_how_the_shell_finds_halfbyte_first() -> None:
    """`make demo` installs into .venv; the first block of commands begins by activating it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = next(b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "halfbyte " in b)
    assert first.startswith(". .venv/bin/activate")


def test_the_settings_in_the_docs_are_settings() -> None:
    """Every KEY.SUB=VALUE of a train command is accepted."""
    seen = 0
    for page in PAGES:
        for name, *words in commands(page.read_text(encoding="utf-8")):
            if name not in {"train", "plan"}:
                continue
            plain = [word for word in words if not word.startswith("-")]
            recipe = find(plain[0]) if plain and "=" not in plain[0] else None
            load_config(recipe, plain[1:] if recipe else plain)
            seen += 1
    assert seen >= 2


@pytest.mark.parametrize(
    "script", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: path.name
)
def test_what_a_bench_takes_from_halfbyte_is_there(script: Path) -> None:
    """Also what it imports only once it measures; one had lost a name for a day, unnoticed."""
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "halfbyte"
        for alias in node.names
    ]
    for module, name in wanted:
        found = import_module(str(module))
        inner = hasattr(found, "__path__") and find_spec(f"{module}.{name}")
        assert hasattr(found, name) or inner, f"{module}: no {name}"
