"""Attention of packed rows over the slots of the cache: prompts one by one, answers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from halfbyte.infer.backend import Span

# a call costs about as much as reading keys and values of so many places (measured: 15 µs)
_CALL: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """Rows that add one token each, in neighbouring slots from `first` to before `last`.

    `places`: where their tokens are in the packed input, by slot. `take`: int64, their places
    among the slots; None where every slot has one (the others compute what nobody reads).
    `mask`: [slots * heads, 1, length], 0 or -inf; None where every row is `length` long.
    """

    first: int
    last: int
    length: int
    places: torch.Tensor | slice
    take: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One row's tokens: packed places start:stop, after `past` tokens in its slot.

    `mask`: bool [n, past + n], None where plain causal attention over itself is right.
    """

    slot: int
    start: int
    stop: int
    past: int
    mask: torch.Tensor | None

    @property
    def length(self) -> int:
        """Tokens of the row, these included."""
        return self.past + self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Who attends to what in one step, the same for every layer."""

    decodes: tuple[Decode, ...]
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What planning needs to know of the model's cache."""

    heads: int  # of keys and values
    window: int | None  # keys a token sees at most
    dtype: torch.dtype
    device: torch.device


def plan(spans: Sequence[Span], layout: Layout) -> Plan:
    """Sort spans into groups; their tokens are packed in the order of the spans."""
    single: list[tuple[Span, int]] = []
    prompts: list[Prompt] = []
    place = 0
    for span in spans:
        if len(span.ids) == 1:
            single.append((span, place))
        else:
            prompts.append(_prompt(span, place, layout))
        place += len(span.ids)
    single.sort(key=lambda pair: pair[0].slot)
    return Plan(tuple(_decode(group, layout) for group in _neighbours(single)), tuple(prompts))


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, todo: Plan, scale: float
) -> torch.Tensor:
    """Attention of one layer.

    q: [n, heads, group, width], contiguous; keys, values: [slots, heads, capacity, width], with
    this step's tokens in them. Returns [n, heads * group * width].
    """
    only = todo.decodes[0] if len(todo.decodes) == 1 and not todo.prompts else None
    if only is not None and only.take is None and isinstance(only.places, slice):
        return _over_slots(q, keys, values, only, scale).flatten(1)
    out = torch.empty_like(q)
    for decode in todo.decodes:
        queries = q[decode.places]
        if decode.take is None:
            out[decode.places] = _over_slots(queries, keys, values, decode, scale)
        else:
            spread = queries.new_zeros(decode.last - decode.first, *queries.shape[1:])
            spread[decode.take] = queries
            found = _over_slots(spread, keys, values, decode, scale)
            out[decode.places] = found[decode.take]
    for prompt in todo.prompts:
        here = slice(prompt.start, prompt.stop)
        k = keys[prompt.slot, :, : prompt.length]
        v = values[prompt.slot, :, : prompt.length]
        out[here] = _causal(q[here], k, v, prompt.mask, scale)
    return out.flatten(1)


def _over_slots(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, decode: Decode, scale: float
) -> torch.Tensor:
    """q: [slots, heads, group, width] of the group's slots; the result has the same shape."""
    slots, heads, group, width = q.shape
    here = slice(decode.first * heads, decode.last * heads)
    k = keys.view(-1, *keys.shape[2:])[here, : decode.length]
    v = values.view(-1, *values.shape[2:])[here, : decode.length]
    flat = q.reshape(slots * heads, group, width)
    if q.dtype != torch.float32:  # softmax in 16 bits would lose what sdpa keeps
        return functional.scaled_dot_product_attention(
            flat, k, v, attn_mask=decode.mask, scale=scale
        ).view_as(q)
    if decode.mask is None:
        scores = torch.bmm(flat, k.transpose(1, 2)).mul_(scale)
    else:
        scores = torch.baddbmm(decode.mask, flat, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view_as(q)


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """q: [n, heads, group, width]; k, v: [heads, past + n, width]."""
    n, heads, group, width = q.shape
    found = functional.scaled_dot_product_attention(
        q.view(n, heads * group, width).transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=group > 1,
    )
    return found[0].transpose(0, 1).reshape(q.shape)


def _prompt(span: Span, place: int, layout: Layout) -> Prompt:
    count = len(span.ids)
    mask = None
    if span.start or (layout.window and span.stop > layout.window):
        key = torch.arange(span.stop, device=layout.device)
        query = torch.arange(span.start, span.stop, device=layout.device)[:, None]
        mask = key <= query
        if layout.window:
            mask &= key > query - layout.window
    return Prompt(span.slot, place, place + count, span.start, mask)


def _decode(group: Sequence[tuple[Span, int]], layout: Layout) -> Decode:
    spans = [span for span, _ in group]
    first, last = spans[0].slot, spans[-1].slot + 1
    length = max(span.stop for span in spans)
    take = None
    if last - first > len(spans):
        take = torch.tensor([span.slot - first for span in spans], device=layout.device)
    return Decode(first, last, length, _places(group, layout), take, _mask(group, length, layout))


def _places(group: Sequence[tuple[Span, int]], layout: Layout) -> torch.Tensor | slice:
    places = [place for _, place in group]
    if places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return torch.tensor(places, device=layout.device)


def _mask(group: Sequence[tuple[Span, int]], length: int, layout: Layout) -> torch.Tensor | None:
    first, last = group[0][0].slot, group[-1][0].slot + 1
    low, high = [0] * (last - first), [1] * (last - first)  # an empty slot sees its first place
    for span, _ in group:
        high[span.slot - first] = span.stop
        low[span.slot - first] = max(0, span.stop - layout.window) if layout.window else 0
    if min(high) == length and not any(low):
        return None
    key = torch.arange(length)
    unseen = (key >= torch.tensor(high)[:, None]) | (key < torch.tensor(low)[:, None])
    mask = torch.zeros(unseen.shape, dtype=layout.dtype).masked_fill_(unseen, -torch.inf)
    return mask.repeat_interleave(layout.heads, 0)[:, None].to(layout.device)


def _neighbours(rows: Sequence[tuple[Span, int]]) -> list[list[tuple[Span, int]]]:
    """Rows, by slot, in groups that are computed as one rectangle of slots and lengths: one call
    more costs as much as `_CALL` places computed in vain.
    """
    groups: list[list[tuple[Span, int]]] = []
    area = length = 0
    for row in rows:
        span = row[0]
        if groups:
            longest = max(length, span.stop)
            joined = (span.slot + 1 - groups[-1][0][0].slot) * longest
            if joined <= area + span.stop + _CALL:
                groups[-1].append(row)
                area, length = joined, longest
                continue
        groups.append([row])
        area = length = span.stop
    return groups
