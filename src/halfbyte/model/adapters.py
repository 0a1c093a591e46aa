"""Adapters: attached to a frozen base by PEFT, seeded, in float32, with B = 0."""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from halfbyte.config import LoraSettings
from halfbyte.model.adapter_files import DEFAULT, load, register_fast_layers, save
from halfbyte.model.targets import ends_with, linear_layers, target_names

__all__ = [
    "attach",
    "load",
    "lora_config",
    "save",
    "target_names",
]


def attach(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Freeze the model and put a new trainable adapter on it.

    A is drawn from its own generator, seeded with `seed`, and B is zero: before the first step
    the model computes exactly what its base does. Adapter weights are float32, and the same for a
    seed, whatever the base is held in.

    Raises:
        InputError: a target names no linear layer; the message lists those there are.
    """
    config = lora_config(model, settings)
    register_fast_layers(config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # the caller's generator goes on as if nothing happened
        peft_model = PeftModel(model, config, adapter_name=DEFAULT, autocast_adapter_dtype=True)
    _draw(peft_model, seed)
    return peft_model


def _draw(model: PeftModel, seed: int) -> None:
    """Draw every A anew, on the CPU and in float32.

    PEFT draws in the base's type and on its device, so that the same seed would give another
    adapter for each of them. The distribution is the same: uniform within 1 / sqrt(inputs).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            drawn = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1)
            parameter.data.copy_(drawn.div_(math.sqrt(parameter.shape[1])))


def lora_config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """PEFT's config for these settings on this model.

    Raises:
        InputError: a target names no linear layer.
    """
    names = target_names(model, settings.targets)
    transposed = any(
        isinstance(layer, Conv1D)
        for name, layer in linear_layers(model).items()
        if ends_with(name, names)
    )
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=model.name_or_path or None,
        r=settings.rank,
        # PEFT declares an int but only divides by it; whole numbers stay whole in its file
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,  # type: ignore[arg-type]  # see above
        lora_dropout=settings.dropout,
        target_modules=names,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        fan_in_fan_out=transposed,
        bias="none",
    )
