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
from halfbyte.model.fast.layout import Block

__all__ = ["NAME", "Layout", "register", "segment_attention"]

NAME = "halfbyte"


@dataclass(slots=True)
class Layout:
    """The blocks of one batch, or its mask for FlexAttention. `layers` counts the calls: a model
    that swallows the argument would attend across rows without anybody noticing.
    """

    blocks: list[Block]
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
    return segment_attention(query, key, value, layout.blocks, scale), None


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: list[Block], scale: float
) -> torch.Tensor:
    """softmax(scale * query keyᵀ) value within the blocks, zero where no block is.

    Shapes: query [R, H, T, D], key and value [R, G, T, D] with H a multiple of G (grouped-query);
    the result is [R, T, H, D].
    """
    result: torch.Tensor = _SegmentAttention.apply(query, key, value, pieces, scale)
    return result


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: list[Block],
        scale: float,
    ) -> torch.Tensor:
        rows, heads, length, width = query.shape
        groups = key.shape[1]
        ctx.pool = buffers.current()
        output = buffers.empty((rows, length, heads, width), query, ctx.pool).zero_()
        for block in pieces:
            q = _queries(query, block, groups).mul(scale)
            p = _softmax(torch.bmm(q, _keys(key, block).mT), block.bias)
            o = torch.bmm(p, _keys(value, block))
            output[block.row, block.start : block.stop] = o.view(heads, -1, width).transpose(0, 1)
        ctx.pieces, ctx.scale = pieces, scale
        ctx.save_for_backward(query, key, value)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        rows, heads, length, width = query.shape
        groups = key.shape[1]
        d_output = gradients[0].transpose(1, 2)
        # laid out as the projections are, so that nothing has to be transposed on the way back
        dq, dk, dv = (
            buffers.empty((rows, length, count, width), query, ctx.pool).zero_().transpose(1, 2)
            for count in (heads, groups, groups)
        )
        for block in ctx.pieces:
            # made again rather than kept: at 256 keys they would be a quarter of all activations
            q = _queries(query, block, groups).mul(ctx.scale)
            p = _softmax(torch.bmm(q, _keys(key, block).mT), block.bias)
            do = _queries(d_output, block, groups)
            _add_keys(dv, block, torch.bmm(p.mT, do))
            ds = torch.bmm(do, _keys(value, block).mT)
            ds = torch._softmax_backward_data(ds, p, -1, p.dtype)  # noqa: SLF001  one pass, no copy
            _add_keys(dk, block, torch.bmm(ds.mT, q))
            part = torch.bmm(ds, _keys(key, block)).mul_(ctx.scale)
            dq[block.row, :, block.start : block.stop] = part.view(heads, -1, width)
        return dq, dk, dv, None, None


def _queries(tensor: torch.Tensor, block: Block, groups: int) -> torch.Tensor:
    """[G, H / G * n, D]: heads that share a key head stand together."""
    part = tensor[block.row, :, block.start : block.stop]
    return part.reshape(groups, -1, part.shape[-1])


def _keys(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """[G, m, D]: a view where the keys are one range."""
    ranges = [tensor[block.row, :, start:stop] for start, stop in block.keys]
    return ranges[0] if len(ranges) == 1 else torch.cat(ranges, dim=1)


def _add_keys(target: torch.Tensor, block: Block, gradient: torch.Tensor) -> None:
    taken = 0
    for start, stop in block.keys:
        target[block.row, :, start:stop] += gradient[:, taken : taken + stop - start]
        taken += stop - start


def _softmax(scores: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Scores [G, H / G * n, m] are changed; sums are in float32 at least."""
    n, width = bias.shape
    scores.view(scores.shape[0], -1, n, scores.shape[-1])[..., -width:] += bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
