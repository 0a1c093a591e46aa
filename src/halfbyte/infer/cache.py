"""Keys and values of every row's tokens, in memory set aside once: one slot a row."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch

from halfbyte.model.fast import alloc


class KVCache:
    """Keys and values [slots, heads, capacity, width] of each layer.

    A slot holds one row, its tokens from place 0 on, without padding: a row's position is its
    place. What lies behind a row's end is finite (zeros, or a former row), so that masking is
    enough. On a CPU memory is only taken where something was written.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = 0
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._dtype = dtype
        self._device = device

    def layer(
        self, index: int, heads: int, widths: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of one layer, made at its first use; `widths`: of a key, a value."""
        if index not in self.keys:
            self.keys[index] = self._zeros(heads, widths[0])
            self.values[index] = self._zeros(heads, widths[1])
        return self.keys[index], self.values[index]

    def reshape(self, slots: int, capacity: int, moves: Sequence[tuple[int, int, int]]) -> None:
        """Take a new shape; of the old content keep only `moves`: (old slot, new slot, tokens)."""
        self.slots, self.capacity = slots, capacity
        for store in (self.keys, self.values):
            for index, old in store.items():
                store[index] = fresh = self._zeros(old.shape[1], old.shape[3])
                for source, target, count in moves:
                    fresh[target, :, :count] = old[source, :, :count]

    def copy(self, source: int, target: int, count: int) -> None:
        """Give slot `target` the first `count` tokens of slot `source`."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, :count] = tensor[source, :, :count]

    def _zeros(self, heads: int, width: int) -> torch.Tensor:
        shape = (self.slots, heads, self.capacity, width)
        size = prod(shape) * self._dtype.itemsize
        if self._device.type != "cpu" or size < mmap.PAGESIZE:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        # from the system: malloc would clear blocks that were used before, and so take all of them
        return torch.frombuffer(alloc.pages(size), dtype=self._dtype).view(shape)
