"""Products with a frozen weight, x [n, in] → [n, out], in the fastest form that is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from halfbyte.model.fast.weights import dense


def product_for(layers: Sequence[nn.Module], dtype: torch.dtype, copy: bool) -> nn.Module:
    """The product of layers side by side, biases included.

    With `copy` weights are read once, else each layer computes for itself (4-bit bases that
    would not fit dense).
    """
    if not copy:
        return LayerProduct(layers)
    parts = [dense(layer, dtype).detach().to(dtype) for layer in layers]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    bias = torch.empty(0, dtype=dtype, device=weight.device)
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([_bias(layer, dtype) for layer in layers])
    exponent = half_exponent(weight) if _half_works(weight) else None
    if exponent is None:
        return DenseProduct(weight, bias)
    return HalfProduct(weight, bias, exponent)


class LayerProduct(nn.Module):
    """The layers' own forward passes."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        # not as submodules: they are the model's, and not ours to move or to list
        self._layers = tuple(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] → [n, out]."""
        parts = [layer(x) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class DenseProduct(nn.Module):
    """A weight in the compute type, one slice of its outputs a thread.

    MKL computes products of a few rows on one thread; a batched product takes all of them. The
    longer side of the weight is the contiguous one, since a single row streams the weight from
    memory: on AVX2 and one thread 17.7 GB/s against 10 for [576, 3072], measured.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        outs, ins = weight.shape
        threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        self.slices = threads if outs % threads == 0 else 1
        self.bias = bias
        slices = weight.view(self.slices, outs // self.slices, ins).transpose(1, 2)
        if outs > ins and weight.device.type == "cpu":
            slices = slices.contiguous()
        self.weight = slices  # [slices, in, out / slices]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] → [n, out]."""
        if self.slices == 1:
            out = x @ self.weight[0]
        else:
            found = torch.bmm(x.expand([self.slices, x.shape[0], x.shape[1]]), self.weight)
            out = found.transpose(0, 1).flatten(1)
        return out.add_(self.bias) if self.bias.numel() > 0 else out


class HalfProduct(nn.Module):
    """A weight held as fp16 without loss, float32 in and out, sums in float32 (FBGEMM).

    bf16 has 8 significant bits and fp16 11: a bf16 weight, multiplied by a power of two, fits in
    fp16 exactly unless it is 2**31 times smaller than the largest. So the product is that of the
    float32 weight, but reads half the bytes, takes all threads, and up to 6 rows cost little more
    than one. Measured on AVX2, one thread, [576, 3072]: 1.3 times MKL's speed for 1 row, 3 times
    for 4 and 1.2 for 64. Handing a packed weight from Python to the operator takes 15 µs a call,
    so it is meant to be scripted.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, exponent: int) -> None:
        super().__init__()
        self.scale = 2.0**-exponent
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight * 2.0**exponent, None)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in], float32 and contiguous → [n, out]."""
        out = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out.add_(self.bias) if self.bias.numel() > 0 else out


def half_exponent(weight: torch.Tensor) -> int | None:
    """The power of two that brings a weight into fp16 without loss; None if there is none."""
    top = float(weight.abs().max())
    if not 0 < top < math.inf:
        return None
    for exponent in dict.fromkeys((0, 15 - math.frexp(top)[1])):
        scaled = weight * 2.0**exponent
        if torch.equal(scaled.half().float(), scaled):
            return exponent
    return None


def halves_work() -> bool:
    """Whether torch has FBGEMM's products with fp16 weights here: on x86."""
    known = torch.backends.quantized.engine in ("fbgemm", "x86")
    return known and hasattr(torch.ops.quantized, "linear_dynamic_fp16")


def _half_works(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and halves_work()


def _bias(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    if layer.bias is not None:
        bias: torch.Tensor = layer.bias.detach().to(dtype)
        return bias
    return torch.zeros(layer.out_features, dtype=dtype, device=layer.weight.device)
