"""Small 4-bit weights of one decoder layer, made dense in one call.

A call has a price beside its work: checks, memory, and threads that start and wait for each other.
For the weights of a small model it is as high as the work, and a step makes each of them dense
twice. Used one after the other, the weights of a layer lie one after the other in memory too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from halfbyte.model.fast import buffers, weights

__all__ = ["Block", "join"]


@torch.no_grad()
def join(model: nn.Module) -> int:
    """Lay the small 4-bit weights of each decoder layer side by side; how many layers had some.

    Idempotent; the numbers stay the same. Doubly quantized constants stay as they are, and so do
    their layers: `weights.unfold` comes first.
    """
    count = 0
    for layer in _decoder_layers(model):
        some = [one for one in layer.modules() if _joins(one)]
        kinds = {_kind(one) for one in some}
        if len(some) > 1 and len(kinds) == 1:
            Block(some)
            count += 1
    return count


class Block:
    """4-bit weights that lie side by side. Each layer knows its place in `weights.PLACE`."""

    def __init__(self, layers: Sequence[Any]) -> None:
        states = [weights.state_of(layer) for layer in layers]
        first = states[0]
        self._packed = torch.cat([layer.weight.data.view(-1) for layer in layers])
        self._constants = torch.cat([state.absmax for state in states])
        self._state = first
        self._width = gcd(*(state.shape[1] for state in states))
        start = 0
        for layer, state in zip(layers, states, strict=True):
            stop = start + state.shape.numel()
            layer.weight.data = self._packed[start // 2 : stop // 2].view(layer.weight.shape)
            state.absmax = self._constants[start // first.blocksize : stop // first.blocksize]
            place = weights.Place(self, layer.weight, start, tuple(state.shape))
            setattr(layer, weights.PLACE, place)
            start = stop

    def dense(self, dtype: torch.dtype, pool: buffers.Pool) -> torch.Tensor:
        """All weights, flat, in `dtype`: those that the pool has, if it made these the last time.

        One block is dense at a time: a forward and a backward pass go from layer to layer.
        """
        owner, flat = pool.latest
        if owner is self and flat.dtype == dtype:
            return flat
        pool.latest = buffers.NOTHING  # before the next is made
        shape = (2 * self._packed.numel() // self._width, self._width)
        flat = weights.four_bit(self._packed, self._constants, self._state, shape).to(dtype)
        pool.latest = (self, flat)
        return flat


def _decoder_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules."""
    if isinstance(model, nn.ModuleList):
        yield from model
        return
    for child in model.children():
        yield from _decoder_layers(child)


def _joins(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, bnb.nn.Linear4bit) or getattr(weight, "quant_state", None) is None:
        return False
    state = weights.state_of(layer)
    whole = state.shape[1] % state.blocksize == 0
    fresh = weights.place_of(layer) is None
    on_cpu = layer.weight.device.type == "cpu"
    return fresh and on_cpu and whole and not state.nested and weights.small(layer)


def _kind(layer: Any) -> tuple[Any, ...]:
    state = weights.state_of(layer)
    return state.quant_type, state.blocksize, state.dtype, state.absmax.dtype
