"""The dense weight of a frozen linear layer, however it is held: 4-bit, 8-bit, 16-bit, 32-bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from halfbyte.model.fast import alloc, buffers

__all__ = [
    "PLACE",
    "SMALL",
    "Place",
    "dense",
    "fault",
    "features",
    "four_bit",
    "keep_as_quantized",
    "pieces",
    "place_of",
    "slabs",
    "small",
    "small_layers",
    "state_of",
    "unfold",
]

# The least bytes of a piece of a 4-bit weight that is made dense piece by piece. Of a 7B model a
# weight is up to 235 MB in float32, and whole it was the widest thing of a step. Smaller pieces
# would come from the heap and leave holes in it: 32 MiB took 1.6 GB more (DECISIONS.md).
SLAB: Final = alloc.MMAP_FROM

# Layers of fewer weights are small: their products are so quick that what stands beside them, a
# fixed time for each, counts.
SMALL: Final = 1 << 20

PLACE: Final = "halfbyte_place"  # the attribute of a layer that stands in a block


def fault(layer: nn.Module, dtype: torch.dtype) -> str | None:
    """Why `dense` cannot give this layer's weight for products in `dtype`; None where it can."""
    if not isinstance(layer, nn.Linear | Conv1D):
        return f"{type(layer).__name__} is not a linear layer known here"
    weight: Any = layer.weight
    if weight.requires_grad or _learns(layer.bias):
        return "its base weight or bias is trained"
    if place_of(layer) is not None:
        return None  # quantized
    if isinstance(weight, bnb.nn.Params4bit):
        return None if weight.quant_state is not None else "its weight is not quantized yet"
    if isinstance(weight, bnb.nn.Int8Params) or (
        type(weight) in (nn.Parameter, torch.Tensor) and weight.dtype == dtype
    ):
        return None
    return f"its weight is a {type(weight).__name__} of {weight.dtype}, its input {dtype}"


def _learns(bias: torch.Tensor | None) -> bool:
    """Whether a gradient by it is wanted now: bases that only answer are not frozen."""
    return bias is not None and bias.requires_grad and torch.is_grad_enabled()


def features(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer: quantized weights do not have the layer's shape."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def small(layer: nn.Module) -> bool:
    """Whether time is spent beside this layer's products that memory could save."""
    ins, outs = features(layer)
    return ins * outs < SMALL


def dense(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight as [out, in] in `dtype`: a view where it is dense, else a new tensor to drop soon.

    The caller has asked `fault` before.
    """
    weight: Any = layer.weight
    if isinstance(weight, bnb.nn.Params4bit):
        state = state_of(layer)
        return four_bit(weight.data, _constants(state), state).to(dtype)
    if isinstance(weight, bnb.nn.Int8Params):
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        return bnb.functional.int8_vectorwise_dequant(weight.data, scale).to(dtype)
    return weight.T if isinstance(layer, Conv1D) else weight


def slabs(
    layer: Any, dtype: torch.dtype, pool: buffers.Pool | None = None
) -> Iterator[tuple[slice | None, torch.Tensor]]:
    """What `dense` gives, in `pieces` where 4 bits are made dense: the outputs, None for all, and
    their weights [count, in]. One piece at a time is alive if the caller drops it. With a pool, a
    layer that has a place in a block is made dense with the others of it.
    """
    place = place_of(layer)
    if pool is not None and place is not None:
        yield None, place.dense(dtype, pool)
        return
    count = _slab_rows(layer, dtype)
    if count is None:
        yield None, dense(layer, dtype)
        return
    state = state_of(layer)
    packed, constants = layer.weight.data.view(-1), _constants(state)
    outs, ins = state.shape
    for start in range(0, outs, count):
        stop = min(start + count, outs)
        first, last = start * ins, stop * ins
        yield (
            slice(start, stop),
            four_bit(
                packed[first // 2 : last // 2],
                constants[first // state.blocksize : last // state.blocksize],
                state,
                (stop - start, ins),
            ).to(dtype),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a layer's weight [out, in] stands among those of its block (blocks.py)."""

    block: Any
    weight: nn.Parameter
    start: int
    shape: tuple[int, int]

    def dense(self, dtype: torch.dtype, pool: buffers.Pool) -> torch.Tensor:
        """The weight in `dtype`: a view, to be dropped before another block's is asked for."""
        flat: torch.Tensor = self.block.dense(dtype, pool)
        return flat.as_strided(self.shape, (self.shape[1], 1), self.start)


def place_of(layer: nn.Module) -> Place | None:
    """A layer's place in a block; None where it has none, or has got another weight since."""
    place: Place | None = layer.__dict__.get(PLACE)
    return place if place is not None and layer.weight is place.weight else None


def pieces(size: int) -> int:
    """In how many pieces a 4-bit weight of so many dense bytes is made dense."""
    return max(1, size // SLAB)


def _slab_rows(layer: Any, dtype: torch.dtype) -> int | None:
    """How many outputs a slab has; None where the weight stays whole."""
    if not isinstance(layer.weight, bnb.nn.Params4bit):
        return None
    state = state_of(layer)
    outs, ins = state.shape
    count = pieces(outs * ins * dtype.itemsize)
    return None if count == 1 or ins % state.blocksize else -(-outs // count)


def state_of(layer: Any) -> Any:
    """The quantization state of a 4-bit layer whose weight lies as bitsandbytes quantized it."""
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        _unpack(layer)
    return layer.weight.quant_state


def _constants(state: Any) -> torch.Tensor:
    """One float32 a block of weights; where doubled, out of its own 8 bits."""
    if not state.nested:
        constants: torch.Tensor = state.absmax
        return constants
    outer = state.state2
    constants = torch.ops.bitsandbytes.dequantize_blockwise(
        state.absmax, outer.absmax, outer.code, outer.blocksize, outer.dtype
    )
    return constants.add_(state.offset)


def four_bit(
    packed: torch.Tensor,
    constants: torch.Tensor,
    state: Any,
    shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """What bitsandbytes.functional.dequantize_4bit does, by its two operators alone: its checks
    and wrappers take as long as the work for weights of a small model.
    """
    args = (constants, state.blocksize, state.quant_type, shape or state.shape, state.dtype)
    dense: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(packed, *args)
    return dense


def keep_as_quantized(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights when it computes without gradients.

    On CPUs with AVX512-BF16 its eval forward rewrites the layer in place, with constants rounded
    to bf16: after one evaluation the base would no longer be the one that was trained on. It also
    fails where a layer's inputs are no multiple of 64.
    """
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def small_layers(model: nn.Module) -> Iterator[Any]:
    """The `small` layers that are quantized to 4 bits."""
    for layer in model.modules():
        quantized = getattr(getattr(layer, "weight", None), "quant_state", None) is not None
        if quantized and isinstance(layer, bnb.nn.Linear4bit) and small(layer):
            yield layer


@torch.no_grad()
def unfold(model: nn.Module) -> None:
    """Make the doubly quantized constants of small 4-bit layers float32 for good: 3 bytes more for
    64 weights, and the same numbers.
    """
    for layer in small_layers(model):
        state = state_of(layer)
        if state.nested:
            state.absmax = _constants(state)
            state.nested, state.state2, state.offset = False, None, None


def _unpack(layer: Any) -> None:
    """Bring back a weight that bitsandbytes repacked before `keep_as_quantized` was called."""
    weight = layer.weight
    unpack = bnb.functional._convert_weight_packed_for_cpu_inverse  # noqa: SLF001  its only inverse
    weight.data, weight.quant_state = unpack(weight.data, weight.quant_state)
