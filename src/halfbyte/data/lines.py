"""Lines on disk with random access: the form in which examples wait, whatever their number."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]

_OFFSETS: Final = ".offsets.npy"


class LineWriter:
    """Appends lines to `path`; closing it writes where each begins beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._offsets = array("q", [0])

    def extend(self, lines: Sequence[bytes]) -> None:
        """Add lines; they come without their line breaks."""
        self._file.write(b"".join([line + b"\n" for line in lines]))
        ends = accumulate([len(line) + 1 for line in lines], initial=self._offsets[-1])
        self._offsets.extend(islice(ends, 1, None))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            np.save(self._path.with_name(self._path.name + _OFFSETS), np.array(self._offsets))


class Lines:
    """What a LineWriter wrote, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._offsets = np.load(path.with_name(path.name + _OFFSETS), allow_pickle=False)
        with path.open("rb") as file:
            # an empty file cannot be mapped
            empty = self._offsets[-1] == 0
            self._bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._offsets[index] : self._offsets[index + 1] - 1]

    def some(self, indices: Rows) -> list[bytes]:
        """Many lines at once, which is several times quicker."""
        starts, stops = self._offsets[indices].tolist(), self._offsets[indices + 1].tolist()
        return [self._bytes[start : stop - 1] for start, stop in zip(starts, stops, strict=True)]

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))
