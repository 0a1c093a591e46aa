"""Small 4-bit weights of one decoder layer, made dense in one call.

A call has a price beside its work: checks, memory, and threads that start and wait for each other.
For the weights of a small model it is as high as the work, and a step makes each of them dense
twice. Used one after the other, the weights of a layer lie one after the other in memory too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import nn

from halfbyte.model.fast import alloc, buffers, checkpoint, weights

__all__ = ["Block", "join"]


@torch.no_grad()
def join(model: nn.Module) -> int:
    """Lay the small 4-bit weights of each decoder layer side by side; how many layers had some.

    Idempotent; the numbers stay the same. Doubly quantized constants stay as they are, and so do
    their layers: `weights.unfold` comes first.
    """
    count = 0
    for layer in checkpoint.layers(model):
        some = [one for one in weights.small_layers(layer) if _joins(one)]
        kinds = {_kind(one) for one in some}
        if len(some) > 1 and len(kinds) == 1:
            Block(some)
            count += 1
    if count:
        alloc.trim()  # the holes where the weights lay: of SmolLM2's a step did not use 50 MB again
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
        latest, pool.latest = pool.latest, None
        if latest is None or latest[0] is not self or latest[1].dtype != dtype:
            latest = None  # the last block's go before these are made
            shape = (2 * self._packed.numel() // self._width, self._width)
            flat = weights.four_bit(self._packed, self._constants, self._state, shape).to(dtype)
            latest = (self, flat)
        pool.latest = latest
        return latest[1]


def _joins(layer: Any) -> bool:
    state = weights.state_of(layer)
    whole = state.shape[1] % state.blocksize == 0
    on_cpu = layer.weight.device.type == "cpu"
    return whole and on_cpu and not state.nested and weights.place_of(layer) is None


def _kind(layer: Any) -> tuple[Any, ...]:
    state = weights.state_of(layer)
    return state.quant_type, state.blocksize, state.dtype, state.absmax.dtype
