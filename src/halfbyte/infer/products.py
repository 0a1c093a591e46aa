"""Products with a frozen weight, x [n, in] → [n, out], in the fastest form that is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from halfbyte.model.fast.weights import dense


class Product(Protocol):
    """A linear map of rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in] → [n, out]."""

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add the product to `residual` [n, out] in place and return it."""


def product_for(
    layers: Sequence[nn.Module], dtype: torch.dtype, copy: bool
) -> tuple[Product, torch.Tensor | None]:
    """The product of layers side by side, and their biases as one (None if they have none).

    With `copy` weights are read once, else each layer computes for itself (4-bit bases that
    would not fit dense).
    """
    biases = [layer.bias for layer in layers]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat([_bias(layer, dtype) for layer in layers])
    if not copy:
        return LayerProduct(layers), bias
    parts = [dense(layer, dtype).detach().to(dtype) for layer in layers]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    half = HalfProduct.of(weight, bias) if _half_works(weight) else None
    return half or DenseProduct(weight, bias), bias


class LayerProduct:
    """The layers' own forward passes."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        parts = [layer(x) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        return residual.add_(self(x))


class DenseProduct:
    """A weight in the compute type, one slice of its outputs a thread.

    MKL computes products of a few rows on one thread; a batched product takes all of them. The
    longer side of the weight is the contiguous one, since a single row streams the weight from
    memory: on AVX2 and one thread 17.7 GB/s against 10 for [576, 3072], measured.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        outs, ins = weight.shape
        threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        self._slices = threads if outs % threads == 0 else 1
        self._bias = bias
        slices = weight.view(self._slices, outs // self._slices, ins).transpose(1, 2)
        if outs > ins and weight.device.type == "cpu":
            slices = slices.contiguous()
        self._weight = slices  # [slices, in, out / slices]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        if self._slices == 1:
            out = x @ self._weight[0]
        else:
            found = torch.bmm(x.expand(self._slices, -1, -1), self._weight)
            out = found.transpose(0, 1).reshape(len(x), -1)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        if self._slices > 1 or self._bias is not None:
            return residual.add_(self(x))
        return residual.addmm_(x, self._weight[0])


class HalfProduct:
    """A weight held as fp16 without loss, float32 in and out, sums in float32 (FBGEMM).

    bf16 has 8 significant bits and fp16 11: a bf16 weight, multiplied by a power of two, fits in
    fp16 exactly unless it is 2**31 times smaller than the largest. So the product is that of the
    float32 weight, but reads half the bytes, and up to 6 rows cost little more than one.
    Measured on AVX2, one thread, [576, 3072]: 1.3 times MKL's rows/s for 1 row, 3 for 4 and 1.2
    for 64.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, exponent: int) -> None:
        self._scale = 2.0**-exponent
        packed = torch.ops.quantized.linear_prepack_fp16(weight * 2.0**exponent, None)
        self._bias = bias
        self._product = torch.jit.script(_Packed(packed))

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> HalfProduct | None:
        """The product, if fp16 holds every weight exactly; else None."""
        top = float(weight.abs().max())
        if not 0 < top < math.inf:
            return None
        for exponent in dict.fromkeys((0, 15 - math.frexp(top)[1])):
            scaled = weight * 2.0**exponent
            if torch.equal(scaled.half().float(), scaled):
                return cls(weight, bias, exponent)
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        out: torch.Tensor = self._product(x)
        if self._scale != 1:
            out.mul_(self._scale)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        residual.add_(self._product(x), alpha=self._scale)
        return residual if self._bias is None else residual.add_(self._bias)


class _Packed(nn.Module):
    """Scripted, since handing a packed weight from Python to the operator takes 15 µs a call."""

    def __init__(self, packed: torch.ScriptObject) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [n, in], float32 and contiguous → [n, out]."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def _half_works(weight: torch.Tensor) -> bool:
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.quantized.engine in ("fbgemm", "x86")
        and hasattr(torch.ops.quantized, "linear_dynamic_fp16")
    )


def _bias(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    if layer.bias is not None:
        bias: torch.Tensor = layer.bias.detach().to(dtype)
        return bias
    return torch.zeros(layer.out_features, dtype=dtype, device=layer.weight.device)
