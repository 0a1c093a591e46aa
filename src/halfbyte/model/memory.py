"""How large a loaded model is: parameters, what is trained, bytes before and after quantization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from halfbyte.config import LoraSettings
from halfbyte.model.load import Form
from halfbyte.model.targets import ends_with, linear_layers, target_names

# bytes a weight: 4 bits, and one float32 constant (8 bits and its own where doubled) a block of 64
_QUANTIZED: Final = {"nf4": 0.516, "fp4": 0.516, "int8": 1.0}


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


@dataclass(frozen=True, slots=True)
class Least:
    """What a training takes at the very least, in bytes: the weights as they are held, and
    gradient and two moments (float32) for each of the `trainable` parameters. Activations come
    on top."""

    trainable: int
    weights: int
    training: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training


def least(config: PretrainedConfig, form: Form, lora: LoraSettings | None) -> Least:
    """From the config alone, before any weight is read; `lora` is None for full training."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    layers: dict[str, Any] = dict(linear_layers(model))
    linear = sum(layer.weight.numel() for layer in layers.values())
    others = sum(one.numel() for one in model.parameters()) - linear
    wide = form.weights.itemsize
    held = linear * _QUANTIZED.get(form.quantization or "", wide) + others * wide
    trainable = linear + others
    if lora is not None:
        chosen = target_names(model, lora.targets)
        shapes = [one.weight.shape for name, one in layers.items() if ends_with(name, chosen)]
        trainable = lora.rank * sum(sum(shape) for shape in shapes)
    own = 12 if lora is None else 16  # an adapter's weights come beside the base's
    return Least(trainable, int(held), own * trainable)


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
