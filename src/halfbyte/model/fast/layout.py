"""Who may attend to whom in a batch: worked out once from its segments, used by every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halfbyte.data.records import Batch, Segment

__all__ = ["Block", "additive_mask", "allowed", "blocks", "enter_leave", "longest", "tree_bounds"]

# Queries of a long segment are taken in pieces, so that most of the half of the square that
# causality forbids is never computed. Smaller pieces save more of it but make thinner products.
QUERIES = 128
# A whole small tree is one masked product: below so many tokens that beats a product a segment.
TREE = 192


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries `start:stop` of sequence `row`, and the places of it they may attend to.

    `keys` are ranges in increasing order. `bias` [stop - start, m], 0 or -inf, is for the last m
    keys; all queries see all keys before those.
    """

    row: int
    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    bias: torch.Tensor


def blocks(batch: Batch, dtype: torch.dtype) -> list[Block]:
    """The batch's attention as dense pieces that cover every place of every segment once."""
    found: list[Block] = []
    segments = batch.segments
    _, leave = enter_leave(segments)
    number = 0
    while number < len(segments):
        if segments[number].parent < 0:
            end = leave[number]
            family = segments[number:end]
            if end - number > 1 and family[-1].stop - family[0].start <= TREE:
                found.append(_tree(family, number, dtype))
                number = end
                continue
        found += _pieces(segments, number, dtype)
        number += 1
    device = batch.input_ids.device
    return [Block(b.row, b.start, b.stop, b.keys, b.bias.to(device)) for b in found]


def _pieces(segments: tuple[Segment, ...], number: int, dtype: torch.dtype) -> list[Block]:
    """One segment's queries, QUERIES at a time, with all its ancestors' places as keys."""
    segment = segments[number]
    above: list[tuple[int, int]] = []
    parent = segment.parent
    while parent >= 0:
        above.append((segments[parent].start, segments[parent].stop))
        parent = segments[parent].parent
    pieces = []
    for start in range(segment.start, segment.stop, QUERIES):
        stop = min(start + QUERIES, segment.stop)
        keys = _joined([*reversed(above), (segment.start, stop)])
        pieces.append(Block(segment.row, start, stop, keys, _causal(stop - start, dtype)))
    return pieces


def _tree(family: tuple[Segment, ...], first: int, dtype: torch.dtype) -> Block:
    """A whole small tree, whose segments lie next to each other in preorder, as one block."""
    start, stop = family[0].start, family[-1].stop
    seen = torch.zeros(stop - start, stop - start, dtype=torch.bool)
    for segment in family:
        rows = slice(segment.start - start, segment.stop - start)
        if segment.parent >= 0:
            above = family[segment.parent - first]
            seen[rows] = seen[above.stop - start - 1]
        seen[rows, rows] = torch.ones(rows.stop - rows.start, rows.stop - rows.start).tril().bool()
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
    return Block(family[0].row, start, stop, ((start, stop),), bias)


def _causal(n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((n, n), -torch.inf, dtype=dtype).triu_(1)


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Adjacent ranges as one: a first child lies right behind its parent."""
    joined = [ranges[0]]
    for start, stop in ranges[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def enter_leave(segments: tuple[Segment, ...]) -> tuple[list[int], list[int]]:
    """For each segment its number in preorder and the number after its last descendant.

    Segment k is an ancestor of q (or q itself) exactly if enter[k] <= enter[q] < leave[k].
    """
    leave = list(range(1, len(segments) + 1))
    for number in reversed(range(len(segments))):
        parent = segments[number].parent
        if parent >= 0:
            leave[parent] = max(leave[parent], leave[number])
    return list(range(len(segments))), leave


def tree_bounds(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`enter_leave` of each place's segment, int32 [R, L] each, -1 at padding."""
    rows, length = batch.input_ids.shape
    enter = torch.full((rows, length), -1, dtype=torch.int32)
    leave = torch.full((rows, length), -1, dtype=torch.int32)
    for segment, first, last in zip(batch.segments, *enter_leave(batch.segments), strict=True):
        enter[segment.row, segment.start : segment.stop] = first
        leave[segment.row, segment.start : segment.stop] = last
    device = batch.input_ids.device
    return enter.to(device), leave.to(device)


def longest(batch: Batch) -> int:
    """Tokens of the longest row in the batch, its shared beginning included."""
    return int(batch.position_ids.max()) + 1


def allowed(batch: Batch, window: int | None = None) -> torch.Tensor:
    """bool [R, L, L]: query place q may attend to key place k of the same sequence.

    With `window` only keys fewer than so many positions back. A padding place sees itself alone,
    because a row of a softmax may not be empty.
    """
    length, device = batch.input_ids.shape[1], batch.input_ids.device
    enter, leave = tree_bounds(batch)
    q, k = enter[:, :, None], enter[:, None, :]
    mask = (k <= q) & (q < leave[:, None, :]) & (k >= 0)
    mask &= torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        positions = batch.position_ids
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask | torch.eye(length, dtype=torch.bool, device=device)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[R, L, L] bool into [R, 1, L, L]: 0 where allowed, the type's least number elsewhere."""
    least = torch.finfo(dtype).min
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, least)[:, None]
