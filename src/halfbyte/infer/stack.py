"""Several adapters' factors side by side, so that a step of few rows takes them as one product.

With one product for each adapter most of a small step is calls: 33 a layer for three adapters, 15
for their stack. Every row is multiplied by every adapter's `down`; a mask keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from halfbyte.infer.projection import Adapter, Factor

_ROWS: Final = 32  # with more, what is computed in vain takes longer than the calls
_BYTES: Final = 256 << 20  # a stack is a copy
_SEEN: Final = 8  # steps after which adapters that answer together are worth one

Columns = tuple[int, ...]  # of a projection's `down`: whose each is


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Some adapters as one. `layers`: as an adapter's; `kinds`: the columns that differ, int64 by
    index of the adapter; `kind`: which of them each layer's projections have.
    """

    adapters: tuple[Adapter, ...]
    layers: tuple[tuple[Factor, ...], ...]
    kinds: tuple[torch.Tensor, ...]
    kind: tuple[tuple[int, ...], ...]

    def masks(self, owners: Sequence[int]) -> list[list[torch.Tensor]]:
        """For rows of these adapters (by index, -1: of none): per layer and projection what `down`
        gives is multiplied by, [rows, columns], 0 or 1.
        """
        like = self.layers[0][0].down
        mine = torch.tensor(owners, device=like.device)[:, None]
        made = [(mine == columns).to(like.dtype) for columns in self.kinds]
        return [[made[kind] for kind in layer] for layer in self.kind]


class Stacks:
    """Keeps the stack of the adapters that answered together last."""

    def __init__(self) -> None:
        self._stack: Stack | None = None
        self._asked: tuple[Adapter, ...] = ()
        self._times = 0

    def of(self, adapters: Sequence[Adapter], rows: int) -> Stack | None:
        """A stack that holds these adapters; None where each is better taken alone."""
        if len(adapters) < 2 or rows > _ROWS:
            return None
        if self._stack is not None and set(adapters) <= set(self._stack.adapters):
            return self._stack
        # adapters that come and go would cost a copy each time
        wanted = tuple(sorted(adapters, key=id))
        self._times = self._times + 1 if wanted == self._asked else 1
        self._asked = wanted
        if self._times != _SEEN or not _stackable(wanted):
            return None
        self._stack = stacked(wanted)
        return self._stack

    def forget(self, adapter: object) -> None:
        """Give back the memory of a stack that holds this adapter."""
        if self._stack is not None and adapter in self._stack.adapters:
            self._stack = None
        if adapter in self._asked:
            self._asked = ()


def stacked(adapters: Sequence[Adapter]) -> Stack:
    """The stack of adapters of one model, none with DoRA's rescaling."""
    layers, kind = [], []
    known: dict[Columns, int] = {}
    for factors in zip(*(adapter.layers for adapter in adapters), strict=True):
        made = [_side_by_side(parts) for parts in zip(*factors, strict=True)]
        layers.append(tuple(factor for factor, _ in made))
        kind.append(tuple(known.setdefault(columns, len(known)) for _, columns in made))
    device = layers[0][0].down.device
    kinds = tuple(torch.tensor(columns, dtype=torch.int64, device=device) for columns in known)
    return Stack(tuple(adapters), tuple(layers), kinds, tuple(kind))


def _side_by_side(factors: Sequence[Factor]) -> tuple[Factor, Columns]:
    """Of one projection: the first of its layers with the ranks of all adapters, then the next."""
    having = [(index, factor) for index, factor in enumerate(factors) if factor.down.numel()]
    if not having:
        return factors[0], ()
    downs: list[torch.Tensor] = []
    ups: list[torch.Tensor] = []
    columns: list[int] = []
    places = [0] * len(factors)
    for layer in range(len(having[0][1].up)):
        for index, factor in having:
            rank = factor.up[layer].shape[0]
            downs.append(factor.down.narrow(1, places[index], rank))
            columns += [index] * rank
            places[index] += rank
        ups.append(torch.cat([factor.up[layer] for _, factor in having]))
    return Factor(torch.cat(downs, dim=1), ups, having[0][1].rescale), tuple(columns)


def _stackable(adapters: Sequence[Adapter]) -> bool:
    factors = [factor for adapter in adapters for layer in adapter.layers for factor in layer]
    if any(factor.rescale.numel() for factor in factors):
        return False
    tensors = [tensor for factor in factors for tensor in (factor.down, *factor.up)]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors) <= _BYTES
