"""How large a loaded model is: parameters, what is trained, bytes before and after quantization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Sizes of a loaded model.

    `parameters`: of the base, counted as unquantized. `trainable`: trained ones. `adapter_bytes`:
    of the adapter's file (float32). `base_bytes`: what the base's weights take now, quantization
    constants included; `base_bytes_16bit`: what they would take in 16 bits.
    """

    parameters: int
    trainable: int
    adapter_bytes: int
    base_bytes: int
    base_bytes_16bit: int

    @property
    def share(self) -> float:
        """Trainable parameters over those of the base."""
        return self.trainable / max(1, self.parameters)


def summarize(model: nn.Module) -> ModelSummary:
    """Measure a loaded model, with or without an adapter on it."""
    parameters = held = trainable = adapter = 0
    for name, parameter in model.named_parameters():
        count = _elements(parameter)
        if parameter.requires_grad:
            trainable += count
        if "lora_" in name:
            adapter += parameter.numel() * parameter.element_size()
            continue
        parameters += count
        held += parameter.numel() * parameter.element_size() + sum(_constants(parameter))
    return ModelSummary(parameters, trainable, adapter, held, 2 * parameters)


def _elements(parameter: Any) -> int:
    """Weights a parameter stands for: bitsandbytes packs two 4-bit ones into a byte."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return int(parameter.numel())
    count = 1
    for extent in state.shape:
        count *= extent
    return int(count)


def _constants(parameter: Any) -> Iterator[int]:
    """Bytes of the quantization constants of one weight: block maxima, and theirs where nested."""
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield state.absmax.numel() * state.absmax.element_size()
        state = getattr(state, "state2", None)
    scales = getattr(parameter, "SCB", None)  # of 8-bit weights, one a row
    if scales is not None:
        yield scales.numel() * scales.element_size()
