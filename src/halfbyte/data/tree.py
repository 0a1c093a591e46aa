"""Prefix trees: rows that begin with the same tokens, laid out so that each prefix stands once.

The hidden states of a common beginning are the same for all its rows, because attention only looks
back. So they are computed once, every row's own part attends to them, and the gradients of the
rows add up there: exact, with fewer tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halfbyte.data.records import Batch, Encoded, Segment

__all__ = ["Forest", "Row"]

Ints = np.ndarray[Any, np.dtype[np.int64]]

# A node of its own costs a few dozen small operations a layer; below this many tokens computing
# them twice costs as little. Chosen by that reasoning, not tuned.
LEAST_SHARED = 4


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row as a step needs it.

    `inputs` are the ids up to the last one that predicts anything: what comes after the last
    trained token, and that token itself, change no loss. `places` (int64 [n]) are the inputs whose
    hidden state predicts `targets` (int64 [n]). `length` counts all its tokens.
    """

    index: int
    inputs: np.ndarray[Any, np.dtype[np.int32]]
    places: Ints
    targets: Ints
    length: int

    @classmethod
    def of(cls, index: int, encoded: Encoded) -> Row:
        """The row `index` of a data set; one without a trained token keeps its first id."""
        trained = np.flatnonzero(encoded.trained[1:])
        stop = int(trained[-1]) + 1 if len(trained) else 1
        targets = np.asarray(encoded.ids)[trained + 1].astype(np.int64)
        return cls(index, np.asarray(encoded.ids[:stop]), trained, targets, len(encoded))


class Forest:
    """Rows in lexicographic order with the lengths of the beginnings they share.

    Everything is asked for a subset of the rows, an increasing tuple of their numbers in that
    order. With `share=False` nothing is shared, whatever the rows begin with.
    """

    def __init__(self, rows: Sequence[Row], share: bool) -> None:
        order = sorted(rows, key=lambda row: (row.inputs.astype(">u4").tobytes(), row.index))
        self.rows = order if share else list(rows)
        # common[i]: how many tokens row i shares with row i - 1
        self.common: Ints = np.zeros(len(rows), dtype=np.int64)
        if share:
            pairs = itertools.pairwise(order)
            self.common[1:] = [_common(a.inputs, b.inputs) for a, b in pairs]
            self._drop_short(0, len(rows), 0)

    def cost(self, subset: Sequence[int]) -> int:
        """How many tokens are computed for these rows together."""
        total = sum(len(self.rows[i].inputs) for i in subset)
        return total - int(self._shared(subset).sum())

    def split(self, subset: Sequence[int]) -> tuple[int, list[tuple[int, ...]]]:
        """What all these rows share, and the groups they fall into right after it."""
        shared = self._shared(subset)
        least = int(shared[1:].min())
        cuts = [0, *(np.flatnonzero(shared[1:] == least) + 1).tolist(), len(subset)]
        groups = [tuple(subset[a:b]) for a, b in itertools.pairwise(cuts)]
        return least, groups

    def batch(self, subset: Sequence[int]) -> Batch:
        """These rows as one sequence [1, T], every shared beginning once."""
        rows = [self.rows[i] for i in subset]
        nodes = _nodes(rows, self._shared(subset))
        ids, positions, segments = [], [], []
        path: list[list[Ints]] = [[] for _ in rows]
        start = 0
        for node in nodes:
            stop = start + node.stop - node.start
            ids.append(rows[node.low].inputs[node.start : node.stop])
            positions.append(np.arange(node.start, node.stop))
            segments.append(Segment(0, start, stop, node.parent))
            for member in range(node.low, node.high):
                path[member].append(np.arange(start, stop))
            start = stop
        places = [np.concatenate(p)[row.places] for p, row in zip(path, rows, strict=True)]
        counted = _count(np.concatenate(places), [row.targets for row in rows])
        predict, target, weight, inverse = counted
        return Batch(
            input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
            position_ids=torch.from_numpy(np.concatenate(positions))[None],
            segments=tuple(segments),
            predict=predict,
            target=target,
            weight=weight,
            rows=tuple(row.index for row in rows),
            tokens=sum(row.length for row in rows),
            owned=tuple(inverse.split([len(row.targets) for row in rows])),
        )

    def _shared(self, subset: Sequence[int]) -> Ints:
        """What each row of the subset shares with the one before it: the least in between."""
        pairs = itertools.pairwise(subset)
        inner = [int(self.common[a + 1 : b + 1].min()) for a, b in pairs]
        return np.array([0, *inner], dtype=np.int64)

    def _drop_short(self, low: int, high: int, base: int) -> None:
        """Forget what is shared over fewer than LEAST_SHARED tokens beyond the node above."""
        pending = [(low, high, base)]
        while pending:
            low, high, base = pending.pop()
            if high - low < 2:
                continue
            inner = self.common[low + 1 : high]
            inner[inner - base < LEAST_SHARED] = base
            least = int(inner.min())
            cuts = [low, *(np.flatnonzero(inner == least) + low + 1).tolist(), high]
            pending += [(a, b, least) for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class _Node:
    """Tokens `start:stop` of the rows `low:high`, which all have them; `parent` as in Segment."""

    start: int
    stop: int
    parent: int
    low: int
    high: int


def _nodes(rows: Sequence[Row], shared: Ints) -> list[_Node]:
    """The tree over sorted rows, in preorder (by a stack: a chain of prefixes may be deep)."""
    nodes: list[_Node] = []
    pending = [(0, len(rows), 0, -1)]
    while pending:
        low, high, start, parent = pending.pop()
        alone = high - low == 1
        stop = len(rows[low].inputs) if alone else int(shared[low + 1 : high].min())
        if stop > start:
            nodes.append(_Node(start, stop, parent, low, high))
            parent = len(nodes) - 1
        if not alone:
            cuts = [low, *(np.flatnonzero(shared[low + 1 : high] == stop) + low + 1).tolist(), high]
            groups = list(itertools.pairwise(cuts))
            pending += [(a, b, stop, parent) for a, b in reversed(groups)]
    return nodes


def _count(
    places: Ints, targets: Sequence[Ints]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each distinct (place, target) once, in order of places, with how many rows have it; and for
    each given one, which distinct one it is."""
    pairs = np.stack([places, np.concatenate(targets)])
    distinct, inverse, count = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    return (
        torch.from_numpy(distinct[0].copy()),
        torch.from_numpy(distinct[1].copy()),
        torch.from_numpy(count.astype(np.float32)),
        torch.from_numpy(inverse.reshape(-1).astype(np.int64)),
    )


def _common(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    """How many ids two rows have in common at their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
