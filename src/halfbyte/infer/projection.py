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
    """One adapter's part in a projection: y += (x @ down) @ up; then, for DoRA, y * scale + shift.

    down: [in, r]; up: [r, out], LoRA's scale folded in. Of layers side by side the ranks add up,
    and `up` is block-diagonal. rescale: [2, out], DoRA's scale and what keeps the bias as it was;
    empty for others. All three are empty where the adapter has no part.
    """

    down: torch.Tensor
    up: torch.Tensor
    rescale: torch.Tensor


class Projection:
    """The layers `modules`: their common product, and the factors adapters add to it."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype, copy: bool) -> None:
        self._dtype = dtype
        # PEFT puts its own modules in their places when a first adapter covers them
        self.modules = list(modules)
        layers = [_base_layer(module) for module in modules]
        self._sizes = [int(layer.out_features) for layer in layers]
        self._biases = [layer.bias for layer in layers]
        self._device = layers[0].weight.device
        self.product = product_for(layers, dtype, copy)

    def factor(self, name: str) -> Factor:
        """This adapter's part, read from PEFT's layers."""
        found = [_read(module, name, self._dtype) for module in self.modules]
        empty = torch.empty(0, dtype=self._dtype, device=self._device)
        parts = [part for part in found if part is not None]
        if not parts:
            return Factor(empty, empty, empty)
        down = torch.cat([part.down for part in parts], dim=1)
        up = down.new_zeros(down.shape[1], sum(self._sizes))
        row = column = 0
        for part, size in zip(found, self._sizes, strict=True):
            if part is not None:
                width = part.up.shape[0]
                up[row : row + width, column : column + size] = part.up
                row += width
            column += size
        return Factor(
            down, up, self._rescale(found) if any(p.norms is not None for p in parts) else empty
        )

    def _rescale(self, found: Sequence[_Part | None]) -> torch.Tensor:
        scales, shifts = [], []
        for part, size, bias in zip(found, self._sizes, self._biases, strict=True):
            scale = torch.ones(size, dtype=self._dtype, device=self._device)
            if part is not None and part.norms is not None:
                scale = part.norms.to(self._dtype)
            scales.append(scale)
            shifts.append(torch.zeros_like(scale) if bias is None else (1 - scale) * bias.detach())
        return torch.stack([torch.cat(scales), torch.cat(shifts)]).to(self._dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One layer's share of a factor; `norms`: DoRA's magnitudes over the norms of its rows."""

    down: torch.Tensor
    up: torch.Tensor
    norms: torch.Tensor | None


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


def _read(module: nn.Module, name: str, dtype: torch.dtype) -> _Part | None:
    if not isinstance(module, LoraLayer) or name not in module.lora_A:
        return None
    a, b = _tensor(module.lora_A[name]), _tensor(module.lora_B[name])
    scaling = float(module.scaling[name])
    norms = None
    if name in module.lora_magnitude_vector:
        base = dense(_base_layer(module), torch.float32).detach().float()
        norm = torch.linalg.vector_norm(base + scaling * (b.float() @ a.float()), dim=1)
        norms = _tensor(module.lora_magnitude_vector[name]) / norm
    # copies, so that the adapter stays what it was when the row began
    down = a.t().to(dtype, copy=True).contiguous()
    up = (b.float() * scaling).t().to(dtype, copy=True).contiguous()
    return _Part(down, up, norms)


def _tensor(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight.detach()


def check_known(name: str, known: Sequence[str]) -> None:
    """Raise InputError when the model holds no adapter of this name."""
    if name not in known:
        raise InputError(f"adapter {name!r}: the model holds {', '.join(known) or 'none'}")
