"""The audit: which training rows repeat one another, and which stand in the held-out rows too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from halfbyte.data.near import Near, near_pairs
from halfbyte.data.report import Match, Repeats
from halfbyte.data.split import Keys
from halfbyte.data.stage import Staged

Rows = np.ndarray[Any, np.dtype[np.int64]]
Pair = tuple[int, int]  # positions in two parts
LISTED: Final = 20


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of what was staged: their indices, ascending."""

    staged: Staged
    rows: Rows

    def where(self, position: int) -> str:
        """The place of a row in its file."""
        return self.staged.where(int(self.rows[position]))


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """What was found; `leaking`: the indices of training rows that stand in the held-out rows."""

    duplicates: Repeats
    leakage: Repeats
    leaking: Rows


def audit(train: Part, valid: Part) -> Audit:
    """Compare the training rows with one another and with the held-out rows.

    A training row counts once: as an exact copy (prompt and answer the same but for case and
    white space), else for its prompt (the same, with another answer), else as a near copy.
    """
    keys, prompts = train.staged.row_keys[train.rows], train.staged.prompt_keys[train.rows]
    near_own, near_held = near_pairs(train, valid)
    own = _Found(_earlier(keys), _earlier(prompts), near_own)
    held = _Found(
        _elsewhere(keys, valid.staged.row_keys[valid.rows]),
        _elsewhere(prompts, valid.staged.prompt_keys[valid.rows]),
        near_held,
    )
    leaking = train.rows[np.array(sorted(held.rows), np.int64)]
    return Audit(own.repeats(train, train), held.repeats(train, valid), leaking)


class _Found:
    """Pairs of rows by how they are alike, each row only under the strongest."""

    def __init__(self, exact: dict[int, int], prompt: dict[int, int], near: Iterable[Near]) -> None:
        self._exact = exact
        self._prompt = {row: other for row, other in prompt.items() if row not in exact}
        self._near = [
            pair for pair in near if pair.row not in exact and pair.row not in self._prompt
        ]

    @property
    def rows(self) -> set[int]:
        """The positions of all rows that were found."""
        return {*self._exact, *self._prompt, *(pair.row for pair in self._near)}

    def repeats(self, part: Part, others: Part) -> Repeats:
        """In the words of the report."""
        exact = [Near(*pair, 1.0) for pair in self._exact.items()]
        listed = sorted([*exact, *self._near], key=lambda pair: pair.row)[:LISTED]
        listed += [Near(*pair, 0.0) for pair in self._prompt.items()][: LISTED - len(listed)]
        return Repeats(
            exact=len(self._exact),
            near=len(self._near),
            same_prompt=len(self._prompt),
            first=tuple(
                Match(part.where(pair.row), others.where(pair.other), round(pair.alike, 3))
                for pair in listed
            ),
        )


def _earlier(keys: Keys) -> dict[int, int]:
    """For each row whose key stood before: where it stood first."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.flatnonzero(first[group] != np.arange(len(keys)))
    return dict(zip(rows.tolist(), first[group[rows]].tolist(), strict=True))


def _elsewhere(keys: Keys, others: Keys) -> dict[int, int]:
    """For each row whose key stands among `others`: where it stands first."""
    values, first = np.unique(others, return_index=True)
    if not len(values):
        return {}
    place = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    rows = np.flatnonzero(values[place] == keys)
    return dict(zip(rows.tolist(), first[place[rows]].tolist(), strict=True))
