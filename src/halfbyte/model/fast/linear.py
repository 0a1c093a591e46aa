"""LoRA on frozen linear layers as one autograd function, entering through PEFT's module mapping.

Forward: y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ with W made dense just for the product. Backward makes it
dense again instead of keeping it, and keeps only x and the narrow product. A and B stay float32;
products run in the type of x. Layers with one input (q, k, v; gate, up) are computed together:
their input is kept or made again once, and the gradients by it add up in the products themselves.
Everything else (creation, saving, merging, switching) is PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import bnb as peft_bnb
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from halfbyte.model.fast import buffers, dropout, weights
from halfbyte.model.fast.remake import Product, Remake, remake_of

__all__ = [
    "Fast",
    "FastLinear",
    "FastLinear4bit",
    "FastLinear8bit",
    "Member",
    "custom_modules",
    "lora_linears",
    "prepared",
    "together",
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

    _ready: tuple[torch.dtype, Member] | None = None  # while `prepared`

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., in] to [..., out] with the active adapter, or without one where none is."""
        member = None if args or kwargs else self.member(x)
        if member is None:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # PEFT's
            return result
        return lora_linears(x, [member])[0]

    def member(self, x: torch.Tensor) -> Member | None:
        """What `lora_linears` computes for this layer and input; None where PEFT's pass has to."""
        if self._ready is not None and self._ready[0] == x.dtype:
            return self._ready[1]
        return self._member(x.dtype, x.device.type)

    def _member(self, dtype: torch.dtype, device: str) -> Member | None:
        layer: Any = self  # a PEFT layer, by the classes below
        base = layer.get_base_layer()
        if weights.fault(base, dtype) is not None or torch.is_autocast_enabled(device):
            return None
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        if len(names) > 1 or any(name in layer.lora_variant for name in names):
            return None  # several at once, or one that is more than A and B
        if layer.merged or layer.disable_adapters:
            # a merged adapter that is switched off has to be taken out first
            return None if layer.merged and layer.disable_adapters else Member(base)
        if not names:
            return Member(base)
        (name,) = names
        if layer.lora_bias[name]:
            return None
        rate = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
        pair = (layer.lora_A[name].weight, layer.lora_B[name].weight)
        return Member(base, pair, layer.scaling[name], rate)


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


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One linear layer of `lora_linears`: `base` is a frozen one that `weights.fault` accepts;
    `pair` is A [r, in] and B [out, r], or None for the base alone; `rate` the dropout before A.
    `cast`: scale * A and B in the type of the products, where somebody has made them.
    """

    base: Any
    pair: tuple[torch.Tensor, torch.Tensor] | None = None
    scale: float = 1.0
    rate: float = 0.0
    cast: tuple[torch.Tensor, torch.Tensor] | None = None

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """scale * A and B in `dtype`."""
        assert self.pair is not None
        a, b = self.pair
        return self.cast or ((a * self.scale).to(dtype), b.to(dtype))


@contextmanager
def prepared(layers: Sequence[Fast], dtype: torch.dtype, device: str) -> Iterator[None]:
    """For the block: what the layers compute is looked up once, and the factors of small ones are
    cast to `dtype` all at once. One by one, forward and backward, that cost a small model 3 % of a
    step.

    Whatever computes a layer again later finds nothing prepared, and makes the same numbers.
    """
    looked = [(layer, layer._member(dtype, device)) for layer in layers]  # noqa: SLF001  its own class's
    some = [(layer, member) for layer, member in looked if member is not None]
    members = _cast([member for _, member in some], dtype)
    for (layer, _), member in zip(some, members, strict=True):
        layer._ready = (dtype, member)  # noqa: SLF001
    try:
        yield
    finally:
        for layer, _ in some:
            layer._ready = None  # noqa: SLF001


@torch.no_grad()
def _cast(members: Sequence[Member], dtype: torch.dtype) -> list[Member]:
    """The members, small ones with their `factors` if those are of another type: made in a few
    calls, views of one block of memory.
    """
    small = [one for one in members if one.pair is not None and weights.small(one.base)]
    pairs = [one.pair for one in small if one.pair is not None]
    if not pairs or dtype == torch.float32:
        return list(members)
    downs = torch._foreach_mul([a for a, _ in pairs], [one.scale for one in small])  # noqa: SLF001
    found = [*downs, *(b for _, b in pairs)]
    flat = torch.empty(sum(map(torch.Tensor.numel, found)), dtype=dtype, device=found[0].device)
    parts = flat.split([one.numel() for one in found])
    views = [part.view(one.shape) for part, one in zip(parts, found, strict=True)]
    torch._foreach_copy_(views, found)
    casts = zip(views[: len(pairs)], views[len(pairs) :], strict=True)
    made = {one: replace(one, cast=cast) for one, cast in zip(small, casts, strict=True)}
    return [made.get(one, one) for one in members]


def together(x: torch.Tensor, layers: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """The outputs of several linear layers of one input: in one function where they allow it."""
    members = _members(x, layers)
    return [layer(x) for layer in layers] if members is None else lora_linears(x, members)


def _members(x: torch.Tensor, layers: Sequence[nn.Module]) -> list[Member] | None:
    """What the layers compute; None where they have to be called one by one."""
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):  # noqa: SLF001  nn.Module has no other question for it
        return None
    members = []
    for layer in layers:
        if isinstance(layer, Fast):
            member = layer.member(x)
            if member is None:
                return None
            members.append(member)
        elif weights.fault(layer, x.dtype) is None and not torch.is_autocast_enabled(x.device.type):
            members.append(Member(layer))
        else:
            return None
    if len({member.rate for member in members if member.pair is not None}) > 1:
        return None
    return members


def lora_linears(x: torch.Tensor, members: Sequence[Member]) -> tuple[torch.Tensor, ...]:
    """x Wᵀ + bias + scale * (drop(x) Aᵀ) Bᵀ of each member, differentiable by x, A and B.

    x [..., in] gives [..., out]. Members with an adapter have one dropout rate, and one mask: it
    is the same x that they drop.
    """
    adapted = [member for member in members if member.pair is not None]
    pairs = tuple(factor for member in adapted for factor in member.pair or ())
    group = _Group(tuple(members), adapted[0].rate if adapted else 0.0, pairs)
    found: tuple[torch.Tensor, ...] = _LoraLinears.apply(x, remake_of(x), group, *pairs)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """`pairs`: A and B of each member that has an adapter."""

    members: tuple[Member, ...]
    rate: float
    pairs: tuple[torch.Tensor, ...]

    def split(self, narrow: torch.Tensor, dim: int) -> Sequence[torch.Tensor]:
        """Each adapter's part of a tensor that is Σr long in this dimension."""
        ranks = [a.shape[0] for a in self.pairs[::2]]
        return (narrow,) if len(ranks) == 1 else narrow.split(ranks, dim)

    def adapted(self, each: Sequence[torch.Tensor]) -> list[tuple[Member, torch.Tensor]]:
        """The members with an adapter, and of `each`, one a member, what is theirs."""
        both = zip(self.members, each, strict=True)
        return [(member, one) for member, one in both if member.pair is not None]

    def factors(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """All scale * A, one below the other [Σ r, in], and each B."""
        found = [one.factors(dtype) for one in self.members if one.pair is not None]
        downs = [down for down, _ in found]
        return torch.cat(downs) if len(downs) > 1 else downs[0], [up for _, up in found]


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, remake: Remake | None, group: _Group, *pairs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.group, ctx.pool, ctx.make = group, buffers.current(), None
        rows = x.reshape(-1, x.shape[-1])
        outs = (weights.features(member.base)[1] for member in group.members)
        found = tuple(buffers.empty((*x.shape[:-1], one), x, ctx.pool) for one in outs)
        flat = [y.view(rows.shape[0], -1) for y in found]
        for member, y in zip(group.members, flat, strict=True):
            _product(rows, member.base, y, ctx.pool)
        if not pairs:
            return found
        ctx.seed = dropout.draw_seed() if group.rate else 0
        dropped = dropout.apply(rows, group.rate, ctx.seed) if group.rate else rows
        downs, ups = group.factors(x.dtype)
        narrow = buffers.empty((rows.shape[0], downs.shape[0]), x, ctx.pool)
        torch.mm(dropped, downs.T, out=narrow)
        each = zip(group.adapted(flat), ups, group.split(narrow, 1), strict=True)
        for (_, y), up, few in each:
            y.addmm_(few, up.T)
        sources: tuple[torch.Tensor, ...] = (x,)
        if remake is not None:
            ctx.make, sources = remake.make, remake.tensors
        # A and B are in the group: what is saved for the backward pass is watched, at a price
        ctx.save_for_backward(narrow, *sources)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        group, shape = ctx.group, gradients[0].shape
        by_outputs = [one.reshape(-1, one.shape[-1]) for one in gradients]
        dx = None
        if ctx.needs_input_grad[0]:
            for member, dy in zip(group.members, by_outputs, strict=True):
                dx = _by_input(dx, dy, member.base, ctx.pool)
        adapted = group.adapted(by_outputs)
        by_pairs = _by_pairs(ctx, adapted, dx) if adapted else ()
        dx = None if dx is None else dx.view(*shape[:-1], -1)
        return dx, None, None, *by_pairs


def _product(rows: torch.Tensor, base: Any, y: torch.Tensor, pool: buffers.Pool | None) -> None:
    """Write rows Wᵀ + bias [n, out] into y."""
    for some, weight in weights.slabs(base, rows.dtype, pool):
        here = y if some is None else y[:, some]
        if base.bias is None:
            torch.mm(rows, weight.T, out=here)
        else:
            torch.addmm(base.bias if some is None else base.bias[some], rows, weight.T, out=here)
        del weight  # before the next slab is made


def _by_input(
    dx: torch.Tensor | None, dy: torch.Tensor, base: Any, pool: buffers.Pool | None
) -> torch.Tensor:
    """dx + dy W [n, in], in place. One slab of dense weights at a time: of a 7B model a whole one
    is up to 235 MB.
    """
    for some, weight in weights.slabs(base, dy.dtype, pool):
        here = dy if some is None else dy[:, some]
        if dx is None:
            dx = buffers.empty((dy.shape[0], weight.shape[1]), dy, pool)
            torch.mm(here, weight, out=dx)
        else:
            dx.addmm_(here, weight)
        del weight  # before the next slab is made
    assert dx is not None
    return dx


def _by_pairs(
    ctx: Any, adapted: Sequence[tuple[Member, torch.Tensor]], dx: torch.Tensor | None
) -> list[torch.Tensor | None]:
    """The gradients by each A and B; what reaches x through the adapters is added to dx. `adapted`:
    members and the gradients [n, out] by their outputs.
    """
    group, needed = ctx.group, ctx.needs_input_grad[3:]
    narrow, *sources = ctx.saved_tensors
    pairs, (downs, ups) = group.pairs, group.factors(narrow.dtype)
    found: list[torch.Tensor | None] = [None] * len(pairs)
    back = torch.empty_like(narrow)
    each = zip(adapted, ups, group.split(narrow, 1), group.split(back, 1), strict=True)
    for place, ((_, dy), up, few, back_few) in enumerate(each):
        torch.mm(dy, up, out=back_few)
        if needed[2 * place + 1]:
            # the narrow product is scaled already
            found[2 * place + 1] = by_b = torch.empty_like(pairs[2 * place + 1])
            _across(dy, few, by_b)
    if any(needed[::2]):
        x = _input(ctx, sources)
        left = back if x.rows is None else (back * x.rows.reshape(-1, 1)).to(back.dtype)
        by_a = torch.empty(downs.shape, dtype=pairs[0].dtype, device=downs.device)
        _across(x.middle, left, by_a.T)
        if x.columns is not None:
            by_a.mul_(x.columns)
        for place, ((member, _), own) in enumerate(zip(adapted, group.split(by_a, 0), strict=True)):
            found[2 * place] = own.mul_(member.scale)
    if dx is not None and group.rate:
        dx.add_(dropout.apply(torch.mm(back, downs), group.rate, ctx.seed))
    elif dx is not None:
        dx.addmm_(back, downs)
    return found


def _across(wide: torch.Tensor, narrow: torch.Tensor, out: torch.Tensor) -> None:
    """Write wideᵀ narrow, [n, width] by [n, r], into out. In 16 bits its transpose is quicker to
    make: 220 against 324 µs for bf16 [1024, 1536] by [1024, 16], but 720 against 593 in float32
    (AVX-512, two threads).
    """
    if wide.dtype == out.dtype:
        torch.mm(wide.T, narrow, out=out)
    else:
        out.copy_(torch.mm(narrow.T, wide).T)


def _input(ctx: Any, sources: Sequence[torch.Tensor]) -> Product:
    """What A was multiplied with: kept, or made again from what was kept; then dropped again."""
    x = Product(sources[0]) if ctx.make is None else ctx.make(*sources)
    middle = x.middle.reshape(-1, x.middle.shape[-1])
    if ctx.group.rate:
        middle = dropout.apply(middle, ctx.group.rate, ctx.seed)
    return x._replace(middle=middle)
