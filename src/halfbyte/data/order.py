"""Which rows make which step: from the seed alone, every row once an epoch.

Rows that begin alike are drawn into the same step, so that their common beginning is computed once
(tree.py). What an epoch contains does not change, only who meets whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte.data.records import Encoded

__all__ = ["epoch_order", "prefix_groups"]

Labels = np.ndarray[Any, np.dtype[np.int32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# Beginnings are compared at these lengths: which rows meet needs no finer grain, what they share
# in the end is found token by token.
DEPTHS = (16, 32, 64, 128, 256, 512, 1024)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying by it loses nothing modulo 2^64

# A beginning that this many rows of an average step have anyway needs no help to meet.
COMMON = 4


def prefix_groups(rows: Sequence[Encoded]) -> Labels:
    """For each row and each depth, the number of its beginning, or -1 where nobody shares it.

    Returns int32 [n, levels]; rows with the same number at a level begin with the same
    DEPTHS[level] ids. They are compared by a 64-bit hash: a collision would only make rows meet.
    """
    powers = np.cumprod(np.full(DEPTHS[-1], _FACTOR, dtype=np.uint64))
    hashes = np.zeros((len(rows), len(DEPTHS)), dtype=np.uint64)
    reached = np.zeros(len(rows), dtype=np.int64)
    depths = np.array(DEPTHS)
    for number, row in enumerate(rows):
        ids = np.asarray(row.ids[: DEPTHS[-1]]).astype(np.uint64) + np.uint64(1)
        levels = int(np.searchsorted(depths, len(ids), side="right"))
        mixed = ids * powers[: len(ids)]
        sums = np.cumsum(mixed ^ (mixed >> np.uint64(29)), dtype=np.uint64)
        hashes[number, :levels] = sums[depths[:levels] - 1]
        reached[number] = levels
    labels = np.full(hashes.shape, -1, dtype=np.int32)
    for level in range(len(DEPTHS)):
        deep = np.flatnonzero(reached > level)
        _, inverse, counts = np.unique(hashes[deep, level], return_inverse=True, return_counts=True)
        labels[deep, level] = np.where(counts[inverse] > 1, inverse, -1)
    used = int((labels >= 0).any(axis=0).sum())
    return labels[:, :used]


def epoch_order(
    lengths: Sequence[int] | np.ndarray[Any, Any],
    seed: int,
    epoch: int,
    batch_size: int,
    groups: Labels | None = None,
) -> list[tuple[int, ...]]:
    """The steps of one epoch: tuples of `batch_size` row numbers, the last one of what remains.

    A pure function of its arguments. Every row is in exactly one step. With `groups` (from
    `prefix_groups`) rows with a common beginning meet. In epoch 0 the step that needs the most
    memory (by `lengths`) comes first, so that what does not fit fails at once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    sizes = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng([seed, epoch])
    if groups is None or groups.shape[1] == 0:
        order = random.permutation(len(sizes))
    else:
        pieces = _fill(_clusters(groups, batch_size, random), batch_size, random)
        order = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
    steps = [tuple(order[i : i + batch_size].tolist()) for i in range(0, len(order), batch_size)]
    full = len(sizes) // batch_size
    if epoch == 0 and full > 1:
        rows = sizes[order[: full * batch_size]].reshape(full, batch_size)
        heaviest = int((rows.sum(axis=1) * rows.max(axis=1)).argmax())
        steps[0], steps[heaviest] = steps[heaviest], steps[0]
    return steps


def _clusters(labels: Labels, batch_size: int, random: np.random.Generator) -> list[Ints]:
    """Rows that should meet, at most `batch_size` together, in random order."""
    n = len(labels)
    top = np.full(n, -1, dtype=np.int64)  # the shallowest level at which the beginning is rare
    for level in reversed(range(labels.shape[1])):
        shared = labels[:, level] >= 0
        counts = np.bincount(labels[shared, level], minlength=1)
        rare = np.zeros(n, dtype=bool)
        rare[shared] = counts[labels[shared, level]] * batch_size < COMMON * n
        top[rare] = level
    # One sort brings every subtree together, in random order at each level; rows of no group,
    # whose sort keys are their own, lie in between as clusters of one.
    keys = [random.permutation(n)]
    keys += [_shuffled(labels[:, level], random) for level in reversed(range(labels.shape[1]))]
    order = np.lexsort(keys)
    levels, tops = labels[order], top[order]
    inside = (tops[1:] >= 0) & (tops[1:] == tops[:-1])
    rows = np.arange(n - 1)
    inside &= levels[rows, tops[1:]] == levels[rows + 1, tops[1:]]
    cuts = np.flatnonzero(~inside) + 1
    clusters: list[Ints] = []
    for family, start in zip(np.split(order, cuts), [0, *cuts.tolist()], strict=True):
        stop = start + len(family)
        if len(family) <= batch_size:
            clusters.append(family)
        else:
            pieces = _cut(levels[start:stop], int(tops[start]) + 1, batch_size)
            clusters += [family[a:b] for a, b in pieces]
    return [clusters[i] for i in random.permutation(len(clusters))]


def _shuffled(labels: Ints | Labels, random: np.random.Generator) -> Ints:
    """The labels under a random renaming; rows without one (-1) get a name of their own each."""
    names = random.permutation(int(labels.max()) + 1 + len(labels))
    alone = labels < 0
    renamed = labels.astype(np.int64)
    renamed[alone] = int(labels.max()) + 1 + np.flatnonzero(alone)
    return names[renamed]


def _cut(levels: Labels, level: int, batch_size: int) -> list[tuple[int, int]]:
    """Pieces of at most `batch_size` sorted rows, cut between subtrees where possible."""
    n = len(levels)
    if n <= batch_size:
        return [(0, n)]
    if level == levels.shape[1]:
        return [(a, min(a + batch_size, n)) for a in range(0, n, batch_size)]
    column = levels[:, level]
    cuts = np.flatnonzero((column[1:] != column[:-1]) | (column[1:] < 0)) + 1
    bounds = [0, *cuts.tolist(), n]
    pieces: list[tuple[int, int]] = []
    for a, b in itertools.pairwise(bounds):
        for low, high in _cut(levels[a:b], level + 1, batch_size):
            if pieces and a + high - pieces[-1][0] <= batch_size:
                pieces[-1] = (pieces[-1][0], a + high)
            else:
                pieces.append((a + low, a + high))
    return pieces


def _fill(clusters: list[Ints], batch_size: int, random: np.random.Generator) -> list[Ints]:
    """Clusters in an order that cuts few of them where one step ends and the next begins.

    Each step takes the next cluster of the random order, then random ones that fit into what is
    left, and cuts one only where none does.
    """
    waiting: list[list[Ints]] = [[] for _ in range(batch_size + 1)]  # by size
    for cluster in clusters:
        waiting[len(cluster)].append(cluster)
    left = np.array([len(bucket) for bucket in waiting], dtype=np.int64)
    ordered: list[Ints] = []
    free = batch_size
    while left.any():
        fitting = left[: free + 1]
        if not fitting.any():
            size = int(np.flatnonzero(left)[0])
            whole = waiting[size].pop()
            left[size] -= 1
            ordered.append(whole[:free])
            waiting[size - free].append(whole[free:])
            left[size - free] += 1
            free = batch_size
            continue
        size = int(random.choice(free + 1, p=fitting / fitting.sum()))
        left[size] -= 1
        ordered.append(waiting[size].pop())
        free = free - size or batch_size
    return ordered
