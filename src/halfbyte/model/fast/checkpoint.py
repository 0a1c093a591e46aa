"""Gradient checkpointing of as many layers as memory needs, instead of all or none."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["layers", "set_layers"]


def layers(model: nn.Module) -> list[Any]:
    """The model's layers that can be checkpointed, first to last."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def set_layers(model: nn.Module, count: int) -> int:
    """Checkpoint the first `count` layers and no other; how many that are (a model may have fewer).

    A checkpointed layer keeps its input alone and computes the rest again. Non-reentrant, so that
    a frozen embedding needs no gradient of its own and nothing below the lowest adapter is
    computed twice.
    """
    found = layers(model)
    for number, layer in enumerate(found):
        layer.gradient_checkpointing = number < count
        layer._gradient_checkpointing_func = partial(  # noqa: SLF001  transformers sets it so too
            checkpoint, use_reentrant=False
        )
    return min(count, len(found))
