"""Norms and gated MLPs that keep less for the backward pass than transformers' own.

The modules replace single instances in a loaded model and adopt their children and parameters, so
every parameter keeps its name. What they change is what is remembered: the input of a linear layer
that can be computed again from tensors kept anyway is not kept itself (remake.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from halfbyte.model.fast import buffers
from halfbyte.model.fast.linear import together
from halfbyte.model.fast.remake import Product, Remake, mark

__all__ = ["GatedMlp", "RmsNorm", "replace"]

# Exactly these forward passes were read: y = weight * (x / rms(x)) in float32, rounded before the
# product with the weight; and down(act(gate(x)) * up(x)). Others keep their own modules.
_NORMS = frozenset(
    f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Granite")
)
_MLPS = frozenset(
    f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Granite")
)
# transformers' activations, and torch's kernels for them and their gradients that write into a
# given tensor; of others the gradient comes from autograd, into new memory.
_ATEN = torch.ops.aten
_KERNELS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "SiLUActivation": (_ATEN.silu.out, _ATEN.silu_backward.grad_input),
    "GELUActivation": (_ATEN.gelu.out, _ATEN.gelu_backward.grad_input),
    "GELUTanh": (
        partial(_ATEN.gelu.out, approximate="tanh"),
        partial(_ATEN.gelu_backward.grad_input, approximate="tanh"),
    ),
}


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
        """[..., H] to [..., H]; who wants the result again takes the input and its scales."""
        x = hidden_states
        y: torch.Tensor
        y, inverse = _RmsNorm.apply(x, self.weight, self.variance_epsilon)
        mark(y, Remake(Product, (x, inverse, self.weight)))
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
        mark(product, Remake(activation.again, (gate, up)))
        y: torch.Tensor = self.down_proj(product)
        return y


class _Activation:
    """act(gate), computed once in the backward pass for the two that want it: the gradient by
    `down`, which comes first and needs act(gate) * up, and that of the product itself.

    Whatever is as wide as the MLP comes from the pool. In the heap it lay between gradients of
    adapters, which are kept, and could leave a hole of its size in every layer: up to 360 MB for
    2,000 places of SmolLM2 in float32.
    """

    def __init__(self, act: nn.Module) -> None:
        self._act, self._pool = act, buffers.current()
        self._kernels = _KERNELS.get(type(act).__name__)
        self._done: torch.Tensor | None = None

    def again(self, gate: torch.Tensor, up: torch.Tensor) -> Product:
        """act(gate) * up; act(gate) is kept for `gradients`."""
        self._done = self.of(gate)
        return Product(torch.mul(self._done, up, out=self._empty(up)))

    def of(self, gate: torch.Tensor) -> torch.Tensor:
        """act(gate), in memory of its own."""
        made = self._empty(gate)
        if self._kernels is None:
            return made.copy_(self._act(gate))
        return self._kernels[0](gate, out=made)

    def gradients(
        self, dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By gate and by up, for `dy`, that by the product."""
        done, self._done = self._done, None
        acted = self.of(gate) if done is None else done
        by_acted = torch.mul(dy, up, out=self._empty(up))
        if self._kernels is None:
            with torch.enable_grad():
                own = gate.detach().requires_grad_()
                (by_gate,) = torch.autograd.grad(self._act(own), own, by_acted)
        else:
            by_gate = self._kernels[1](by_acted, gate, grad_input=by_acted)
        return by_gate, acted.mul_(dy)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return buffers.empty(tuple(like.shape), like, self._pool)


def _widened(x: torch.Tensor, pool: buffers.Pool | None) -> torch.Tensor:
    """In float32 at least; from the pool, because norms come between tensors that are kept."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == wide:
        return x
    like = torch.empty(0, dtype=wide, device=x.device)
    return buffers.empty(tuple(x.shape), like, pool).copy_(x)


class _RmsNorm(torch.autograd.Function):
    """The norm, and 1 / sqrt(mean(x²) + eps) [..., 1], summed in float32 at least.

    16 bits are rounded once: bf16's own products take longer than float32's, and transformers'
    second rounding, before that with the weight, is not missed.
    """

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
        y = buffers.empty(tuple(x.shape), x, pool)
        if wide is x:
            return torch.mul(x, inverse, out=y).mul_(weight), inverse
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
        wide = _widened(x, ctx.pool)
        g, both = (buffers.empty(tuple(x.shape), wide, ctx.pool) for _ in range(2))
        torch.mul(dy, weight.to(inverse.dtype), out=g)
        along = torch.mul(g, wide, out=both).sum(dim=-1, keepdim=True)
        along = along.mul_(inverse).mul_(inverse).mul_(inverse)
        g.mul_(inverse).addcmul_(wide, along, value=-1 / x.shape[-1])
        return g if wide is x else buffers.empty(tuple(x.shape), x, ctx.pool).copy_(g), dw, None


class _Gated(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: _Activation
    ) -> torch.Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return activation.of(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return *ctx.activation.gradients(gradients[0], *ctx.saved_tensors), None
