"""The dense weight of a frozen linear layer, however it is held: 4-bit, 8-bit, 16-bit, 32-bit."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["dense", "fault", "keep_as_quantized"]


def fault(layer: nn.Module, dtype: torch.dtype) -> str | None:
    """Why `dense` cannot give this layer's weight for products in `dtype`; None where it can."""
    if not isinstance(layer, nn.Linear | Conv1D):
        return f"{type(layer).__name__} is not a linear layer known here"
    weight: Any = layer.weight
    if weight.requires_grad:
        return "its base weight is trained"
    if isinstance(weight, bnb.nn.Params4bit):
        return None if weight.quant_state is not None else "its weight is not quantized yet"
    if isinstance(weight, bnb.nn.Int8Params) or (
        type(weight) in (nn.Parameter, torch.Tensor) and weight.dtype == dtype
    ):
        return None
    return f"its weight is a {type(weight).__name__} of {weight.dtype}, its input {dtype}"


def dense(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight as [out, in] in `dtype`: a view where it is dense, else a new tensor to drop soon.

    The caller has asked `fault` before.
    """
    weight: Any = layer.weight
    if isinstance(weight, bnb.nn.Params4bit):
        state = weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            _unpack(layer)
            state = weight.quant_state
        return _four_bit(weight.data, state).to(dtype)
    if isinstance(weight, bnb.nn.Int8Params):
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        return bnb.functional.int8_vectorwise_dequant(weight.data, scale).to(dtype)
    return weight.T if isinstance(layer, Conv1D) else weight


def _four_bit(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """What bitsandbytes.functional.dequantize_4bit does, by its two operators alone: its checks
    and wrappers take as long as the work for weights of a small model.
    """
    operators, absmax = torch.ops.bitsandbytes, state.absmax
    if state.nested:
        outer = state.state2
        absmax = operators.dequantize_blockwise(
            absmax, outer.absmax, outer.code, outer.blocksize, outer.dtype
        )
        absmax += state.offset
    args = (absmax, state.blocksize, state.quant_type, state.shape, state.dtype)
    dense: torch.Tensor = operators.dequantize_4bit(packed, *args)
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


def _unpack(layer: Any) -> None:
    """Bring back a weight that bitsandbytes repacked before `keep_as_quantized` was called."""
    weight = layer.weight
    unpack = bnb.functional._convert_weight_packed_for_cpu_inverse  # noqa: SLF001  its only inverse
    weight.data, weight.quant_state = unpack(weight.data, weight.quant_state)
