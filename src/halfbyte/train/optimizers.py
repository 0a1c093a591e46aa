"""Optimizers and their parameter groups."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from halfbyte.errors import InputError, MissingError, TrainingError

_B_FACTORS: Final = frozenset({"lora_B", "lora_embedding_B"})  # PEFT's names


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """What an optimizer needs; see `TrainSettings` for meaning, ranges and sources."""

    learning_rate: float
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    beta2: float = 0.999
    weight_decay: float = 0.0
    plus_ratio: float | None = None


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, device: torch.device
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of `module`.

    Each group keeps its peak rate under `peak`; the loop sets `lr` from it at every step.

    Raises:
        TrainingError: nothing is trainable.
        InputError: an 8-bit optimizer without CUDA.
        MissingError: bitsandbytes is not installed.
    """
    groups = list(_groups(module, settings))
    if not groups:
        raise TrainingError("No parameter is trainable", "Check method and lora.targets.")
    betas = (0.9, settings.beta2)
    if settings.name == "adamw":
        # One kernel for all parameters: see bench/optimizers.py for the times of the others.
        return torch.optim.AdamW(groups, settings.learning_rate, betas, fused=True)
    if device.type != "cuda":
        raise InputError(
            f"train.optimizer={settings.name}: bitsandbytes' optimizers need CUDA, "
            f"and this training runs on {device.type}",
            "Set train.optimizer=adamw.",
        )
    return _bitsandbytes(settings.name)(groups, settings.learning_rate, betas)


def _groups(module: nn.Module, settings: OptimizerSettings) -> Iterator[dict[str, Any]]:
    """Groups by (decays, is a B factor), in a fixed order, parameters in the module's order."""
    norms = {
        id(parameter)
        for part in module.modules()
        if "norm" in type(part).__name__.lower()
        for parameter in part.parameters(recurse=False)
    }
    sorted_out: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Biases and the gains of norms have one dimension: shrinking them regularizes nothing.
            decays = parameter.ndim > 1 and id(parameter) not in norms
            faster = settings.plus_ratio is not None and not _B_FACTORS.isdisjoint(name.split("."))
            sorted_out.setdefault((decays, faster), []).append(parameter)
    for (decays, faster), parameters in sorted(sorted_out.items(), key=lambda item: item[0]):
        peak = settings.learning_rate * (settings.plus_ratio or 1.0 if faster else 1.0)
        decay = settings.weight_decay if decays else 0.0
        yield {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}


def _bitsandbytes(name: str) -> Any:
    try:
        optim = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise MissingError(
            f"train.optimizer={name} needs bitsandbytes: {error}", "pip install bitsandbytes"
        ) from None
    return {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[name]
