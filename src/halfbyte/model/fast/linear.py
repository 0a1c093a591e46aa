"""LoRA on a frozen linear layer as one autograd function, entering through PEFT's module mapping.

Forward: y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ with W made dense just for the product. Backward makes it
dense again instead of keeping it, and keeps only x and the narrow product. A and B stay float32;
products run in the type of x. Everything else (creation, saving, merging, switching) is PEFT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import bnb as peft_bnb
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from halfbyte.model.fast import buffers, dropout, weights
from halfbyte.model.fast.fused import Recipe, recipe_of

__all__ = [
    "Fast",
    "FastLinear",
    "FastLinear4bit",
    "FastLinear8bit",
    "custom_modules",
    "lora_linear",
]


def custom_modules() -> dict[type[nn.Module], type[nn.Module]]:
    """What PEFT's custom-module mapping should use instead of its own LoRA layers.

    The first match wins, and bitsandbytes' layers are nn.Linear too: the order matters.
    """
    return {
        bnb.nn.Linear4bit: FastLinear4bit,
        bnb.nn.Linear8bitLt: FastLinear8bit,
        nn.Linear: FastLinear,
        Conv1D: FastConv1D,
    }


class Fast:
    """The forward pass shared by the layers below; whatever it does not cover goes to PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., in] to [..., out] with the active adapter, or without one where none is."""
        layer: Any = self  # a PEFT layer, by the classes below
        if args or kwargs or self.slow_reason(x) is not None:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # PEFT's
            return result
        base = layer.get_base_layer()
        names = [] if layer.disable_adapters or layer.merged else self._active()
        if not names:
            return lora_linear(x, base)
        name = names[0]
        rate = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
        pair = (layer.lora_A[name].weight, layer.lora_B[name].weight)
        return lora_linear(x, base, pair, layer.scaling[name], rate)

    def slow_reason(self, x: torch.Tensor) -> str | None:
        """Why this input takes PEFT's forward pass; None where it takes ours."""
        assert isinstance(self, LoraLayer)
        names = self._active()
        if len(names) > 1:
            return "several adapters are active at once"
        if any(name in self.lora_variant or self.lora_bias[name] for name in names):
            return "the adapter is more than A and B"
        if self.disable_adapters and self.merged:
            return "a merged adapter has to be taken out first"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        return weights.fault(self.get_base_layer(), x.dtype)

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.lora_A]  # type: ignore[attr-defined]  # LoraLayer's


class FastLinear(Fast, PeftLinear):
    """Over nn.Linear."""


class FastConv1D(Fast, PeftLinear):
    """Over transformers' Conv1D (GPT-2), whose weight lies transposed."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        kwargs["config"].fan_in_fan_out = True
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=True, **kwargs)


class FastLinear4bit(Fast, peft_bnb.Linear4bit):
    """Over bitsandbytes' Linear4bit (NF4 or FP4)."""


class FastLinear8bit(Fast, peft_bnb.Linear8bitLt):
    """Over bitsandbytes' Linear8bitLt; products are with the dequantized weight, so that
    activations are not rounded to 8 bits.
    """


def lora_linear(
    x: torch.Tensor,
    base: Any,
    pair: tuple[torch.Tensor, torch.Tensor] | None = None,
    scale: float = 1.0,
    rate: float = 0.0,
) -> torch.Tensor:
    """x Wᵀ + bias + scale * (drop(x) Aᵀ) Bᵀ, differentiable by x, A and B.

    Shapes: x [..., in]; `base` a frozen linear layer that `weights.fault` accepts; `pair` is A
    [r, in] and B [out, r], or None for the base alone. `rate` is the dropout of x before A.
    """
    a, b = (None, None) if pair is None else pair
    y: torch.Tensor = _LoraLinear.apply(x, a, b, base, _Numbers(scale, rate, recipe_of(x)))
    return y


@dataclass(frozen=True, slots=True)
class _Numbers:
    scale: float
    rate: float
    recipe: Recipe | None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        base: Any,
        numbers: _Numbers,
    ) -> torch.Tensor:
        ctx.base, ctx.scale, ctx.rate = base, numbers.scale, numbers.rate
        ctx.make, ctx.pool = None, buffers.current()
        rows = x.reshape(-1, x.shape[-1])
        weight = weights.dense(base, x.dtype).T
        y = buffers.empty((len(rows), weight.shape[1]), x, ctx.pool)
        if base.bias is None:
            torch.mm(rows, weight, out=y)
        else:
            torch.addmm(base.bias, rows, weight, out=y)
        if a is None or b is None:
            ctx.save_for_backward(None, None, None)
            return y.view(*x.shape[:-1], -1)
        ctx.seed = dropout.draw_seed() if ctx.rate else 0
        dropped = dropout.apply(rows, ctx.rate, ctx.seed) if ctx.rate else rows
        narrow = torch.mm(dropped, a.to(x.dtype).T).mul_(ctx.scale)
        y.addmm_(narrow, b.to(x.dtype).T)
        sources: tuple[torch.Tensor, ...] = (x,)
        if numbers.recipe is not None:
            ctx.make, sources = numbers.recipe.make, numbers.recipe.tensors
        ctx.save_for_backward(a, b, narrow, *sources)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        dy = gradients[0].reshape(-1, gradients[0].shape[-1])
        a, b, narrow, *sources = ctx.saved_tensors
        needs_x, needs_a, needs_b = ctx.needs_input_grad[:3]
        dx = None
        if needs_x:
            weight = weights.dense(ctx.base, dy.dtype)
            dx = torch.mm(dy, weight, out=buffers.empty((len(dy), weight.shape[1]), dy, ctx.pool))
        da = db = None
        if a is not None:
            back = torch.mm(dy, b.to(dy.dtype)).mul_(ctx.scale)
            if needs_b:
                db = torch.mm(dy.T, narrow).to(b.dtype)
            if needs_a:
                da = torch.mm(back.T, _input(ctx, sources)).to(a.dtype)
            if dx is not None and ctx.rate:
                dx.add_(dropout.apply(torch.mm(back, a.to(dy.dtype)), ctx.rate, ctx.seed))
            elif dx is not None:
                dx.addmm_(back, a.to(dy.dtype))
        dx = None if dx is None else dx.view(*gradients[0].shape[:-1], -1)
        return dx, da, db, None, None


def _input(ctx: Any, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """What A was multiplied with: kept, or made again from what was kept; then dropped again."""
    x = sources[0] if ctx.make is None else ctx.make(*sources)
    rows = x.reshape(-1, x.shape[-1])
    return dropout.apply(rows, ctx.rate, ctx.seed) if ctx.rate else rows
