"""Attention over segments, entering through transformers' attention registry.

A model set to NAME computes as with `sdpa`, unless its decoder is called with `layout=Layout(...)`:
then every segment attends to itself and its ancestors, without a mask of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from halfbyte.model.fast import buffers, flex
from halfbyte.model.fast.layout import Bundle, Range

__all__ = ["NAME", "Layout", "add_gradients", "attended", "register", "segment_attention"]

NAME = "halfbyte"


@dataclass(slots=True)
class Layout:
    """The bundles of one batch, or its mask for FlexAttention. `layers` counts the calls: a model
    that swallows the argument would attend across rows without anybody noticing.
    """

    bundles: list[Bundle]
    mask: BlockMask | None = None
    layers: int = field(default=0)


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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: list[Bundle], scale: float
) -> torch.Tensor:
    """softmax(scale * query keyᵀ) value within the bundles, zero where none is.

    Shapes: query [R, H, T, D], key and value [R, G, T, D] with H a multiple of G (grouped-query);
    the result is [R, T, H, D].
    """
    result: torch.Tensor = _SegmentAttention.apply(query * scale, key, value, pieces)
    return result


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: list[Bundle],
    ) -> torch.Tensor:
        ctx.pool, ctx.pieces = buffers.current(), pieces
        ctx.save_for_backward(query, key, value)
        return attended((query, key, value), pieces, ctx.pool)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        rows, _, length, width = saved[0].shape
        # laid out as the projections are, so that nothing has to be transposed on the way back
        found = tuple(
            buffers.empty((rows, length, one.shape[1], width), one, ctx.pool).zero_()
            for one in saved
        )
        found = tuple(one.transpose(1, 2) for one in found)
        add_gradients(found, saved, gradients[0].transpose(1, 2), ctx.pieces)
        return *found, None


Three = tuple[torch.Tensor, ...]  # scaled query [R, H, T, D], key and value [R, G, T, D]


def attended(qkv: Three, pieces: list[Bundle], pool: buffers.Pool | None) -> torch.Tensor:
    """`segment_attention` of scaled queries, without a graph."""
    query, _, value = qkv
    rows, heads, length, width = query.shape
    output = buffers.empty((rows, length, heads, width), query, pool).zero_()
    into = output.transpose(1, 2)
    for bundle in pieces:
        _, _, p = _probabilities(qkv, bundle)
        _put(into, bundle.queries, torch.bmm(p, _gather(value, bundle.keys, bundle.columns)))
    return output


def add_gradients(found: Three, qkv: Three, d_output: torch.Tensor, pieces: list[Bundle]) -> None:
    """Add to `found`, zeros of the shapes of `qkv`, the gradients by them; `d_output` [R, H, T, D]
    is that by the output.
    """
    (dq, dk, dv), value = found, qkv[2]
    for bundle in pieces:
        # made again rather than kept: at 256 keys they would be a quarter of all activations
        q, k, p = _probabilities(qkv, bundle)
        do = _gather(d_output, bundle.queries, bundle.rows).reshape(q.shape)
        _put(dv, bundle.keys, torch.bmm(p.mT, do), add=True)
        ds = torch.bmm(do, _gather(value, bundle.keys, bundle.columns).mT)
        ds = torch._softmax_backward_data(ds, p, -1, p.dtype)  # noqa: SLF001  one pass, no copy
        _put(dk, bundle.keys, torch.bmm(ds.mT, q), add=True)
        _put(dq, bundle.queries, torch.bmm(ds, k))


def _probabilities(qkv: Three, bundle: Bundle) -> Three:
    """The bundle's queries [B G, H / G n, D] and keys [B G, m, D], and the attention of the ones to
    the others.
    """
    query, key, _ = qkv
    k = _gather(key, bundle.keys, bundle.columns)
    q = _gather(query, bundle.queries, bundle.rows).reshape(len(k), -1, k.shape[-1])
    scores = torch.bmm(q, k.mT)
    members, _, n, last = bundle.bias.shape
    scores.view(members, -1, n, scores.shape[-1])[..., -last:] += bundle.bias
    # of 16-bit scores torch's softmax sums in float32 and rounds once, without a float32 copy
    return q, k, torch.softmax(scores, dim=-1)


def _gather(source: torch.Tensor, ranges: Sequence[Sequence[Range]], size: int) -> torch.Tensor:
    """Places of [R, heads, T, D] as [B heads, size, D], zeros behind those of each member: heads
    that share a key head stand together.
    """
    heads, width = source.shape[1], source.shape[3]
    if len(ranges) == len(ranges[0]) == 1 and ranges[0][0][2] - ranges[0][0][1] == size:
        row, start, stop = ranges[0][0]
        return source[row, :, start:stop]
    found = source.new_zeros(len(ranges), heads, size, width)
    for member, parts in zip(found, ranges, strict=True):
        taken = 0
        for row, start, stop in parts:
            member[:, taken : taken + stop - start] = source[row, :, start:stop]
            taken += stop - start
    return found.view(-1, size, width)


def _put(
    target: torch.Tensor,
    ranges: Sequence[Sequence[Range]],
    values: torch.Tensor,
    *,
    add: bool = False,
) -> None:
    """The way back: rows of [B G, H / G n, D] to their places in [R, H, T, D]."""
    heads, width = target.shape[1], target.shape[3]
    for member, parts in zip(values.view(len(ranges), heads, -1, width), ranges, strict=True):
        taken = 0
        for row, start, stop in parts:
            part = member[:, taken : taken + stop - start]
            places = target[row, :, start:stop]
            if add:
                places += part
            else:
                places.copy_(part)
            taken += stop - start
