"""Encoded data on disk: written as a stream, read through memory maps."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, overload

import numpy as np

from halfbyte.data.example_json import load_example
from halfbyte.data.lines import Lines, LineWriter
from halfbyte.data.records import Encoded, Example
from halfbyte.run import sha256_of

_IDS: Final = "ids.int32"
_TRAINED: Final = "trained.bool"
_INDEX: Final = "index.npy"
_EXAMPLES: Final = "examples.jsonl"
# a row of the index: where its ids end, ids before the last answer, tokens trained, and the line
# of its file that it came from
_ROW: Final = np.dtype(
    [("end", "<i8"), ("prompt", "<i4"), ("trained", "<i4"), ("line", "<i8"), ("key", "<u8")]
)


@dataclass(frozen=True, slots=True)
class Block:
    """Encoded rows as they are written, and sent from one process to another.

    `ids`, `trained`: those of all rows, one after the other. A number a row: `sizes`, of ids;
    `prompts`, of ids before the last answer; `counts`, of tokens trained.
    """

    ids: bytes
    trained: bytes
    sizes: tuple[int, ...]
    prompts: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> Block:
        """These rows."""
        return cls(
            ids=b"".join([row.ids.astype("<i4", copy=False).data for row in rows]),
            trained=b"".join([row.trained.data for row in rows]),
            sizes=tuple(len(row) for row in rows),
            prompts=tuple(row.prompt_length for row in rows),
            counts=tuple(int(np.count_nonzero(row.trained)) for row in rows),
        )


class EncodedWriter:
    """Writes rows into a folder block by block; memory does not grow with tokens."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._ids = (folder / _IDS).open("wb")
        self._trained = (folder / _TRAINED).open("wb")
        self._examples = LineWriter(folder / _EXAMPLES)
        self._columns: dict[str, array[int]] = {
            name: array("Q" if name == "key" else "q") for name in _ROW.names or ()
        }
        self.tokens = 0

    def extend(
        self, block: Block, examples: Sequence[bytes], lines: Sequence[int], keys: Sequence[int]
    ) -> None:
        """Add rows; for each its example (a line of JSON), its line in the source and its prompt's
        key.
        """
        self._ids.write(block.ids)
        self._trained.write(block.trained)
        self._examples.extend(examples)
        ends = [*accumulate(block.sizes, initial=self.tokens)]
        self.tokens = ends[-1]
        columns = (ends[1:], block.prompts, block.counts, lines, keys)
        for column, values in zip(self._columns.values(), columns, strict=True):
            column.extend(values)

    def __len__(self) -> int:
        return len(self._examples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ids.close()
        self._trained.close()
        self._examples.__exit__(kind, error, trace)
        if kind is None:
            index = np.empty(len(self), _ROW)
            for name, column in self._columns.items():
                index[name] = np.frombuffer(column, column.typecode)
            np.save(self._folder / _INDEX, index)


class EncodedSet(Sequence[Encoded]):
    """Rows as tokens, memory-mapped: a million rows do not live in memory.

    `lengths`: int32 [n], ids of each row. `trained_tokens`: int32 [n], how many of them are
    targets. `lines`: int64 [n], where each stood in its file. `keys`: uint64 [n], equal for rows
    with the same prompt.

    Raises:
        OSError, ValueError, EOFError: the folder does not hold what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = np.load(folder / _INDEX, allow_pickle=False)
        self._ends = index["end"].copy()
        self._prompts = index["prompt"].copy()
        self.trained_tokens = index["trained"].copy()
        self.lines = index["line"].copy()
        self.keys = index["key"].copy()
        self.lengths = np.diff(self._ends, prepend=0).astype(np.int32)
        tokens = int(self._ends[-1]) if len(self._ends) else 0
        self._ids = _mapped(folder / _IDS, np.dtype("<i4"), tokens)
        self._trained = _mapped(folder / _TRAINED, np.dtype(np.bool_), tokens)
        self._examples = Lines(folder / _EXAMPLES)

    def __reduce__(self) -> tuple[type[EncodedSet], tuple[Path]]:
        return EncodedSet, (self.folder,)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        """Row `index`; its arrays are views of the file and may not be written to."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        stop = self._ends[place]
        start = stop - self.lengths[place]
        return Encoded(self._ids[start:stop], self._trained[start:stop], int(self._prompts[place]))

    def digest(self) -> str:
        """sha256 of every row's ids and labels: equal where training sees the same."""
        total = hashlib.sha256()
        for name in (_IDS, _TRAINED, _INDEX):
            total.update(sha256_of(self.folder / name).encode())
        return total.hexdigest()

    def example(self, index: int) -> Example:
        """The row as the user gave it."""
        return load_example(self._examples[range(len(self))[index]])


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise ValueError(f"{path}: {size:,} bytes, not {count:,} items of {dtype.itemsize}")
    return np.memmap(path, dtype, mode="r") if count else np.empty(0, dtype)
