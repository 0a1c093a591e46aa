"""Large results written into memory that earlier results have left, instead of new memory.

glibc before 2.38 cannot put an aligned block into a hole of exactly its size, and torch aligns all
its blocks. So of a step's freed activations only what lies next to another hole is used again:
a third to a half of what a training held was such holes (DECISIONS.md). A pool keeps the blocks
and hands out those that no tensor uses any more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from threading import Lock

import torch

__all__ = ["Pool", "empty", "use"]

_LEAST = 1 << 17  # bytes; smaller ones are no burden to malloc
_WASTE = 3  # a block may be so many times larger than what is put into it


class Pool:
    """Blocks of CPU memory, each free as soon as no tensor refers to it. They go with the pool."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # increasing
        self._blocks: dict[int, list[torch.UntypedStorage]] = {}
        self._lock = Lock()

    @property
    def held(self) -> int:
        """Bytes of all blocks, used and free."""
        return sum(size * len(blocks) for size, blocks in self._blocks.items())

    def take(self, size: int) -> torch.UntypedStorage:
        """A block of at least `size` bytes that nothing else uses; its content is arbitrary."""
        with self._lock:
            for number in range(bisect_left(self._sizes, size), len(self._sizes)):
                if self._sizes[number] > _WASTE * size:
                    break
                for block in self._blocks[self._sizes[number]]:
                    if _free(block):
                        return block
            if size not in self._blocks:
                self._sizes.insert(bisect_left(self._sizes, size), size)
                self._blocks[size] = []
            block = torch.UntypedStorage(size)
            self._blocks[size].append(block)
            return block


_current: list[Pool | None] = [None]


@contextmanager
def use(pool: Pool | None) -> Iterator[None]:
    """For the block: `empty` takes from this pool."""
    before, _current[0] = _current[0], pool
    try:
        yield
    finally:
        _current[0] = before


def current() -> Pool | None:
    """The pool in use: what a backward pass, which runs later, has to remember."""
    return _current[0]


def empty(shape: tuple[int, ...], like: torch.Tensor, pool: Pool | None) -> torch.Tensor:
    """An uninitialized, contiguous tensor of `like`'s type and device, from the pool if there is
    one and the tensor is large.
    """
    size = prod(shape) * like.dtype.itemsize
    if pool is None or size < _LEAST or like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    strides = [prod(shape[place + 1 :]) for place in range(len(shape))]
    return torch.empty(0, dtype=like.dtype).set_(pool.take(size), 0, shape, strides)


def _free(block: torch.UntypedStorage) -> bool:
    """Whether the pool's own is the only reference left."""
    return bool(torch._C._storage_Use_Count(block._cdata) == 1)  # noqa: SLF001  torch counts nowhere else
