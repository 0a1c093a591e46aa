"""Attention over segments, entering through transformers' attention registry.

A model set to NAME computes as with `sdpa`, unless its decoder is called with `layout=Layout(...)`:
then every segment attends to itself and its ancestors, without a mask of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from halfbyte.model.fast import buffers, flex
from halfbyte.model.fast.layout import Bundles, Part, Plan
from halfbyte.model.fast.rotary import Angles

__all__ = ["NAME", "Layout", "attended", "register", "segment_attention", "three_gradients"]

NAME = "halfbyte"


@dataclass(slots=True)
class Layout:
    """The bundles of one batch, or its mask for FlexAttention. `layers` counts the calls: a model
    that swallows the argument would attend across rows without anybody noticing.
    """

    bundles: Bundles
    mask: BlockMask | None = None
    layers: int = field(default=0)
    _angles: Angles | None = field(default=None, repr=False)

    def angles_of(self, turns: tuple[torch.Tensor, torch.Tensor], scale: float) -> Angles:
        """The turns of queries and keys, laid out for all layers that have the same."""
        if self._angles is None or not self._angles.fits(turns, scale):
            self._angles = Angles(turns, scale)
        return self._angles


def register() -> None:
    """Make NAME known to transformers, beside its own implementations. Idempotent."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query [R, H, T, D], key and value [R, G, T, D]; the output is [R, T, H, D]."""
    if layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    layout.layers += 1
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if layout.mask is not None:
        return flex.attend(query, key, value, layout.mask, scale), None
    return segment_attention(query, key, value, layout.bundles, scale), None


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Bundles, scale: float
) -> torch.Tensor:
    """softmax(scale * query keyᵀ) value within the bundles, zero where none is.

    Shapes: query [R, H, T, D], key and value [R, G, T, D] with H a multiple of G (grouped-query);
    the result is [R, T, H, D].
    """
    # as the projections lay them: rows of all places and heads can then be picked one by one
    laid = (one.transpose(1, 2) for one in (query * scale, key, value))
    result: torch.Tensor = _SegmentAttention.apply(*laid, pieces)
    return result


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Bundles
    ) -> torch.Tensor:
        ctx.pool, ctx.pieces = buffers.current(), pieces
        three = (query.contiguous(), key.contiguous(), value.contiguous())
        ctx.save_for_backward(*three)
        return attended(three, pieces, ctx.pool)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        d_output = gradients[0].contiguous()
        return *three_gradients(ctx.saved_tensors, d_output, ctx.pieces, ctx.pool), None


Three = tuple[torch.Tensor, ...]  # contiguous: scaled query [R, T, H, D], key, value [R, T, G, D]


def attended(qkv: Three, pieces: Bundles, pool: buffers.Pool | None) -> torch.Tensor:
    """`segment_attention` of scaled queries, without a graph."""
    query, key, _ = qkv
    plan = pieces.plan(query.shape[2], key.shape[2])
    answers = _Answers(plan, query, pool)
    flat = _flat(qkv)
    for part in plan.parts:
        _, _, p = _probabilities(flat, part)
        torch.bmm(p, _picked(flat[2], part.keys, p.shape[0]), out=answers.next(p))
    return answers.laid()


def three_gradients(
    qkv: Three, d_output: torch.Tensor, pieces: Bundles, pool: buffers.Pool | None
) -> Three:
    """The gradients by `qkv`; `d_output` [R, T, H, D], contiguous, is that by the output."""
    query, key, _ = qkv
    plan = pieces.plan(query.shape[2], key.shape[2])
    by_queries = _Answers(plan, query, pool)
    by_keys, by_values = (
        buffers.empty((plan.keys.shape[0], key.shape[-1]), key, pool) for _ in range(2)
    )
    first, flat, d_flat = 0, _flat(qkv), d_output.view(-1, d_output.shape[-1])
    for part in plan.parts:
        # made again rather than kept: at 256 keys they would be a quarter of all activations
        q, k, p = _probabilities(flat, part)
        here = slice(first, first + part.keys.shape[0])
        first = here.stop
        do = d_flat.index_select(0, part.queries)
        if part.blank.shape[0]:
            do.index_fill_(0, part.blank, 0)
        do = do.view(q.shape)
        torch.bmm(p.mT, do, out=by_values[here].view(k.shape))
        ds = torch.bmm(do, _picked(flat[2], part.keys, p.shape[0]).mT)
        ds = torch._softmax_backward_data(ds, p, -1, p.dtype)  # noqa: SLF001  one pass, no copy
        torch.bmm(ds.mT, q, out=by_keys[here].view(k.shape))
        torch.bmm(ds, k, out=by_queries.next(ds))
    summed = tuple(
        buffers.empty(tuple(key.shape), key, pool).zero_()
        for _ in range(2)  # by keys, by values
    )
    for one, found in zip(summed, (by_keys, by_values), strict=True):
        one.view(-1, one.shape[-1]).index_add_(0, plan.keys, found)
    return by_queries.laid(), *summed


class _Answers:
    """What the parts of a plan give for their queries, laid out by places at the end."""

    def __init__(self, plan: Plan, query: torch.Tensor, pool: buffers.Pool | None) -> None:
        self._plan, self._query, self._pool, self._stop = plan, query, pool, 0
        count, width = sum(part.queries.shape[0] for part in plan.parts), query.shape[-1]
        self._rows = buffers.empty((count + 1, width), query, pool)
        self._rows[-1].zero_()

    def next(self, scores: torch.Tensor) -> torch.Tensor:
        """Where the next part's answers go: [B G, n, D] for scores [B G, n, m]."""
        start, count = self._stop, scores.shape[0] * scores.shape[1]
        self._stop += count
        return self._rows[start : self._stop].view(*scores.shape[:2], -1)

    def laid(self) -> torch.Tensor:
        """[R, T, H, D]."""
        found = buffers.empty(tuple(self._query.shape), self._query, self._pool)
        torch.index_select(self._rows, 0, self._plan.answers, out=found.view(-1, found.shape[-1]))
        return found


def _flat(qkv: Three) -> Three:
    """Rows [places * heads, D] of each."""
    return tuple(one.view(-1, one.shape[-1]) for one in qkv)


def _probabilities(flat: Three, part: Part) -> Three:
    """The part's queries [B G, H / G n, D] and keys [B G, m, D], and the attention of the ones to
    the others.
    """
    query, key, _ = flat
    members, _, n, last = part.bias.shape
    k = _picked(key, part.keys, part.pairs)
    q = _picked(query, part.queries, part.pairs)
    scores = torch.bmm(q, k.mT)
    scores.view(members, -1, n, scores.shape[-1])[..., -last:].add_(part.bias)
    # of 16-bit scores torch's softmax sums in float32 and rounds once, without a float32 copy
    return q, k, torch.softmax(scores, dim=-1)


def _picked(flat: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of [places * heads, D] as [count, n, D]."""
    return flat.index_select(0, rows).view(count, -1, flat.shape[-1])
