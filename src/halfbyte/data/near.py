"""Near copies: rows that say nearly the same as another, found without comparing all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from halfbyte.data.lines import Rows
from halfbyte.data.shingles import BANDS, Bands, Boilerplate, bands, jaccard, words_of
from halfbyte.data.workers import in_order

if TYPE_CHECKING:
    from halfbyte.data.audit import Part

Pairs = np.ndarray[Any, np.dtype[np.int64]]

ALIKE: Final = 0.8  # Jaccard index of prompt and answer together, and
ANSWERS_ALIKE: Final = 0.5  # of the answers, from which rows count as nearly the same
_BATCH: Final = 512
_SAMPLE: Final = 4096  # rows that show what is boilerplate
_TRIES: Final = 3  # candidates of a row that are compared, those that meet in most bands first


@dataclass(frozen=True, slots=True)
class Near:
    """Two rows nearly the same, as positions in their parts; `alike` is their Jaccard index."""

    row: int
    other: int
    alike: float


def near_pairs(train: Part, valid: Part) -> tuple[list[Near], list[Near]]:
    """(training rows that nearly repeat an earlier one, those that nearly repeat a held-out one).

    Nearly: without boilerplate, at least 0.8 of what two rows hold is common to both, and their
    answers are alike too: questions about one passage share most of their text, but are not
    copies. At most one pair for each training row in either list.
    """
    texts = _Texts(valid, train)
    own, held = _candidates(texts.bands(), len(valid.rows))
    shift = len(valid.rows)
    return (
        [Near(a - shift, b - shift, alike) for a, b, alike in texts.confirmed(own)],
        [Near(a - shift, b, alike) for a, b, alike in texts.confirmed(held)],
    )


class _Texts:
    """The words of the rows of two parts, one after the other."""

    def __init__(self, first: Part, second: Part) -> None:
        self._parts = (first, second)
        self._shift = len(first.rows)
        self._total = len(first.rows) + len(second.rows)
        step = -(-self._total // _SAMPLE)
        self._common = Boilerplate(self._words(np.arange(0, self._total, step)))
        self._remembered = lru_cache(maxsize=4096)(self._whole_and_answer)

    def _words(self, indices: Rows) -> list[bytes]:
        """The words of rows, ascending, in UTF-8."""
        here = [indices[indices < self._shift], indices[indices >= self._shift] - self._shift]
        return [
            words
            for part, rows in zip(self._parts, here, strict=True)
            for words in part.staged.words.some(part.rows[rows])
        ]

    def _place(self, index: int) -> tuple[Part, int]:
        inside = index >= self._shift
        part = self._parts[inside]
        return part, int(part.rows[index - self._shift * inside])

    def _whole_and_answer(self, index: int) -> tuple[bytes, bytes]:
        part, row = self._place(index)
        answer = part.staged.example(row).reference
        return part.staged.words[row], words_of(answer).encode()

    def bands(self) -> Bands:
        """The bands of all rows: uint32 [n, 12]."""
        found = [*in_order(self._bands, range(0, self._total, _BATCH))]
        return np.concatenate(found) if found else np.zeros((0, BANDS), np.uint32)

    def _bands(self, start: int) -> Bands:
        """Those of the batch of rows that begins there; a forked process may do it."""
        batch = np.arange(start, min(start + _BATCH, self._total))
        return bands(self._words(batch), self._common)

    def confirmed(self, pairs: Pairs) -> list[tuple[int, int, float]]:
        """Of candidates (row, other), sorted by row, the first of each row that is nearly it."""
        done: list[tuple[int, int, float]] = []
        tried = (-1, 0)
        for row, other in pairs.tolist():
            tried = (row, tried[1] + 1 if row == tried[0] else 1)
            if tried[1] > _TRIES or (done and done[-1][0] == row):
                continue
            alike = self._alike(row, other)
            if alike >= ALIKE:
                done.append((row, other, alike))
        return done

    def _alike(self, row: int, other: int) -> float:
        (one, answer), (two, reply) = self._remembered(row), self._remembered(other)
        if answer != reply and jaccard(answer, reply) < ANSWERS_ALIKE:
            return 0.0
        return jaccard(one, two, self._common)


def _candidates(found: Bands, held: int) -> tuple[Pairs, Pairs]:
    """Pairs that meet in a band: (training row, earlier training row), (training row, held-out).

    The first `held` rows are the held-out ones. In a band, a row is paired with the one before it
    and with the first of each kind, not with all: crowds stay linear.
    """
    own: list[Pairs] = []
    leaks: list[Pairs] = []
    for band in range(BANDS):
        values = found[:, band]
        order = np.argsort(values, kind="stable")
        order = order[values[order] != 0]
        if not len(order):
            continue
        fresh = np.diff(values[order], prepend=values[order[0]] - np.uint32(1)) != 0
        group = np.cumsum(fresh) - 1
        first = np.flatnonzero(fresh)
        # in a group rows ascend: held-out ones first, then training rows in their order
        trained = order >= held
        first_own = first + np.bincount(group[~trained], minlength=len(first))
        inner = trained & ~fresh
        before, members = order[np.flatnonzero(inner) - 1], order[inner]
        heads, own_heads = order[first[group[inner]]], order[first_own[group[inner]]]
        leaks += [np.stack([members, each], 1)[each < held] for each in (before, heads)]
        own += [
            np.stack([members, each], 1)[(each >= held) & (each < members)]
            for each in (before, own_heads)
        ]
    return _ranked(own), _ranked(leaks)


def _ranked(pairs: Sequence[Pairs]) -> Pairs:
    """Each pair once, by row, those that met most often first."""
    if not pairs:
        return np.empty((0, 2), np.int64)
    unique, met = np.unique(np.concatenate(pairs), axis=0, return_counts=True)
    return unique[np.lexsort((unique[:, 1], -met, unique[:, 0]))]
