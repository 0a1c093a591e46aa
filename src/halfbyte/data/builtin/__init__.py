"""Rows that come with the package, so that everything can be tried without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from halfbyte.data.records import Example, Message
from halfbyte.errors import DataError

__all__ = ["BUILTINS", "load_builtin"]

BUILTINS: Final[tuple[str, ...]] = ("tutor", "hinglish", "retention", "demo")
"""tutor: explains in steps, ends with `Answer: …`. hinglish: everyday chat. retention: general
short questions that no recipe trains on. demo: one prompt for each kind of task, to look at."""

_HERE: Final = Path(__file__).parent


def load_builtin(name: str) -> list[Example]:
    """The rows of one built-in set, in their fixed order; `extra` holds `kind` and `labels`.

    Raises:
        DataError: there is no such set.
    """
    if name not in BUILTINS:
        known = ", ".join(f"builtin:{each}" for each in BUILTINS)
        raise DataError(f"builtin:{name}: no such built-in data", hint=f"There are: {known}.")
    lines = (_HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_example(json.loads(line)) for line in lines]


def _example(row: dict[str, Any]) -> Example:
    question, answer = row.pop("instruction"), row.pop("response")
    return Example(
        messages=(Message("user", question), Message("assistant", answer)),
        context=row.pop("context", None),
        facts=tuple(row.pop("facts", ())),
        extra=row,
    )
