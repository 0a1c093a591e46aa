"""Self-attention of Llama-shaped models from one product for q, k and v to the output projection.

transformers' modules stay what they are, as instances of a class of their own that differs in one
case: called with a layout of blocks, q, k and v are computed together, turned in place by their
rotary embedding and attended to block by block, in one function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from halfbyte.model.fast import buffers
from halfbyte.model.fast.attention import Layout, attended, three_gradients
from halfbyte.model.fast.layout import Bundles
from halfbyte.model.fast.linear import together
from halfbyte.model.fast.mixins import mix_in
from halfbyte.model.fast.rotary import Angles, turned

__all__ = ["JointAttention", "replace", "rotary_attention"]

# Exactly these forward passes were read: projections without norms, the rotary embedding over the
# whole head, `scaling`, and no dropout or cap where a layout is given (parts.route_of).
_KNOWN = frozenset(
    f"{name}Attention" for name in ("Llama", "Mistral", "Mixtral", "Qwen2", "Gemma", "Granite")
)


def replace(model: nn.Module) -> int:
    """Make the attention modules known here instances of `JointAttention`; how many there are."""
    return mix_in(model, JointAttention, _KNOWN)


class JointAttention:
    """Mixed into transformers' attention classes (`replace`)."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        *args: Any,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[R, T, width] to the same; whatever else than blocks is asked for is transformers'."""
        module: Any = self
        if layout is None or layout.mask is not None:
            kwargs |= {} if layout is None else {"layout": layout}
            result: tuple[torch.Tensor, torch.Tensor | None]
            result = super().forward(hidden_states, position_embeddings, *args, **kwargs)  # type: ignore[misc]  # transformers'
            return result
        layout.layers += 1
        layers = (module.q_proj, module.k_proj, module.v_proj)
        three = together(hidden_states, layers)
        angles = layout.angles_of(position_embeddings, module.scaling)
        output = rotary_attention(three, angles, layout.bundles)
        return module.o_proj(output.flatten(2)), None


def rotary_attention(qkv: Sequence[torch.Tensor], angles: Angles, pieces: Bundles) -> torch.Tensor:
    """Attention [R, T, H, D] of q [R, T, H D] and k, v [R, T, G D]."""
    output: torch.Tensor = _RotaryAttention.apply(angles, pieces, *qkv)
    return output


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Angles, pieces: Bundles, *qkv: torch.Tensor) -> torch.Tensor:
        ctx.angles, ctx.pieces, ctx.pool = angles, pieces, buffers.current()
        width = angles.keys[0].shape[-1]
        q, k, v = (one.unflatten(-1, (-1, width)) for one in qkv)
        q = turned(q, angles.queries, ctx.pool)
        k = turned(k, angles.keys, ctx.pool)
        ctx.save_for_backward(q, k, v)
        return attended((q, k, v), pieces, ctx.pool)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        angles, pool = ctx.angles, ctx.pool
        d_output = gradients[0].contiguous()
        dq, dk, dv = three_gradients(ctx.saved_tensors, d_output, ctx.pieces, pool)
        dq = turned(dq, angles.queries, pool, back=True)
        dk = turned(dk, angles.keys, pool, back=True)
        return None, None, *(one.flatten(2) for one in (dq, dk, dv))
