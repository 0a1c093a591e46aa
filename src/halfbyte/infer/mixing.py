"""Rows with different adapters in one step: adapter by adapter, or all of them in one product.

Adapter by adapter, a step of eight rows calls some eleven small products a layer and adapter, and
their calls cost more than their sums. Side by side, the adapters are one: a row's product with all
of them, and a mask that keeps what is its own. What is masked away adds exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch

from halfbyte.infer.backend import Span
from halfbyte.infer.layer import PROJECTIONS, Lora
from halfbyte.infer.projection import Factor

# measured on two cores: an adapter's calls cost what 64 rows' products with one more adapter cost
_ROWS: Final = 64
# copies are taken for what is side by side; of larger adapters the calls are a small share anyway
_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's weights as they were when it was read: four factors a layer, and the head's."""

    name: str
    layers: tuple[tuple[Factor, ...], ...]
    head: Factor

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """All of them, layer by layer, the head's last."""
        return (*(factor for layer in self.layers for factor in layer), self.head)

    @cached_property
    def mixes(self) -> bool:
        """Whether it can stand beside others: DoRA changes what the base gave, too."""
        return all(not factor.rescale.numel() for factor in self.factors)

    @cached_property
    def nbytes(self) -> int:
        """Bytes its weights take."""
        return sum(tensor.nbytes for factor in self.factors for tensor in (factor.down, *factor.up))


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Adapters side by side. `owners`: of each factor, in the order of `Adapter.factors`, which
    of the adapters each of its ranks belongs to.
    """

    adapters: tuple[Adapter, ...]
    factors: tuple[Factor, ...]
    owners: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """Whose adapters the packed places of one step have."""

    groups: list[tuple[int, int, Adapter]]
    stack: Stack | None = None
    masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def lora(self, layer: int | None) -> Lora:
        """What one layer adds, or the head (None: at every place of `Lora`)."""
        if self.stack is not None:
            return self._side_by_side(self.stack, layer)
        factors = [
            factor
            for _, _, adapter in self.groups
            for factor in (
                (adapter.head,) * PROJECTIONS if layer is None else adapter.layers[layer]
            )
        ]
        starts = [start for start, _, _ in self.groups]
        return _lora(starts, [stop for _, stop, _ in self.groups], factors, [])

    def _side_by_side(self, stack: Stack, layer: int | None) -> Lora:
        places = [-1] * PROJECTIONS
        if layer is not None:
            places = list(range(layer * PROJECTIONS, (layer + 1) * PROJECTIONS))
        masks = [self._mask(stack, place) for place in places]
        factors = [stack.factors[place] for place in places]
        return _lora([self.groups[0][0]], [self.groups[-1][1]], factors, masks)

    def _mask(self, stack: Stack, place: int) -> torch.Tensor:
        """[rows, ranks]: 1 where the rank is of the row's adapter, else 0."""
        owners = stack.owners[place]
        if owners not in self.masks:
            indices = [stack.adapters.index(adapter) for _, _, adapter in self.groups]
            rows = [
                index
                for index, (start, stop, _) in zip(indices, self.groups, strict=True)
                for _ in range(stop - start)
            ]
            down = stack.factors[place].down
            mine = torch.tensor(rows)[:, None] == torch.tensor(owners, dtype=torch.int64)
            self.masks[owners] = mine.to(down)
        return self.masks[owners]


class Mixer:
    """Arranges steps; keeps the adapters of the last ones side by side."""

    def __init__(self) -> None:
        self._stack: Stack | None = None

    def mix(self, spans: Sequence[Span], counts: Sequence[int]) -> Mix:
        """For spans with rows of one adapter next to each other, of so many packed places each."""
        groups = _groups(spans, counts)
        adapters = tuple(dict.fromkeys(adapter for _, _, adapter in groups))
        if len(groups) < 2 or groups[-1][1] - groups[0][0] > _ROWS or not _small(adapters):
            return Mix(groups)
        if not self._serves(adapters):
            self._stack = _side_by_side(adapters)
        return Mix(groups, self._stack)

    def forget(self, adapter: object) -> None:
        """Free what is kept of an adapter."""
        if self._stack is not None and adapter in self._stack.adapters:
            self._stack = None

    def _serves(self, adapters: tuple[Adapter, ...]) -> bool:
        """Whether what stands side by side holds these, and not twice as many."""
        if self._stack is None or not set(adapters) <= set(self._stack.adapters):
            return False
        return len(self._stack.adapters) <= 2 * len(adapters)


def _small(adapters: Sequence[Adapter]) -> bool:
    return sum(a.nbytes for a in adapters) <= _BYTES and all(a.mixes for a in adapters)


def _groups(spans: Sequence[Span], counts: Sequence[int]) -> list[tuple[int, int, Adapter]]:
    """Neighbouring rows of one adapter: (start, stop, adapter) in a packing of so many places a
    span. Between the groups there is nothing.
    """
    groups: list[tuple[int, int, Adapter]] = []
    start = 0
    for span, count in zip(spans, counts, strict=True):
        stop = start + count
        if isinstance(span.adapter, Adapter) and count:
            if groups and groups[-1][2] is span.adapter:
                groups[-1] = (groups[-1][0], stop, span.adapter)
            else:
                groups.append((start, stop, span.adapter))
        start = stop
    return groups


def _lora(
    starts: list[int], stops: list[int], factors: Sequence[Factor], masks: list[torch.Tensor]
) -> Lora:
    return Lora(
        starts,
        stops,
        [factor.down for factor in factors],
        [factor.up for factor in factors],
        [factor.rescale for factor in factors],
        masks,
    )


def _side_by_side(adapters: tuple[Adapter, ...]) -> Stack:
    pairs = [_join(factors) for factors in zip(*(a.factors for a in adapters), strict=True)]
    return Stack(adapters, tuple(f for f, _ in pairs), tuple(o for _, o in pairs))


def _join(factors: Sequence[Factor]) -> tuple[Factor, tuple[int, ...]]:
    """One factor of several, and whose its ranks are. The ranks of one linear layer lie together,
    adapter by adapter, since each layer's `up` takes neighbouring ones.
    """
    present = [(index, factor) for index, factor in enumerate(factors) if factor.up]
    if not present:
        return factors[0], ()
    downs, ups, owners = [], [], []
    for part in range(len(present[0][1].up)):
        for index, factor in present:
            ranks = [len(up) for up in factor.up]
            first = sum(ranks[:part])
            downs.append(factor.down[:, first : first + ranks[part]])
            owners += [index] * ranks[part]
        ups.append(torch.cat([factor.up[part] for _, factor in present]))
    return Factor(torch.cat(downs, dim=1), ups, factors[0].rescale), tuple(owners)
