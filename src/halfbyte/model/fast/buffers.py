"""Large results written into memory that earlier results have left, instead of new memory.

What a micro-batch keeps comes in sizes of its own, and what it leaves in the heap is cut up by
what is taken next. A pool keeps such blocks beside the heap and hands out those that no tensor
uses any more: 1,174 against 1,208 MB without it for steps of 500 tokens, 2,219 against 2,392 for
2,000, and far more where glibc's caches are on (`fast/alloc.py`; DECISIONS.md).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Final

import torch

from halfbyte.model.fast import alloc

__all__ = ["Pool", "empty", "use"]

_LEAST: Final = 1 << 14  # bytes; smaller ones are no burden to malloc
_BACK: Final = 4  # blocks before the last one, where the search for a free one begins
_SLAB: Final = 32 << 20

_users = torch._C._storage_Use_Count  # noqa: SLF001  torch counts nowhere else


class Pool:
    """Blocks of CPU memory, each free as soon as no tensor refers to it. They go with the pool.

    A block serves tensors of one width, of as many places as the longest so far: micro-batches
    differ in places, and one that were served by size would leave blocks that fit no other.

    `latest`: what was made last and may be wanted once more, and by whom (blocks.py).
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[_Block]] = {}  # by bytes of a place
        self._last: dict[int, int] = {}  # by the same, the block handed out last
        self._slab: _Slab | None = None
        self._lock = Lock()
        self.latest: tuple[object, torch.Tensor] | None = None

    @property
    def held(self) -> int:
        """Bytes of all blocks, used and free."""
        return sum(block.size for blocks in self._blocks.values() for block in blocks)

    def take(self, places: int, width: int) -> torch.UntypedStorage:
        """A block for so many places of `width` bytes that nothing else uses; its content is
        arbitrary.
        """
        size = places * width
        with self._lock:
            blocks = self._blocks.setdefault(width, [])
            number = self._last[width] = _free(blocks, self._last.get(width, 0))
            if number == len(blocks):
                most = max((block.size for block in blocks), default=0)
                blocks.append(self._cut(max(most, size)))
            elif blocks[number].size < size:  # outgrown: the longest micro-batch comes first
                blocks[number].give_back()
                blocks[number] = self._cut(size)
            return blocks[number].storage

    def _cut(self, size: int) -> _Block:
        if self._slab is None or size > self._slab.left:
            self._slab = _Slab(max(size, _SLAB))
        return self._slab.cut(size)


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
    one and the tensor is large. `shape` is [n, width], [R, T, width] or [R, T, heads, D].
    """
    dtype = like.dtype
    if pool is None or like.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=like.device)
    cut = min(2, len(shape) - 1)
    places, width = prod(shape[:cut]), prod(shape[cut:]) * dtype.itemsize
    if places * width < _LEAST:
        return torch.empty(shape, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(pool.take(places, width), 0, shape)  # type: ignore[call-overload]  # contiguous


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Part of a slab. `handle`: what torch knows the storage by."""

    storage: torch.UntypedStorage
    handle: int
    size: int
    slab: mmap.mmap
    start: int

    def give_back(self) -> None:
        """Give its memory to the system; the addresses stay with the slab."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.slab.madvise(mmap.MADV_DONTNEED, self.start, self.size)


class _Slab:
    """Memory beside the heap, to be cut into blocks. Small tensors that are kept would else lie
    between the blocks, in what larger ones left, and those would need new memory.

    In huge pages where Linux has them on demand: what a step keeps is some hundreds of megabytes,
    and with pages of 4 KiB much of reading it is finding them. A step took 0.98 of the time, for 2
    to 3 % more memory (DECISIONS.md).
    """

    def __init__(self, size: int) -> None:
        self.left = size
        self._memory = alloc.pages(size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def cut(self, size: int) -> _Block:
        """The next block, of whole pages as far as there are any left."""
        start = len(self._memory) - self.left
        self.left = max(0, self.left - size - (-size % mmap.PAGESIZE))
        part = memoryview(self._memory)[start : start + size]
        storage = torch.frombuffer(part, dtype=torch.uint8).untyped_storage()
        return _Block(storage, storage._cdata, size, self._memory, start)  # noqa: SLF001  see _users


def _free(blocks: list[_Block], last: int) -> int:
    """The number of a free block, or the next new one's. Near the last one first: what was in use
    a moment ago is still in the cache, and a forward pass leaves blocks in order.
    """
    count = len(blocks)
    number = max(0, last - _BACK)
    for _ in range(count):
        if number >= count:
            number = 0
        if _users(blocks[number].handle) == 1:  # the pool's own
            return number
        number += 1
    return count
