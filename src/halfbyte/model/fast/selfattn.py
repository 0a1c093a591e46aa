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
from halfbyte.model.fast.attention import Layout, Three, attended, three_gradients
from halfbyte.model.fast.layout import Bundles
from halfbyte.model.fast.linear import together
from halfbyte.model.fast.mixins import mix_in

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
        output = rotary_attention(three, position_embeddings, layout.bundles, module.scaling)
        return module.o_proj(output.flatten(2)), None


def rotary_attention(
    qkv: Sequence[torch.Tensor],
    turns: tuple[torch.Tensor, torch.Tensor],
    pieces: Bundles,
    scale: float,
) -> torch.Tensor:
    """Attention [R, T, H, D] of q [R, T, H D] and k, v [R, T, G D].

    `turns`: cosines and sines [R, T, D], as transformers' rotary embeddings give them.
    """
    output: torch.Tensor = _RotaryAttention.apply((pieces, scale), *turns, *qkv)
    return output


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Bundles, float],
        cos: torch.Tensor,
        sin: torch.Tensor,
        *qkv: torch.Tensor,
    ) -> torch.Tensor:
        (ctx.pieces, ctx.scale), ctx.pool = how, buffers.current()
        q, k, v = _heads(qkv, cos)
        # the turn scales the queries too
        q = _turned(q, cos * ctx.scale, sin * ctx.scale, ctx.pool)
        k = _turned(k, cos, sin, ctx.pool)
        ctx.save_for_backward(q, k, v, cos, sin)
        return attended((q, k, v), ctx.pieces, ctx.pool)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        *three, cos, sin = ctx.saved_tensors
        d_output = gradients[0].contiguous()
        dq, dk, dv = three_gradients(tuple(three), d_output, ctx.pieces, ctx.pool)
        dq = _turned(dq, cos * ctx.scale, sin * ctx.scale, ctx.pool, back=True)
        dk = _turned(dk, cos, sin, ctx.pool, back=True)
        return None, None, None, *(one.flatten(2) for one in (dq, dk, dv))


def _heads(qkv: Sequence[torch.Tensor], cos: torch.Tensor) -> Three:
    """[R, T, heads D] as [R, T, heads, D]."""
    return tuple(one.unflatten(-1, (-1, cos.shape[-1])) for one in qkv)


def _turned(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    pool: buffers.Pool | None,
    *,
    back: bool = False,
) -> torch.Tensor:
    """x [R, T, heads, D] turned by its angles (arXiv:2104.09864), the halves of D being the two
    coordinates; `back`: by the transposed turn, which is what gradients need.
    """
    half, sin = x.shape[-1] // 2, sin.unsqueeze(2)
    y = torch.mul(x, cos.unsqueeze(2), out=buffers.empty(tuple(x.shape), x, pool))
    first, second = (1.0, -1.0) if back else (-1.0, 1.0)
    of_first, of_second = (half, 0) if back else (0, half)
    y[..., :half].addcmul_(x[..., half:], sin[..., of_first : of_first + half], value=first)
    y[..., half:].addcmul_(x[..., :half], sin[..., of_second : of_second + half], value=second)
    return y
