"""Where recipes are: a path the user gives, or a name of those that come with halfbyte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from halfbyte.errors import ConfigError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
# in a wheel they lie inside the package, in a checkout beside src/
_FOLDERS: Final = (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes")


def shipped() -> Iterator[tuple[str, Path]]:
    """Name and path of every recipe that comes with halfbyte."""
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.yaml")):
            yield path.relative_to(folder).with_suffix("").as_posix(), path
        if folder.is_dir():
            return


def find(recipe: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        ConfigError: there is neither; the message names the recipes there are.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    names = dict(shipped())
    known = names.get(recipe.removeprefix("recipes/").removesuffix(".yaml"))
    if known is None:
        raise ConfigError(
            f"{recipe}: no such recipe, neither a file nor one of: {', '.join(names)}",
            hint="`halfbyte recipes` says for whom each one is.",
        )
    return known


def headline(path: Path) -> str:
    """The first comment line of a recipe: what it is for."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "").strip()
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else ""
