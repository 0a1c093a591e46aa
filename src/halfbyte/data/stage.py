"""Staging: rows are read once, checked, and wait on disk with their keys for split and audit."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Good:
    """A row that fits: its line of JSON, what is said in it, its keys; `trailing`: conversations
    that go on after their last answer."""

    line: bytes
    words: bytes
    prompt_key: int
    row_key: int
    trailing: bool


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
) -> list[_Good | Fault]:
    found: list[_Good | Fault] = []
    for value in values:
        if isinstance(value, Fault):
            found.append(value)
            continue
        row = to_example(value, form, system)
        if isinstance(row, Fault):
            found.append(row)
            continue
        key = prompt_key(row)
        words = words_of(_said(row)).encode()
        trailing = has_trailing_turns(value, form, row)
        found.append(_Good(dump_example(row), words, key, row_key(row, key), trailing))
    return found


def _rows(
    rows: Iterator[Raw], form: Format, reading: Reading, faults: FaultLog
) -> Iterator[tuple[Raw, _Good]]:
    """The good rows up to the limit, checked batch by batch."""
    batches: deque[list[Raw]] = deque()  # of which the results are not there yet

    def values() -> Iterator[list[Mapping[str, Any] | Fault]]:
        while batch := list(islice(rows, _BATCH)):
            batches.append(batch)
            yield [raw.value for raw in batch]

    found = 0
    for results in in_order(partial(_checked, form, reading.system), values()):
        for raw, row in zip(batches.popleft(), results, strict=True):
            if found == reading.limit:
                return
            if isinstance(row, Fault):
                faults.add(row.at(raw.where), raw.source or raw.value)
                continue
            found += 1
            faults.note(_TRAILING, row.trailing)
            yield raw, row


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
        for raw, row in _rows(rows, form, reading, faults):
            lines.append(row.line)
            words.append(row.words)
            prompts.append(row.prompt_key)
            whole.append(row.row_key)
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
