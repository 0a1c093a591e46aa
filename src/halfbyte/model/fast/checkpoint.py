"""Gradient checkpointing of as many layers as memory needs, instead of all or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from halfbyte.model.fast import alloc

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
    found, scatters = layers(model), not alloc.finds_again()
    for number, layer in enumerate(found):
        layer.gradient_checkpointing = number < count
        again = partial(checkpoint, use_reentrant=False)
        if scatters and _large(layer):
            again = partial(_trimmed, again)
        layer._gradient_checkpointing_func = again  # noqa: SLF001  transformers sets it so too
    return min(count, len(found))


def _large(layer: nn.Module) -> bool:
    """Whether a layer takes so long, on a CPU, that asking the allocator beside it costs nothing;
    what a card holds is not in glibc's heap.
    """
    linear = [one for one in layer.modules() if isinstance(one, nn.Linear)]
    on_cpu = [one for one in linear if one.weight.device.type == "cpu"]
    widest = max((one.in_features * one.out_features for one in on_cpu), default=0)
    return 4 * widest >= alloc.MMAP_FROM


def _trimmed(again: Callable[..., Any], layer: Callable[..., Any], *args: Any) -> Any:
    """Run `layer` now and in the backward pass, each time on a heap without holes: where glibc does
    not find freed blocks again, gradients and the optimizer's moments cut what earlier layers left
    into pieces that no activation fits.
    """

    def run(*inputs: Any) -> Any:
        alloc.trim()
        return layer(*inputs)

    return again(run, *args)
