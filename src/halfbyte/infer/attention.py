"""Attention of packed rows over the slots of the cache: prompts one by one, answers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch.nn import functional

from halfbyte.infer.backend import Span
from halfbyte.infer.stretches import stretches

# a call costs about as much as reading keys and values of so many places (measured: 15 µs)
_CALL: Final = 128


class Plan(NamedTuple):
    """Who attends to what in one step, the same for every layer; in types TorchScript knows.

    Answers, in groups of neighbouring slots:
    - `groups`: (first slot, slot after the last, longest row) of each;
    - `places`: int64, where their tokens are in the packed input, by slot;
    - `takes`: int64, their places among the slots; empty where every slot has one (the others
      compute what nobody reads);
    - `masks`: [slots * heads, 1, length], 0 or -inf; empty where every row is that long.
    - `whole`: whether one group is the packed input, in order.

    Prompts, one by one:
    - `prompts`: (slot, first packed place, place after the last, length of the row);
    - `prompt_masks`: bool [n, length]; empty where causal attention over itself is right.
    """

    groups: list[tuple[int, int, int]]
    places: list[torch.Tensor]
    takes: list[torch.Tensor]
    masks: list[torch.Tensor]
    whole: bool
    prompts: list[tuple[int, int, int, int]]
    prompt_masks: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """What planning needs to know of the model's cache."""

    heads: int  # of keys and values
    window: int | None  # keys a token sees at most
    dtype: torch.dtype
    device: torch.device


def plan(spans: Sequence[Span], layout: Layout) -> Plan:
    """Sort spans into groups; their tokens are packed in the order of the spans."""
    todo = Plan([], [], [], [], False, [], [])
    single: list[tuple[Span, int]] = []
    place = 0
    for span in spans:
        count = len(span.ids)
        if count == 1:
            single.append((span, place))
        else:
            todo.prompts.append((span.slot, place, place + count, span.stop))
            todo.prompt_masks.append(_prompt_mask(span, layout))
        place += count
    single.sort(key=lambda pair: pair[0].slot)
    for part in stretches([(span.slot, span.stop) for span, _ in single], _CALL):
        _add(todo, single[part], layout)
    order = [place for _, place in single]
    whole = len(todo.groups) == 1 and not len(todo.takes[0]) and order == list(range(len(spans)))
    return todo._replace(whole=whole and not todo.prompts)


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, todo: Plan, scale: float
) -> torch.Tensor:
    """Attention of one layer.

    q: [n, heads, group, width], contiguous; keys, values: [slots, heads, capacity, width], with
    this step's tokens in them. Returns [n, heads * group * width].
    """
    if todo.whole:
        found = over_slots(q, keys, values, todo.groups[0], todo.masks[0], scale)
        return found.view(q.shape[0], -1)
    out = torch.empty_like(q)
    for i in range(len(todo.groups)):
        places, take, bounds = todo.places[i], todo.takes[i], todo.groups[i]
        if take.numel() == 0:
            out[places] = over_slots(q[places], keys, values, bounds, todo.masks[i], scale)
        else:
            slots = bounds[1] - bounds[0]
            spread = torch.zeros(
                [slots, q.shape[1], q.shape[2], q.shape[3]], dtype=q.dtype, device=q.device
            )
            spread[take] = q[places]
            out[places] = over_slots(spread, keys, values, bounds, todo.masks[i], scale)[take]
    for i in range(len(todo.prompts)):
        slot, start, stop, length = todo.prompts[i]
        k, v = keys[slot, :, :length], values[slot, :, :length]
        out[start:stop] = causal(q[start:stop], k, v, todo.prompt_masks[i], scale)
    return out.view(q.shape[0], -1)


def over_slots(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bounds: tuple[int, int, int],
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """q: [slots, heads, group, width] of a group's slots; the result has the same shape."""
    first, last, length = bounds
    heads, capacity, width = keys.shape[1], keys.shape[2], keys.shape[3]
    k = keys.view(-1, capacity, width)[first * heads : last * heads, :length]
    v = values.view(-1, capacity, width)[first * heads : last * heads, :length]
    flat = q.reshape(-1, q.shape[2], width)
    if q.dtype != torch.float32:  # softmax in 16 bits would lose what this keeps
        seen = mask if mask.numel() > 0 else None
        found = functional.scaled_dot_product_attention(flat, k, v, attn_mask=seen, scale=scale)
        return found.view(q.shape)
    if mask.numel() > 0:
        scores = torch.baddbmm(mask, flat, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(flat, k.transpose(1, 2)).mul_(scale)
    return torch.bmm(scores.softmax(-1), v).view(q.shape)


def causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """q: [n, heads, group, width]; k, v: [heads, past + n, width]."""
    n, width = q.shape[0], q.shape[3]
    seen = mask if mask.numel() > 0 else None
    found = functional.scaled_dot_product_attention(
        q.view(n, -1, width).transpose(0, 1).unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        attn_mask=seen,
        is_causal=seen is None,
        scale=scale,
        enable_gqa=q.shape[2] > 1,
    )
    return found[0].transpose(0, 1).reshape(q.shape)


def _prompt_mask(span: Span, layout: Layout) -> torch.Tensor:
    if not span.start and not (layout.window and span.stop > layout.window):
        return torch.empty(0, dtype=torch.bool, device=layout.device)
    key = torch.arange(span.stop, device=layout.device)
    query = torch.arange(span.start, span.stop, device=layout.device)[:, None]
    mask = key <= query
    return mask & (key > query - layout.window) if layout.window else mask


def _add(todo: Plan, group: Sequence[tuple[Span, int]], layout: Layout) -> None:
    spans = [span for span, _ in group]
    first, last = spans[0].slot, spans[-1].slot + 1
    length = max(span.stop for span in spans)
    take = [span.slot - first for span in spans] if last - first > len(spans) else []
    todo.groups.append((first, last, length))
    todo.places.append(torch.tensor([place for _, place in group], device=layout.device))
    todo.takes.append(torch.tensor(take, dtype=torch.int64, device=layout.device))
    todo.masks.append(_mask(spans, length, layout))


def _mask(spans: Sequence[Span], length: int, layout: Layout) -> torch.Tensor:
    first, last = spans[0].slot, spans[-1].slot + 1
    low, high = [0] * (last - first), [1] * (last - first)  # an empty slot sees its first place
    for span in spans:
        high[span.slot - first] = span.stop
        low[span.slot - first] = max(0, span.stop - layout.window) if layout.window else 0
    if min(high) == length and not any(low):
        return torch.empty(0, dtype=layout.dtype, device=layout.device)
    key = torch.arange(length)
    unseen = (key >= torch.tensor(high)[:, None]) | (key < torch.tensor(low)[:, None])
    mask = torch.zeros(unseen.shape, dtype=layout.dtype).masked_fill_(unseen, -torch.inf)
    return mask.repeat_interleave(layout.heads, 0)[:, None].to(layout.device)
