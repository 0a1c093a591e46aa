"""Rows of one step into micro-batches: packed, with shared prefixes, or padded.

Which rows make a step is decided by `epoch_order` (order.py), from the seed alone; here only the
computation is arranged. Sums over the micro-batches of a step are the same for every arrangement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from halfbyte.data.order import epoch_order, prefix_groups
from halfbyte.data.records import Batch, Encoded, Segment
from halfbyte.data.tree import Forest, Row

__all__ = ["MicroLimits", "epoch_order", "plan_step", "prefix_groups"]


@dataclass(frozen=True, slots=True)
class MicroLimits:
    """What one micro-batch may hold.

    `rows`: rows at most. `tokens`: computed tokens at most (a single longer row stands alone).
    `pack`: several rows in one sequence instead of padding. `share`: prefixes once; without `pack`
    it has no effect, because padded rows stand apart. `even`: packed micro-batches of a step about
    equally large; else as full as they get, the largest first.
    """

    rows: int
    tokens: int
    pack: bool = True
    share: bool = True
    even: bool = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.tokens < 1:
            raise ValueError(f"a micro-batch holds at least 1 row and 1 token, not {self}")

    def halved(self) -> MicroLimits | None:
        """The limits after an out-of-memory; None where nothing is left to halve."""
        if self.rows == 1 and self.tokens == 1:
            return None
        return replace(self, rows=max(1, self.rows // 2), tokens=max(1, self.tokens // 2))


def plan_step(rows: Sequence[tuple[int, Encoded]], limits: MicroLimits) -> list[Batch]:
    """All micro-batches of one step, the one with the most computed tokens first.

    Every trained token of every row is in exactly one of them (a token shared by rows of one
    micro-batch once, with their number as its weight). Deterministic.
    """
    if not rows:
        return []
    chosen = [Row.of(index, encoded) for index, encoded in rows]
    if not limits.pack:
        return _padded(chosen, limits)
    forest = Forest(chosen, limits.share)
    every = tuple(range(len(rows)))
    bins = _distribute(forest, every, limits.tokens, limits.rows)
    if limits.even:
        bins = _evened(forest, bins, limits)
    bins.sort(key=forest.cost, reverse=True)
    return [forest.batch(members) for members in bins]


Rows = tuple[int, ...]


def _evened(forest: Forest, bins: list[Rows], limits: MicroLimits) -> list[Rows]:
    """As many micro-batches as these, or fewer, and of about the same size.

    A small last micro-batch would cost nearly as much time as a full one in everything that does
    not depend on its size, and the others would need more memory than necessary.
    """
    even = sum(map(forest.cost, bins)) / len(bins)
    for slack in (1.02, 1.1, 1.25):
        tokens = int(even * slack)
        if tokens >= limits.tokens:
            break
        tighter = _distribute(forest, tuple(range(len(forest.rows))), tokens, limits.rows)
        if len(tighter) <= len(bins):
            return tighter
    return bins


def _distribute(forest: Forest, members: Rows, tokens: int, rows: int) -> list[Rows]:
    """Micro-batches for sorted rows: whole subtrees while they fit, cut at the shortest prefix."""
    if len(members) == 1 or (len(members) <= rows and forest.cost(members) <= tokens):
        return [members]
    shared, groups = forest.split(members)
    items = [item for group in groups for item in _distribute(forest, group, tokens, rows)]
    return _best_fit(items, lambda item: forest.cost(item) - shared, tokens - shared, rows)


def _best_fit(
    items: Sequence[Rows], size: Callable[[Rows], int], tokens: int, rows: int
) -> list[Rows]:
    """Best-fit decreasing: each item goes into the fullest bin that still takes it."""
    sized = sorted(((size(item), item) for item in items), key=lambda pair: (-pair[0], pair[1]))
    bins: list[Rows] = []
    used: list[int] = []
    for cost, item in sized:
        fits = [
            i
            for i, taken in enumerate(bins)
            if used[i] + cost <= tokens and len(taken) + len(item) <= rows
        ]
        if fits:
            best = max(fits, key=lambda i: used[i])
            bins[best] += item
            used[best] += cost
        else:
            bins.append(item)
            used.append(cost)
    return [tuple(sorted(taken)) for taken in bins]


def _padded(rows: list[Row], limits: MicroLimits) -> list[Batch]:
    """Rectangles [R, L] of rows of similar length, longest first, so that little is padding."""
    rows = sorted(rows, key=lambda row: (-len(row.inputs), row.index))
    batches = []
    start = 0
    while start < len(rows):
        longest = max(1, len(rows[start].inputs))
        count = max(1, min(limits.rows, limits.tokens // longest))
        batches.append(_rectangle(rows[start : start + count]))
        start += count
    return batches


def _rectangle(rows: Sequence[Row]) -> Batch:
    """Rows padded on the right with id 0: nothing attends to it or is predicted from it."""
    length = max(len(row.inputs) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.inputs)] = row.inputs
    predict = np.concatenate([row.places + number * length for number, row in enumerate(rows)])
    target = np.concatenate([row.targets for row in rows])
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(length).repeat(len(rows), 1),
        segments=tuple(Segment(number, 0, len(row.inputs)) for number, row in enumerate(rows)),
        predict=torch.from_numpy(predict),
        target=torch.from_numpy(target),
        weight=torch.ones(len(target), dtype=torch.float32),
        rows=tuple(row.index for row in rows),
        tokens=sum(row.length for row in rows),
        owned=tuple(torch.arange(len(target)).split([len(row.targets) for row in rows])),
    )
