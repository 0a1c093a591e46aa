"""The held-out split: decided by content alone, so that neither order nor chance changes it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from halfbyte.data.records import Example
from halfbyte.errors import DataError

Keys = np.ndarray[Any, np.dtype[np.uint64]]


def prompt_key(example: Example) -> int:
    """64 bits of what is asked: rows with the same one stay on one side of the split.

    White space and case do not count. Plain text is its own prompt.
    """
    if example.text is not None:
        return _key(example.text)
    turns = [f"{turn.role}\n{turn.content}" for turn in example.prompt if turn.role != "system"]
    return _key("\n".join([*turns, example.context or ""]))


def row_key(example: Example, prompt: int) -> int:
    """64 bits of prompt and answer together; `prompt` is the row's `prompt_key`."""
    return _key(f"{prompt}\n{example.reference}")


def _key(text: str) -> int:
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")


def choose_held_out(keys: Keys, size: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows to hold out.

    Groups of equal keys are taken whole, in the order of their keys (which are hashes), until
    they come nearest to the wanted number: the choice depends on the rows alone, and adding rows
    moves few others.

    Args:
        keys: uint64 [n], from `prompt_key`.
        size: a fraction below 1, else a number of rows.

    Returns:
        bool [n], true where a row is held out; at least one is, and at least one is not.

    Raises:
        DataError: fewer than two different prompts, or fewer rows than are to be held out.
    """
    rows = len(keys)
    wanted = size * rows if size < 1 else size
    groups, counts = np.unique(keys, return_counts=True)
    if len(groups) < 2:
        raise DataError(
            f"{rows} row{'s' if rows != 1 else ''} with one prompt: nothing can be held out",
            hint="Add rows, or name held-out ones with data.valid.",
        )
    if wanted >= rows:
        raise DataError(
            f"data.valid_size: {size:g} rows are to be held out, but there are only {rows}",
            hint="Choose a fraction, such as data.valid_size=0.1.",
        )
    # before[k]: rows held out when the first k groups are
    before = np.concatenate([[0], np.cumsum(counts)])
    take = int(np.abs(before[1:-1] - wanted).argmin()) + 1
    return np.isin(keys, groups[:take])
