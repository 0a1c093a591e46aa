"""Linear layers that read the same input, as one product, with the adapters of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from halfbyte.errors import InputError
from halfbyte.infer.products import product_for
from halfbyte.model.fast.weights import dense


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One adapter's part in a projection: y += (x @ down) @ up; then, for DoRA, y *= scale.

    down: [in, r]; up: [r, out], LoRA's scale folded in; scale: [out] or None. Of layers side by
    side, the ranks add up and `up` is block-diagonal.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter's weights as they were when it was read: one factor a projection, or None."""

    name: str
    factors: tuple[Factor | None, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows start:stop of a packed input that one adapter answers."""

    start: int
    stop: int
    adapter: Adapter


class Projection:
    """The layers `modules` as one product x [n, in] → [n, out of all of them].

    `copy`: see `product_for`.
    """

    def __init__(
        self, index: int, modules: Sequence[nn.Module], dtype: torch.dtype, copy: bool
    ) -> None:
        self._index = index
        self._dtype = dtype
        self._modules = list(modules)
        layers = [_base_layer(module) for module in modules]
        self._sizes = [int(layer.out_features) for layer in layers]
        self._product, self._bias = product_for(layers, dtype, copy)

    @property
    def kind(self) -> str:
        """The form its weight is held in."""
        return type(self._product).__name__

    def __call__(
        self, x: torch.Tensor, groups: Sequence[Group], residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The product, with each group's adapter, added into `residual` in place where given."""
        factors = [(g, f) for g in groups if (f := g.adapter.factors[self._index]) is not None]
        if residual is not None and all(f.scale is None for _, f in factors):
            return self._adapted(self._product.add_to(residual, x), x, factors)
        out = self._adapted(self._product(x), x, factors)
        return out if residual is None else residual.add_(out)

    def factor(self, name: str) -> Factor | None:
        """This adapter's part, read from PEFT's layers; None if it has none here."""
        found = [_read(module, name, self._dtype) for module in self._modules]
        if not any(found):
            return None
        rank = sum(f.down.shape[1] for f in found if f)
        like = next(f for f in found if f)
        down = torch.cat([f.down for f in found if f], dim=1)
        up = like.up.new_zeros(rank, sum(self._sizes))
        scale = up.new_ones(up.shape[1])
        row = column = 0
        for part, size in zip(found, self._sizes, strict=True):
            if part:
                width = part.up.shape[0]
                up[row : row + width, column : column + size] = part.up
                row += width
                if part.scale is not None:
                    scale[column : column + size] = part.scale
            column += size
        scaled = any(f.scale is not None for f in found if f)
        return Factor(down, up, scale if scaled else None)

    def _adapted(
        self, out: torch.Tensor, x: torch.Tensor, factors: Sequence[tuple[Group, Factor]]
    ) -> torch.Tensor:
        for group, factor in factors:
            part = out[group.start : group.stop]
            part.addmm_(x[group.start : group.stop] @ factor.down, factor.up)
            if factor.scale is not None:
                bias = 0 if self._bias is None else self._bias
                part.sub_(bias).mul_(factor.scale).add_(bias)
        return out


def dense_bytes(modules: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """Bytes the weights of these layers take in `dtype`."""
    layers = [_base_layer(module) for module in modules]
    return sum(int(e.in_features) * int(e.out_features) for e in layers) * dtype.itemsize


def fault(model: nn.Module) -> str:
    """Why a model's adapters cannot be run by projections; empty where they can."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if module.merged:
                return f"{name}: an adapter is merged into its weight"
            if module.lora_embedding_A:
                return f"{name}: an adapter on the embeddings"
            if any(module.lora_bias.values()):
                return f"{name}: an adapter with a bias of its own"
            kinds = {type(variant).__name__ for variant in module.lora_variant.values()}
            if kinds - {"DoraLinearVariant"}:
                return f"{name}: {', '.join(sorted(kinds))}"
        elif type(module).__name__ in ("ModulesToSaveWrapper", "TrainableTokensWrapper"):
            return f"{name}: trained beside the adapter"
    return ""


def _base_layer(module: nn.Module) -> Any:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _read(module: nn.Module, name: str, dtype: torch.dtype) -> Factor | None:
    if not isinstance(module, LoraLayer) or name not in module.lora_A:
        return None
    a, b = _tensor(module.lora_A[name]), _tensor(module.lora_B[name])
    scaling = float(module.scaling[name])
    scale = None
    if name in module.lora_magnitude_vector:
        base = dense(_base_layer(module), torch.float32).detach().float()
        norm = torch.linalg.vector_norm(base + scaling * (b.float() @ a.float()), dim=1)
        scale = (_tensor(module.lora_magnitude_vector[name]) / norm).to(dtype)
    # copies, so that the adapter stays what it was when the row began
    down = a.t().to(dtype, copy=True).contiguous()
    up = (b.float() * scaling).t().to(dtype, copy=True).contiguous()
    return Factor(down, up, scale)


def _tensor(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight.detach()


def check_known(name: str, known: Sequence[str]) -> None:
    """Raise InputError when the model holds no adapter of this name."""
    if name not in known:
        raise InputError(f"adapter {name!r}: the model holds {', '.join(known) or 'none'}")
