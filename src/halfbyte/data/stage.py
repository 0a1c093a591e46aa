"""Staging: rows are read once, checked, and wait on disk with their keys for split and audit."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from halfbyte.data.example_json import dump_example, load_example
from halfbyte.data.faults import Fault, FaultLog
from halfbyte.data.formats import Format, FormatName, has_trailing_turns, recognise, to_example
from halfbyte.data.lines import Lines, LineWriter
from halfbyte.data.readers import Raw
from halfbyte.data.records import Example
from halfbyte.data.shingles import words_of
from halfbyte.data.sources import Source
from halfbyte.data.split import Keys, prompt_key, row_key
from halfbyte.data.workers import in_order
from halfbyte.errors import DataError

_HEAD: Final = 100  # rows that are held to recognise the format
_BATCH: Final = 256  # rows that are checked at once
_TRAILING: Final = "conversations go on after their last answer: that is left out"


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are to be read; see the settings of the same names."""

    format: FormatName | Literal["auto"] = "auto"
    columns: Mapping[str, str] | None = None
    system: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Good rows on disk.

    `words`: what is said in each, for comparing. `files` and `places` say where each stood; `rows`
    counts the bad too.
    """

    name: str
    format: Format
    lines: Lines
    words: Lines
    prompt_keys: Keys
    row_keys: Keys
    files: tuple[str, ...]
    places: np.ndarray[Any, np.dtype[np.int64]]
    rows: int

    def __len__(self) -> int:
        return len(self.lines)

    def example(self, index: int) -> Example:
        """The row."""
        return load_example(self.lines[index])

    def where(self, index: int) -> str:
        """Its place, `file:line`."""
        file, line = self.places[index]
        return f"{self.files[file]}:{line}"


@dataclass(slots=True)
class _Checked:
    """A batch of rows: the bad, and of the good their lines of JSON, what is said in them, their
    keys and whether they go on after their last answer. `places`: where they are in the batch.
    """

    places: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    words: list[bytes] = field(default_factory=list)
    prompt_keys: list[int] = field(default_factory=list)
    row_keys: list[int] = field(default_factory=list)
    trailing: list[bool] = field(default_factory=list)
    faults: list[tuple[int, Fault]] = field(default_factory=list)

    def add(self, place: int, row: Example, trailing: bool) -> None:
        """A good row."""
        key = prompt_key(row)
        self.places.append(place)
        self.lines.append(dump_example(row))
        self.words.append(words_of(_said(row)).encode())
        self.prompt_keys.append(key)
        self.row_keys.append(row_key(row, key))
        self.trailing.append(trailing)

    def cut(self, count: int) -> None:
        """Leave out what follows the first `count` good rows."""
        if count > len(self.places):
            return
        end = self.places[count - 1] if count else -1
        self.faults = [each for each in self.faults if each[0] < end]
        for column in (
            self.places, self.lines, self.words, self.prompt_keys, self.row_keys, self.trailing,
        ):  # fmt: skip
            del column[count:]


def _recognised(source: Source, reading: Reading, faults: FaultLog) -> tuple[Format, Iterator[Raw]]:
    """The format of a source, and its rows; a beginning without a single good row is faults."""
    rows = source.rows()
    before = len(faults)
    while True:
        head = list(islice(rows, _HEAD))
        good = [raw.value for raw in head if not isinstance(raw.value, Fault)]
        if good or not head:
            break
        for raw in head:
            assert isinstance(raw.value, Fault)
            faults.add(raw.value.at(raw.where), raw.source)
    if not good and len(faults) == before:
        raise DataError(f"{source.name}: there are no rows in it")
    if not good:
        raise faults.error(len(faults) - before, source.name)
    form = recognise(good, reading.format, reading.columns or {}, source.name)
    return form, chain(head, rows)


def _said(example: Example) -> str:
    turns = [turn.content for turn in example.messages if turn.role != "system"]
    return "\n".join([example.context or "", example.text or "", *turns])


def _checked(
    form: Format, system: str | None, values: Sequence[Mapping[str, Any] | Fault]
) -> _Checked:
    found = _Checked()
    for place, value in enumerate(values):
        row = value if isinstance(value, Fault) else to_example(value, form, system)
        if isinstance(row, Fault):
            found.faults.append((place, row))
        elif not isinstance(value, Fault):
            found.add(place, row, has_trailing_turns(value, form, row))
    return found


def _batches(
    rows: Iterator[Raw], form: Format, reading: Reading
) -> Iterator[tuple[list[Raw], _Checked]]:
    """Rows in batches, checked, until there are as many good ones as the limit says."""
    batches: deque[list[Raw]] = deque()  # of which the results are not there yet

    def values() -> Iterator[list[Mapping[str, Any] | Fault]]:
        while batch := list(islice(rows, _BATCH)):
            batches.append(batch)
            yield [raw.value for raw in batch]

    left = reading.limit
    for found in in_order(partial(_checked, form, reading.system), values()):
        if left is not None:
            found.cut(left)
            left -= len(found.places)
        yield batches.popleft(), found
        if left == 0:
            return


def stage(source: Source, reading: Reading, path: Path, faults: FaultLog) -> Staged:
    """Read a source into `path` (and files beside it); bad rows go to `faults`.

    Raises:
        DataError: no row can be read, or no format fits.
    """
    bad = len(faults)
    form, rows = _recognised(source, reading, faults)
    prompts, whole, places = array("Q"), array("Q"), array("q")
    files: dict[str, int] = {}
    beside = path.with_name(f"{path.name}-words")
    with LineWriter(path) as lines, LineWriter(beside) as words:
        for batch, found in _batches(rows, form, reading):
            for place, fault in found.faults:
                raw = batch[place]
                faults.add(fault.at(raw.where), raw.source or raw.value)
            faults.note(_TRAILING, sum(found.trailing))
            lines.extend(found.lines)
            words.extend(found.words)
            prompts.extend(found.prompt_keys)
            whole.extend(found.row_keys)
            for raw in map(batch.__getitem__, found.places):
                places.extend((files.setdefault(raw.file, len(files)), raw.line))
    return Staged(
        name=source.name,
        format=form,
        lines=Lines(path),
        words=Lines(beside),
        prompt_keys=np.array(prompts, np.uint64),
        row_keys=np.array(whole, np.uint64),
        files=tuple(files),
        places=np.array(places, np.int64).reshape(-1, 2),
        rows=len(places) // 2 + len(faults) - bad,
    )
