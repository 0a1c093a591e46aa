"""Adapters side by side in memory, so that a step's rows of several take one batched product.

With a product for each adapter most of a small step is calls. As in S-LoRA (Sheng et al. 2023,
arXiv 2311.03285) adapters share a pool and rows of each are gathered; instead of a kernel that
looks up each row's adapter, a batched product takes a stretch of neighbouring slots.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

import torch

from halfbyte.infer.layer import whole_rows
from halfbyte.infer.projection import Factor
from halfbyte.infer.stretches import stretches

_CALLS: Final = 16  # what a group costs beside its rows, in rows computed in vain

Factors = tuple[Factor, ...]  # a layer's, by projection


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """An adapter's weights as they were when it was read. Its slot is its own while it lives."""

    name: str
    pool: Pool
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows of one step that take their adapters together.

    - `layers`: the factors of neighbouring slots, [slots, ...] each; of one slot without that
      dimension. The head's come last.
    - `rows`: int64 [slots * most], packed places of each slot's rows, filled up with any; empty
      where one adapter has all rows.
    - `places`: int64, the packed places that have one of these adapters; empty where all have.
    - `back`: int64, where among `rows` each of them is.
    """

    layers: Sequence[Factors]
    rows: torch.Tensor
    places: torch.Tensor
    back: torch.Tensor


class Pools:
    """The pools of a model, one for each shape of adapters; an adapter may be added by another
    thread than the one that steps.
    """

    def __init__(self) -> None:
        self._pools: dict[object, Pool] = {}
        self._lock = Lock()

    def add(self, name: str, layers: Sequence[Factors]) -> Adapter:
        """Give an adapter a slot."""
        shape = tuple(tensor.shape for layer in layers for f in layer for tensor in _tensors(f))
        self.tidy()
        with self._lock:
            return self._pools.setdefault(shape, Pool()).add(name, layers)

    def tidy(self) -> None:
        """Give back memory of adapters that nobody holds any more."""
        with self._lock:
            self._pools = {shape: pool for shape, pool in self._pools.items() if pool.tidy()}


class Pool:
    """Slots for adapters whose factors have the same shapes; twice as many when they are full."""

    def __init__(self) -> None:
        self._owners: list[weakref.ref[Adapter] | None] = []
        self._layers: list[Factors] = []
        self._views: dict[tuple[int, int], list[Factors]] = {}
        self.joins = True  # whether its adapters can be taken together: not with DoRA's rescaling

    def add(self, name: str, layers: Sequence[Factors]) -> Adapter:
        """Copy an adapter's factors into a free slot."""
        count = len(self._owners)
        if not count:
            self._layers = [_mapped(layer, lambda tensor: tensor[None]) for layer in layers]
            self._owners = [None]
            self.joins = not any(one.rescale.numel() for layer in layers for one in layer)
        elif all(self._living()):
            self._change(_doubled)
            self._owners += [None] * count
        slot = self._living().index(False)
        for held, given in zip(self._layers, layers, strict=True):
            for mine, other in zip(held, given, strict=True):
                for target, source in zip(_tensors(mine), _tensors(other), strict=True):
                    target[slot] = source
        adapter = Adapter(name, self, slot)
        self._owners[slot] = weakref.ref(adapter)
        return adapter

    def tidy(self) -> bool:
        """Cut off the end where at most a quarter stays; false if no adapter is left."""
        living = self._living()
        keep = len(living) - living[::-1].index(True) if any(living) else 0
        if 0 < 4 * keep <= len(living):
            self._change(lambda tensor: tensor[:keep].clone())
            del self._owners[keep:]
        return keep > 0

    def slots(self, first: int, stop: int) -> list[Factors]:
        """Views of the factors of some neighbouring slots, as `Group` has them."""
        if (first, stop) not in self._views:
            chosen = first if stop == first + 1 else slice(first, stop)
            made = [_mapped(layer, lambda tensor: tensor[chosen]) for layer in self._layers]
            self._views[first, stop] = made
        return self._views[first, stop]

    @property
    def size(self) -> int:
        """Slots, free ones included."""
        return len(self._owners)

    def _living(self) -> list[bool]:
        return [owner is not None and owner() is not None for owner in self._owners]

    def _change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._views.clear()  # they would keep the old memory
        for index, layer in enumerate(self._layers):
            self._layers[index] = _mapped(layer, change)


def grouped(owners: Sequence[Adapter | None]) -> list[Group]:
    """The groups of a step, given the adapter of each packed place."""
    pools: dict[Pool, dict[int, list[int]]] = {}
    for place, adapter in enumerate(owners):
        if adapter is not None:
            pools.setdefault(adapter.pool, {}).setdefault(adapter.slot, []).append(place)
    return [
        _group(pool, run, rows, len(owners))
        for pool, rows in pools.items()
        for run in _runs(rows, pool.joins)
    ]


def _runs(rows: dict[int, list[int]], joins: bool) -> list[range]:
    """Stretches of slots that are taken together, given each slot's rows."""
    slots = sorted(rows)
    if not joins:
        return [range(slot, slot + 1) for slot in slots]
    parts = stretches([(slot, len(rows[slot])) for slot in slots], _CALLS)
    return [range(slots[part][0], slots[part][-1] + 1) for part in parts]


def _group(pool: Pool, slots: range, rows: dict[int, list[int]], total: int) -> Group:
    of_slots = [rows.get(slot, []) for slot in slots]
    most = whole_rows(max(len(mine) for mine in of_slots))
    layers = pool.slots(slots.start, slots.stop)
    if of_slots == [list(range(most))] and most == total:
        return Group(layers, *(_index([], layers) for _ in range(3)))
    taken = [place for mine in of_slots for place in mine + [0] * (most - len(mine))]
    where = {place: i * most + j for i, mine in enumerate(of_slots) for j, place in enumerate(mine)}
    places = sorted(where)
    back = [where[place] for place in places]
    chosen = places if len(places) < total else []
    return Group(layers, *(_index(numbers, layers) for numbers in (taken, chosen, back)))


def _index(numbers: list[int], layers: Sequence[Factors]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=layers[0][0].down.device)


def _tensors(factor: Factor) -> tuple[torch.Tensor, ...]:
    return factor.down, *factor.up, factor.rescale


def _mapped(factors: Factors, change: Callable[[torch.Tensor], torch.Tensor]) -> Factors:
    return tuple(
        Factor(change(f.down), [change(up) for up in f.up], change(f.rescale)) for f in factors
    )


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    """With as many free slots, whose memory is only taken once they are written to."""
    made = tensor.new_zeros(2 * len(tensor), *tensor.shape[1:])
    made[: len(tensor)] = tensor
    return made
