"""Norms and gated MLPs that keep less for the backward pass than transformers' own.

The modules replace single instances in a loaded model and adopt their children and parameters, so
every parameter keeps its name. What they change is what is remembered: the input of a linear layer
that can be computed again from tensors kept anyway is not kept itself (remake.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from halfbyte.model.fast import buffers
from halfbyte.model.fast.linear import together
from halfbyte.model.fast.remake import Remake, mark

__all__ = ["GatedMlp", "RmsNorm", "replace"]

# Exactly these forward passes were read: y = weight * (x / rms(x)) in float32, rounded before the
# product with the weight; and down(act(gate(x)) * up(x)). Others keep their own modules.
_NORMS = frozenset(
    f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Granite")
)
_MLPS = frozenset(
    f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Granite")
)


def replace(model: nn.Module) -> dict[str, int]:
    """Put these modules in place of those they compute the same as; how many of each kind."""
    counts = {"norms": 0, "mlps": 0}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            kind = type(child).__name__
            if not type(child).__module__.startswith("transformers.models."):
                continue
            if kind in _NORMS:
                setattr(parent, name, RmsNorm(child))
                counts["norms"] += 1
            elif kind in _MLPS:
                setattr(parent, name, GatedMlp(child))
                counts["mlps"] += 1
    return counts


class RmsNorm(nn.Module):
    """weight * x / sqrt(mean(x²) + eps) over the last dimension."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = original.weight
        self.variance_epsilon = float(original.variance_epsilon)
        self.train(original.training)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., H]; the result is made again from the input."""
        x = hidden_states
        y: torch.Tensor
        y, inverse = _RmsNorm.apply(x, self.weight, self.variance_epsilon)
        again = partial(_normed, pool=buffers.current())
        mark(y, Remake(again, (x, self.weight, inverse)))
        return y


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)), keeping the outputs of gate and up and nothing else as wide."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.gate_proj: nn.Module = original.gate_proj
        self.up_proj: nn.Module = original.up_proj
        self.down_proj: nn.Module = original.down_proj
        self.act_fn: nn.Module = original.act_fn
        self.train(original.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., H]."""
        gate, up = together(x, (self.gate_proj, self.up_proj))
        activation = _Activation(self.act_fn)
        product: torch.Tensor = _Gated.apply(gate, up, activation)
        mark(product, Remake(activation.product, (gate, up)))
        y: torch.Tensor = self.down_proj(product)
        return y


class _Activation:
    """act(gate), computed once in the backward pass for the two that want it: the gradient by
    `down`, which comes first and needs act(gate) * up, and that of the product itself.
    """

    def __init__(self, act: nn.Module) -> None:
        self.act, self._pool = act, buffers.current()
        self._done: tuple[torch.Tensor, torch.Tensor] | None = None

    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """act(gate) * up."""
        self._done = self._graph(gate)
        made = buffers.empty(tuple(up.shape), up, self._pool)
        return torch.mul(self._done[1].detach(), up, out=made)

    def take(self, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A `gate` of its own and act of it, with a graph between them."""
        done, self._done = self._done, None
        return done or self._graph(gate)

    def _graph(self, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            own = gate.detach().requires_grad_()
            return own, self.act(own)


def _normed(
    x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, pool: buffers.Pool | None
) -> torch.Tensor:
    """weight * x * inverse. For 16 bits in float32, rounded once: bf16's own products take longer,
    and transformers' second rounding, before that with the weight, is not missed.
    """
    y = buffers.empty(tuple(x.shape), x, pool)
    if x.dtype == inverse.dtype:
        return torch.mul(x, inverse, out=y).mul_(weight)
    return y.copy_(_widened(x, pool).mul_(inverse).mul_(weight))


def _widened(x: torch.Tensor, pool: buffers.Pool | None) -> torch.Tensor:
    """In float32 at least; from the pool, because norms come between tensors that are kept."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == wide:
        return x
    like = torch.empty(0, dtype=wide, device=x.device)
    return buffers.empty(tuple(x.shape), like, pool).copy_(x)


class _RmsNorm(torch.autograd.Function):
    """The norm, and 1 / sqrt(mean(x²) + eps) [..., 1], summed in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # norm of a widened copy: torch's own widening on the way takes longer than both
        ctx.pool = pool = buffers.current()
        wide = _widened(x, pool)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        if wide is x:
            return _normed(x, weight, inverse, pool), inverse
        y = buffers.empty(tuple(x.shape), x, pool)
        return y.copy_(wide.mul_(inverse).mul_(weight)), inverse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        dy = gradients[0]
        x, weight, inverse = ctx.saved_tensors
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (dy * torch.mul(x, inverse)).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, dw, None
        # in float32 throughout: for bf16 that is faster than rounding in between, and nearer
        g, wide = dy * weight.to(inverse.dtype), x.to(inverse.dtype)
        along = torch.linalg.vecdot(g, wide).unsqueeze(-1)
        along = along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return g.mul_(inverse).addcmul_(wide, along).to(x.dtype), dw, None


class _Gated(torch.autograd.Function):
    """act(gate) * up; the derivative of `act` comes from autograd, on the recomputed value."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: _Activation
    ) -> torch.Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        product = buffers.empty(tuple(up.shape), up, buffers.current())
        return torch.mul(activation.act(gate), up, out=product)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        dy = gradients[0]
        gate, up = ctx.saved_tensors
        gate, acted = ctx.activation.take(gate)
        (d_gate,) = torch.autograd.grad(acted, gate, dy * up)
        return d_gate, acted.detach().mul_(dy), None
