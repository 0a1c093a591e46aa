"""Readers: rows out of JSON, JSONL, CSV and Parquet files, as streams, each with its place.

A reader never stops at a bad row: it yields the fault and goes on where the format lets it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from pydantic_core import from_json

from halfbyte.data.faults import Fault
from halfbyte.errors import DataError

SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LONGEST_ROW: Final = 8 << 20  # bytes; a hundred times the longest context a model has
_CHUNK: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_UNDECODED: Final = re.compile("[\udc80-\udcff]")
_SPACE: Final = re.compile(r"\s*")
_NOT_FINITE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as it stands in its file; `line` counts from 1 (in Parquet: rows)."""

    file: str
    line: int
    value: Mapping[str, Any] | Fault
    source: str = ""

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


def read_file(path: Path) -> Iterator[Raw]:
    """The rows of one file, by its suffix.

    Raises:
        DataError: the file cannot be read at all.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}
    try:
        yield from readers.get(path.suffix.lower(), _read_lines)(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


class _OddError(ValueError):
    """What Python's decoder would take, or fail on, and is not for a row."""


class _NotFiniteError(_OddError):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _NotFiniteError(name)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's limit, 4,300 digits
        raise _OddError(text) from None


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number)


def _read_lines(path: Path) -> Iterator[Raw]:
    with path.open("rb") as file:
        for number, line, length in _lines(file):
            if length > LONGEST_ROW:
                yield Raw(path.name, number, _too_long(length))
                continue
            value, text = _parse_line(line)
            if isinstance(value, Fault):
                yield Raw(path.name, number, value.at(value.where), text)
            elif value is not None:
                yield Raw(path.name, number, value)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, its length in bytes); a line that is too long comes without its rest."""
    number = 0
    while line := file.readline(LONGEST_ROW + 2):
        number += 1
        length = len(line)
        while not line.endswith(b"\n") and length > LONGEST_ROW:
            rest = file.readline(_CHUNK)
            length += len(rest)
            if not rest or rest.endswith(b"\n"):
                break
        if number == 1:
            line = line.removeprefix(_BOM)
        yield number, line, length


def _too_long(length: int) -> Fault:
    return Fault(
        "line too long",
        f"a line of {length:,} bytes; a row may have {LONGEST_ROW:,}",
        "JSONL has one object on each line; a JSON array belongs into a .json file",
    )


def _parse_line(line: bytes) -> tuple[Mapping[str, Any] | Fault | None, str]:
    """A row, or what is wrong with it and its text; None for an empty line."""
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError:  # of what it refuses, Python's own takes some, and says of the rest where
        return _parse_again(line)
    return (value, "") if isinstance(value, dict) else _parse_again(line)


def _parse_again(line: bytes) -> tuple[Mapping[str, Any] | Fault | None, str]:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        return _not_utf8(line, error.start), line.decode("latin-1").strip()
    if not text:
        return None, ""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return json_fault(text, error.pos, error.msg), text
    except (_OddError, RecursionError) as error:
        return _odd_fault(text, error), text
    if not isinstance(value, dict):
        return Fault(
            "not an object", "a row is an object in braces", "write {…} on each line"
        ), text
    return value, text


def _not_utf8(line: bytes, start: int) -> Fault:
    if line[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return Fault(
            "not UTF-8", "column 1: the file is UTF-16", "iconv -f utf-16 -t utf-8 FILE > NEW.jsonl"
        )
    column = len(line[:start].decode(errors="replace")) + 1
    return Fault(
        "not UTF-8",
        f"column {column}: byte 0x{line[start]:02X} is not UTF-8 "
        f"(in latin-1 it is {line[start : start + 1].decode('latin-1')!r})",
        "iconv -f latin1 -t utf-8 FILE > NEW.jsonl",
    )


def _odd_fault(text: str, error: _OddError | RecursionError) -> Fault:
    if isinstance(error, RecursionError):
        return Fault("nested too deeply", "column 1: lists or objects nested too deeply", "flatten")
    if not isinstance(error, _NotFiniteError):
        digits, column = str(error), text.find(str(error)) + 1
        detail = f"column {column}: a number of {len(digits.lstrip('-')):,} digits"
        return Fault("number too long", detail, "put it in double quotes")
    found = [match for match in _NOT_FINITE.finditer(text) if match.group(1)]
    column = found[0].start() + 1 if found else 1
    return Fault("not JSON", f"column {column}: {error} is not JSON", "write null, or a text")


def json_fault(text: str, pos: int, message: str) -> Fault:
    """A JSON error at `pos` in words that say where and what to change."""
    line, column = text.count("\n", 0, pos) + 1, pos - text.rfind("\n", 0, pos)
    place = f"column {column}" if line == 1 else f"line {line} of the row, column {column}"
    return Fault(
        "not JSON", f"{place}: {message[0].lower()}{message[1:]}", _mend(text, pos, message)
    )


def _mend(text: str, pos: int, message: str) -> str:
    here, before = text[pos : pos + 1], text[:pos].rstrip()[-1:]
    if message == "Extra data":
        return "remove the comma after the object" if here == "," else "one object on each line"
    if (here in {"}", "]"} and before == ",") or "trailing comma" in message:
        return f"remove the comma before {here or 'the end'}"
    if here == "'":
        return "use double quotes"
    if not here:
        return "the row ends too early: is a bracket or quote missing?"
    known = {
        "Invalid control character at": "write it as \\n, \\t or \\u00XX",
        "Unterminated string starting at": "close the quote; write a line break inside as \\n",
        "Invalid \\escape": "write a backslash as \\\\",
        "Expecting ',' delimiter": 'a comma is missing, or a quote inside a text is not \\"',
        "Expecting ':' delimiter": "a colon stands between a name and its value",
        "Expecting value": "texts stand in double quotes; else true, false, null or a number",
        "Expecting property name enclosed in double quotes": "put the name in double quotes",
    }
    return known.get(message, "")


def _text_file(file: BinaryIO) -> TextIOWrapper:
    # bad bytes come through as lone surrogates, so that their row can be named
    return TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_json(path: Path) -> Iterator[Raw]:
    """A JSON array of objects, or objects one after the other, in lines of any length."""
    with path.open("rb") as binary, _text_file(binary) as file:
        yield from _Elements(path.name, file).rows()


class _Elements:
    """The objects of a JSON file, one by one; only a part of the file is in memory."""

    def __init__(self, name: str, file: TextIOWrapper) -> None:
        self._name = name
        self._file = file
        self._text = ""
        self._pos = 0
        self._line = 1

    def rows(self) -> Iterator[Raw]:
        """Every row; after a fault in the syntax none, for what follows cannot be told apart."""
        array = self._peek() == "["
        if array:
            self._skip_to(self._pos + 1)
        first = True
        while (char := self._peek()) and not (array and char == "]"):
            if array and not first:
                if char != ",":
                    yield self._fault(self._pos, "Expecting ',' delimiter")
                    return
                self._skip_to(self._pos + 1)
                if self._peek() == "]":
                    yield Raw(
                        self._name, self._line, Fault("not JSON", "a comma before ]", "remove it")
                    )
                    return
            row = self._object()
            first = False
            if not isinstance(row.value, Fault) and not array and not self._peek():
                yield from self._unfolded(row)
                return
            yield row
            if isinstance(row.value, Fault) and row.value.kind == "not JSON":
                return
        if array and not char:
            yield self._fault(self._pos, "Expecting ',' delimiter")

    def _unfolded(self, row: Raw) -> Iterator[Raw]:
        """A file of one object: its rows, if it holds a list of them ({"data": [...]})."""
        assert isinstance(row.value, Mapping)
        lists = [
            value
            for key, value in row.value.items()
            if key in {"data", "rows", "examples", "train"} and isinstance(value, list)
        ]
        if len(lists) != 1:
            yield row
            return
        for number, value in enumerate(lists[0], 1):
            fine = isinstance(value, Mapping)
            yield Raw(self._name, number, value if fine else _no_object())

    def _object(self) -> Raw:
        line = self._line
        if self._peek() != "{":
            return self._fault(self._pos, "Expecting value")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._pos)
                break
            except json.JSONDecodeError as error:
                if len(self._text) - self._pos > LONGEST_ROW or not self._more():
                    return self._fault(error.pos, error.msg)
            except (_OddError, RecursionError) as error:
                fault = _odd_fault(self._text[self._pos : self._pos + LONGEST_ROW], error)
                return Raw(self._name, line, replace(fault, kind="not JSON"))
        source = self._text[self._pos : end]
        self._skip_to(end)
        if not source.isascii() and (bad := _UNDECODED.search(source)):
            fault = _undecoded(ord(bad.group()) - 0xDC00, ".json")
            return Raw(self._name, line, fault, source)
        return Raw(self._name, line, value)

    def _peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._pos)
            assert match is not None
            self._skip_to(match.end())
            if self._pos < len(self._text) or not self._more():
                return self._text[self._pos : self._pos + 1]

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        if not chunk:  # places found in the text stay what they are
            return False
        self._text = self._text[self._pos :] + chunk
        self._pos = 0
        return True

    def _skip_to(self, pos: int) -> None:
        self._line += self._text.count("\n", self._pos, pos)
        self._pos = pos

    def _fault(self, pos: int, message: str) -> Raw:
        line = self._line + self._text.count("\n", self._pos, pos)
        column = pos - self._text.rfind("\n", 0, pos)
        fault = json_fault(self._text[: pos + 1], pos, message)
        detail = f"column {column}: {message[0].lower()}{message[1:]}"
        return Raw(self._name, line, Fault("not JSON", detail, fault.mend))


def _no_object() -> Fault:
    return Fault("not an object", "a row is an object in braces")


def _undecoded(byte: int, suffix: str) -> Fault:
    return Fault(
        "not UTF-8",
        f"byte 0x{byte:02X} is not UTF-8 (in latin-1 it is {bytes([byte]).decode('latin-1')!r})",
        f"iconv -f latin1 -t utf-8 FILE > NEW{suffix}",
    )


def _read_csv(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_ROW)
    with path.open("rb") as binary, _text_file(binary) as file:
        first = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter=_delimiter(first), strict=True)
        header: list[str] | None = None
        while True:
            line = rows.line_num + 1
            try:
                fields = next(rows, None)
            except csv.Error as error:
                yield Raw(path.name, line, _csv_fault(str(error)))
                continue
            if fields is None:
                return
            if not fields:
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_header(header, path)
            else:
                yield _csv_row(path.name, line, header, fields)


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def _check_header(header: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: columns named twice: {', '.join(map(repr, twice))}")


def _csv_row(name: str, line: int, header: Sequence[str], fields: Sequence[str]) -> Raw:
    if len(fields) != len(header):
        fault = Fault(
            "wrong number of fields",
            f"{len(fields)} fields, but the header has {len(header)}",
            "put fields that hold the delimiter or a line break in double quotes",
        )
        return Raw(name, line, fault, json.dumps(fields))
    for column, field in zip(header, fields, strict=True):
        if not field.isascii() and (bad := _UNDECODED.search(field)):
            fault = _undecoded(ord(bad.group()) - 0xDC00, ".csv")
            fault = Fault(fault.kind, f"column {column!r}: {fault.detail}", fault.mend)
            return Raw(name, line, fault, json.dumps(fields))
    return Raw(name, line, dict(zip(header, fields, strict=True)))


def _csv_fault(message: str) -> Fault:
    mend = "close the quote; write a quote inside a quoted field twice"
    return Fault("not CSV", message, mend)


def _read_parquet(path: Path) -> Iterator[Raw]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Raw(path.name, number, row)
    except ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from None
