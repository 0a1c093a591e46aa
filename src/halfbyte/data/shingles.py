"""Shingles: a text as the set of its eight-byte windows, and sketches that find alike sets.

Two texts are compared by their Jaccard index, common shingles over all shingles. To find the pairs
worth comparing among many rows, each row has a sketch of 60 minima (one-permutation hashing,
Li et al. 2012, arXiv:1208.1259; empty bins filled as in Shrivastava 2017, arXiv:1703.04664), cut
into 12 bands of 5: a pair with index 0.8 meets in a band with probability 0.99, one with 0.4 with
0.12. Everything is numpy over a batch of rows: a hundred times faster than hashing word by word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

U64 = np.ndarray[Any, np.dtype[np.uint64]]
Owners = np.ndarray[Any, np.dtype[np.int64]]
Bands = np.ndarray[Any, np.dtype[np.uint32]]

WIDTH: Final = 8  # bytes of a shingle: a word and a half of English
OWN: Final = 11  # shingles of its own from which a row is compared by these alone, and
FEWEST: Final = 32  # shingles in all that any other row must have to be compared
BANDS: Final = 12
_PER_BAND: Final = 5
_BINS: Final = BANDS * _PER_BAND
_EMPTY: Final = np.uint32(0xFFFFFFFF)
# odd constants of splitmix64's finaliser
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_TABLE_BITS: Final = 20


def words_of(text: str) -> str:
    """The text in lower case with single spaces for all that is no letter or digit."""
    return " ".join(text.lower().translate(_SPACED).split())


class _Spaced(dict[int, str]):
    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = found = char if char.isalnum() else " "
        return found


_SPACED: Final = _Spaced()


def shingles(texts: Sequence[bytes]) -> tuple[U64, Owners]:
    """The hashed shingles of texts (UTF-8) and, for each, whose it is; with repetitions."""
    pieces = [text.ljust(WIDTH) for text in texts]
    counts = np.array([len(piece) - WIDTH + 1 for piece in pieces])
    joined = b"".join(pieces)
    if not joined:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    # every window of the joined bytes as a number, then those that do not cross into the next text
    windows: U64 = np.ndarray((len(joined) - WIDTH + 1,), "<u8", joined, strides=(1,))
    owner = np.repeat(np.arange(len(pieces)), counts)
    starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _mixed(windows[starts[owner] + within]), owner


def _mixed(values: U64) -> U64:
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


class Boilerplate:
    """Shingles that many rows have in common: a fixed instruction, a list of choices.

    They say nothing about whether two rows are copies, so they do not count, unless a row consists
    of them: many rows that differ in a letter or two have nothing of their own.
    """

    def __init__(self, sample: Sequence[bytes]) -> None:
        found, owner = shingles(sample)
        cells = (found >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
        # each row counts once; sorting is faster here than numpy's unique, which hashes
        marked = np.sort(cells + (owner << _TABLE_BITS))
        once = marked[np.diff(marked, prepend=-1) != 0] & ((1 << _TABLE_BITS) - 1)
        seen = np.bincount(once, minlength=1 << _TABLE_BITS)
        self._common = seen > max(10, len(sample) // 50)

    def counted(self, found: U64, owner: Owners, texts: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which shingles count, of texts as `shingles` gives them; none of a text too short."""
        own = ~self._common[(found >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)]
        whole = np.bincount(owner[own], minlength=texts) < OWN
        short = np.bincount(owner, minlength=texts) < FEWEST
        return (own | whole[owner]) & ~(whole & short)[owner]


def bands(texts: Sequence[bytes], common: Boilerplate) -> Bands:
    """The bands of texts: uint32 [n, 12]; a row too short for comparing has zeros."""
    found, owner = shingles(texts)
    keep = common.counted(found, owner, len(texts))
    found, owner = found[keep], owner[keep]
    minima = np.full(len(texts) * _BINS, _EMPTY)
    place = ((found >> np.uint64(32)) * np.uint64(_BINS)) >> np.uint64(32)
    np.minimum.at(minima, owner * _BINS + place.astype(np.int64), found.astype(np.uint32))
    table: Bands = minima.reshape(-1, _BINS)
    short = np.bincount(owner, minlength=len(texts)) == 0
    _fill(table, ~short)
    folded = np.zeros((len(texts), BANDS), np.uint64)
    for part in range(_PER_BAND):
        folded = _mixed((folded << np.uint64(1)) ^ table[:, part::_PER_BAND].astype(np.uint64))
    result = (folded >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    result[short] = 0
    return result


def _fill(table: Bands, at: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Give each empty bin the minimum of a bin drawn for it, the same draw in every row."""
    draws = np.random.default_rng(0).integers(_BINS, size=(8 * _BINS, _BINS))
    rows = table[at]
    empty = rows == _EMPTY
    filled = rows.copy()
    for draw in draws:
        if not (filled == _EMPTY).any():
            break
        lent = np.where(empty[:, draw], _EMPTY, rows[:, draw])
        filled = np.where(filled == _EMPTY, lent, filled)
    table[at] = filled


def jaccard(one: bytes, other: bytes, common: Boilerplate | None = None) -> float:
    """Common shingles over all shingles of two texts; without those of `common`."""
    found, owner = shingles([one, other])
    if common is not None:
        keep = common.counted(found, owner, 2)
        found, owner = found[keep], owner[keep]
    first, second = set(found[owner == 0].tolist()), set(found[owner == 1].tolist())
    either = len(first | second)
    return len(first & second) / either if either else 0.0
