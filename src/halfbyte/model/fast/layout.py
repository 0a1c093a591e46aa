"""Who may attend to whom in a batch: worked out once from its segments, used by every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from halfbyte.data.records import Batch, Segment

__all__ = [
    "Bundles",
    "Range",
    "additive_mask",
    "allowed",
    "blocks",
    "bundles",
    "enter_leave",
    "grain",
    "longest",
    "rounded",
    "tree_bounds",
]

# Queries of a long segment are taken in pieces, so that most of the half of the square that
# causality forbids is never computed. Smaller pieces save more of it but make thinner products.
QUERIES = 128
# A whole small tree is one masked product: below so many tokens that beats a product a segment.
TREE = 192
# Blocks of one size are computed together, as long as their scores of one head are so many at most:
# more would leave the cache. 4 blocks of 128 × 256, one layer, forward and backward: 7.2 ms one by
# one and 5.9 together; 16 of 64 × 64: 7.7 and 4.2 (bf16, two threads).
BUNDLE = 1 << 17


# oneDNN, which multiplies bf16 matrices on a CPU, makes a kernel for every shape that it meets and
# keeps it: 0.6 MB and 0.5 to 1 ms each, up to 1,024 of them. Rows differ in length, so sizes are
# rounded up to a multiple of this: after two steps of 16 GSM8K rows, 512 tokens at once, a process
# holds 1,299 MB without it and 1,145 MB with it.
GRAIN = 32


def grain(dtype: torch.dtype, device: torch.device) -> int:
    """What sizes are rounded up to."""
    return GRAIN if dtype == torch.bfloat16 and device.type == "cpu" else 1


def rounded(batch: Batch, to: int) -> Batch:
    """The batch with its length and its number of targets rounded up to a multiple of `to`: by
    padding, and by targets of weight 0 at the end.
    """
    length = batch.input_ids.shape[1]
    more, few = -length % to, -len(batch.target) % to
    if not more and not few:
        return batch
    place = batch.predict // length * (length + more) + batch.predict % length
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, more)),
        position_ids=pad(batch.position_ids, (0, more)),
        predict=pad(place, (0, few)),
        target=pad(batch.target, (0, few)),
        weight=pad(batch.weight, (0, few)),
    )


Range = tuple[int, int, int]  # places start:stop of a sequence: (sequence, start, stop)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries, and the places of their sequence that they may attend to.

    `keys` are ranges in increasing order. `seen` bool [n, m]: what n queries see of the last m
    keys; all of them see all keys before those.
    """

    queries: Range
    keys: tuple[Range, ...]
    seen: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Blocks of one size, computed together.

    `queries` int64 [blocks, n] and `keys` int64 [blocks, m] are places of the batch laid flat.
    Where a block has fewer, places of its own stand in: such queries are listed in `blank` int64
    [2, count], as block and number, and nobody sees such keys. `bias` [blocks, 1, n, last], 0 or
    -inf, is for the last keys; all see those before.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    blank: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A bundle for a number of heads: rows of queries laid flat [places * heads, D] and of keys.

    `queries` int64 [blocks * H * n] and `keys` int64 [blocks * G * m], heads that share a key head
    side by side; `blank`, among these queries, are none. `pairs`: blocks * G.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    blank: torch.Tensor
    bias: torch.Tensor
    pairs: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All parts. With what they give for their queries one behind the other, and a row of zeros at
    the end, `answers` int64 [places * H] is the row that each place and head takes; `keys` are
    those of all parts.
    """

    parts: list[Part]
    answers: torch.Tensor
    keys: torch.Tensor


class Bundles:
    """A batch's attention as dense pieces that cover every place of every segment once."""

    def __init__(self, found: list[Bundle], places: int) -> None:
        self.found = found
        self._plans: dict[tuple[int, int], Plan] = {}
        # each place's answer: the first one of its block, the block's size, its number there
        self._answers = torch.zeros(3, places, dtype=torch.int64, device=_device(found))
        self._answers[0] = sum(bundle.queries.numel() for bundle in found)
        first = 0
        for bundle in found:
            count, size = bundle.queries.shape
            real = torch.ones(count, size, dtype=torch.bool, device=bundle.queries.device)
            real[bundle.blank[0], bundle.blank[1]] = False
            block, number = real.nonzero(as_tuple=True)
            at = bundle.queries[block, number]
            self._answers[0, at] = first + block * size
            self._answers[1, at] = size
            self._answers[2, at] = number
            first += count * size

    def plan(self, heads: int, groups: int) -> Plan:
        """For so many query heads and key heads; made once."""
        if (heads, groups) not in self._plans:
            every = torch.arange(heads, device=self._answers.device)
            first, size, number = self._answers[:, :, None]
            parts = [_part(bundle, heads, groups) for bundle in self.found]
            self._plans[heads, groups] = Plan(
                parts,
                (first * heads + size * every + number).view(-1),
                torch.cat([part.keys for part in parts]),
            )
        return self._plans[heads, groups]


def _part(bundle: Bundle, heads: int, groups: int) -> Part:
    block, number = bundle.blank[:, :, None]
    every = torch.arange(heads, device=block.device)
    blank = (block * heads + every) * bundle.queries.shape[1] + number
    queries, keys = _by_heads(bundle.queries, heads), _by_heads(bundle.keys, groups)
    return Part(queries, keys, blank.view(-1), bundle.bias, len(bundle.keys) * groups)


def _by_heads(places: torch.Tensor, heads: int) -> torch.Tensor:
    """Places [blocks, n] as rows [blocks * heads * n] of [places * heads, D]."""
    every = torch.arange(heads, device=places.device)[:, None]
    return (places[:, None] * heads + every).view(-1)


def _device(found: list[Bundle]) -> torch.device:
    return found[0].queries.device if found else torch.device("cpu")


def bundles(batch: Batch, dtype: torch.dtype) -> Bundles:
    """What a batch's attention consists of, for scores of this type."""
    device = batch.input_ids.device
    to = grain(dtype, device)
    alike: dict[tuple[int, int, int], list[Block]] = {}
    for block in blocks(batch):
        columns = sum(stop - start for _, start, stop in block.keys)
        n, m = block.seen.shape
        more = -columns % to
        alike.setdefault((n + -n % to, columns + more, m + more), []).append(block)
    length = batch.input_ids.shape[1]
    found = []
    for (rows, columns, last), members in alike.items():
        most = max(1, BUNDLE // (rows * columns))
        for start in range(0, len(members), most):
            some = members[start : start + most]
            hidden = torch.zeros(len(some), 1, rows, last, dtype=torch.bool)
            queries, keys, blank = [], [], []
            for place, block in enumerate(some):
                n, m = block.seen.shape
                queries.append(_places((block.queries,), length, rows))
                keys.append(_places(block.keys, length, columns))
                blank += [(place, number) for number in range(n, rows)]
                real = last - columns + sum(stop - start for _, start, stop in block.keys)
                # a query that is none may see anything, but something it must
                hidden[place, 0, :n, real:] = True
                hidden[place, 0, :n, real - m : real] = ~block.seen
            bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            none = torch.tensor(blank, dtype=torch.int64).view(-1, 2).T
            parts = (torch.stack(queries), torch.stack(keys), none, bias)
            found.append(Bundle(*(one.to(device) for one in parts)))
    return Bundles(found, batch.input_ids.numel())


def _places(ranges: tuple[Range, ...], length: int, size: int) -> torch.Tensor:
    """int64 [size]: places of sequences of this length laid flat, the first one again behind."""
    first = ranges[0][0] * length + ranges[0][1]
    found = torch.full((size,), first, dtype=torch.int64)
    taken = 0
    for row, start, stop in ranges:
        count = stop - start
        found[taken : taken + count] = torch.arange(row * length + start, row * length + stop)
        taken += count
    return found


def blocks(batch: Batch) -> list[Block]:
    """One block or more for every segment, or one for a whole small tree."""
    found: list[Block] = []
    segments = batch.segments
    _, leave = enter_leave(segments)
    number = 0
    while number < len(segments):
        if segments[number].parent < 0:
            end = leave[number]
            family = segments[number:end]
            if end - number > 1 and family[-1].stop - family[0].start <= TREE:
                found.append(_tree(family, number))
                number = end
                continue
        found += _pieces(segments, number)
        number += 1
    return found


def _pieces(segments: tuple[Segment, ...], number: int) -> list[Block]:
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
        ranges = _joined([*reversed(above), (segment.start, stop)])
        keys = tuple((segment.row, *one) for one in ranges)
        pieces.append(Block((segment.row, start, stop), keys, _causal(stop - start)))
    return pieces


def _tree(family: tuple[Segment, ...], first: int) -> Block:
    """A whole small tree, whose segments lie next to each other in preorder, as one block."""
    start, stop = family[0].start, family[-1].stop
    seen = torch.zeros(stop - start, stop - start, dtype=torch.bool)
    for segment in family:
        rows = slice(segment.start - start, segment.stop - start)
        if segment.parent >= 0:
            above = family[segment.parent - first]
            seen[rows] = seen[above.stop - start - 1]
        seen[rows, rows] = _causal(rows.stop - rows.start)
    places = (family[0].row, start, stop)
    return Block(places, (places,), seen)


def _causal(n: int) -> torch.Tensor:
    """bool [n, n]: what each of n queries sees of their own keys."""
    return torch.ones(n, n, dtype=torch.bool).tril_()


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjacent ranges as one: a first child lies right behind its parent."""
    joined = [ranges[0]]
    for start, stop in ranges[1:]:
        if start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


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
