"""Linear layers that read the same input, as one product, with the adapters of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from halfbyte.infer.products import product_for
from halfbyte.model.adapter_files import LoraWeights
from halfbyte.model.fast.weights import dense

Source = Callable[[nn.Module], LoraWeights | None]  # a layer's part of one adapter


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One adapter's part in a projection: y += (x @ down) @ up; then, for DoRA, y * scale + shift.

    down: [in, r], of layers side by side the ranks add up; `up`: [r, out] of each layer, LoRA's
    scale folded in, of rank 0 where the adapter leaves it out. rescale: [2, out], DoRA's scale and
    what keeps the bias as it was; empty for others. All are empty where the adapter has no part.
    """

    down: torch.Tensor
    up: list[torch.Tensor]
    rescale: torch.Tensor


class Projection:
    """The layers `modules`: their common product, and the factors adapters add to it."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype, copy: bool) -> None:
        self._dtype = dtype
        # PEFT puts its own modules in their places when a first adapter covers them
        self.modules = list(modules)
        layers = [base_layer(module) for module in modules]
        self._sizes = [int(layer.out_features) for layer in layers]
        self._biases = [layer.bias for layer in layers]
        self._device = layers[0].weight.device
        self.product = product_for(layers, dtype, copy)

    def factor(self, source: Source) -> Factor:
        """An adapter's part."""
        found = [source(module) for module in self.modules]
        empty = torch.empty(0, dtype=self._dtype, device=self._device)
        parts = [part for part in found if part is not None]
        if not parts:
            return Factor(empty, [], empty)
        # copies, so that the adapter stays what it was when the row began
        down = torch.cat([part.a for part in parts]).t().to(empty, copy=True).contiguous()
        none = [empty.new_empty(0, size) for size in self._sizes]
        up = [
            left if part is None else _scaled(part).t().to(empty, copy=True).contiguous()
            for part, left in zip(found, none, strict=True)
        ]
        plain = all(part.magnitude is None for part in parts)
        return Factor(down, up, empty if plain else self._rescale(found))

    def _rescale(self, found: Sequence[LoraWeights | None]) -> torch.Tensor:
        scales, shifts = [], []
        for part, module, bias in zip(found, self.modules, self._biases, strict=True):
            layer = base_layer(module)
            scale = torch.ones(int(layer.out_features), dtype=self._dtype, device=self._device)
            if part is not None and part.magnitude is not None:
                base = dense(layer, torch.float32).detach().float()
                norm = torch.linalg.vector_norm(base + _scaled(part) @ part.a.float(), dim=1)
                scale = (part.magnitude.to(norm) / norm).to(self._dtype)
            scales.append(scale)
            shifts.append(torch.zeros_like(scale) if bias is None else (1 - scale) * bias.detach())
        return torch.stack([torch.cat(scales), torch.cat(shifts)]).to(self._dtype)


def _scaled(part: LoraWeights) -> torch.Tensor:
    return part.b.float() * part.scaling


def base_layer(module: nn.Module) -> Any:
    """The frozen layer itself, out of PEFT's wrapper where there is one."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def dense_bytes(modules: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """Bytes the weights of these layers take in `dtype`."""
    layers = [base_layer(module) for module in modules]
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


def in_peft(name: str) -> Source:
    """The adapter of this name as PEFT's layers hold it now."""

    def read(module: nn.Module) -> LoraWeights | None:
        if not isinstance(module, LoraLayer) or name not in module.lora_A:
            return None
        a, b = _tensor(module.lora_A[name]), _tensor(module.lora_B[name])
        magnitudes = module.lora_magnitude_vector
        magnitude = _tensor(magnitudes[name]) if name in magnitudes else None
        return LoraWeights(a, b, float(module.scaling[name]), magnitude)

    return read


def _tensor(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight.detach()
