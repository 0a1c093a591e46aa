"""Checking a GGUF file's header against the file, before a library that trusts it opens it."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from halfbyte.errors import IntegrityError
from halfbyte.model.untrusted import refuse_pickle

_MAX_KEYS: Final = 4096  # real files have 20 to 60
_MAX_TENSORS: Final = 65_536  # the largest mixtures of experts have a few thousand
_MAX_NAME: Final = 256
_MAX_DEPTH: Final = 2  # arrays of arrays do occur; deeper ones do not
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 1 << 16
_SHOWN: Final = 3

_U32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
# Bytes of each scalar value type, by its number in the format description (version 3).
_SCALARS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _BadError(Exception):
    """What is wrong with the header; becomes an IntegrityError that names the file."""


@dataclass(slots=True)
class _Cursor:
    """Reads the header from front to back; never past the end."""

    data: mmap.mmap
    place: int = 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.place:
            raise _BadError(f"{what} would need {size:,} bytes; the file ends before")
        self.place += size
        return self.data[self.place - size : self.place]

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.place:
            raise _BadError(f"{what} would need {size:,} bytes; the file ends before")
        self.place += size

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def name(self, what: str) -> str:
        length = self.u64(what)
        if not 0 < length <= _MAX_NAME:
            raise _BadError(f"{what} has {length:,} bytes; up to {_MAX_NAME} make sense")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise _BadError(f"{what} is not UTF-8") from None


@dataclass(slots=True)
class _Found:
    alignment: int = _DEFAULT_ALIGNMENT
    architecture: bool = False
    keys: set[str] = field(default_factory=set)
    # start, stop, name
    tensors: list[tuple[int, int, str]] = field(default_factory=list)


def check_gguf(path: Path) -> None:
    """Check magic, keys, tensor table and sizes of a GGUF file, without reading its weights.

    Raises:
        IntegrityError: naming what is wrong.
    """
    try:
        with path.open("rb") as file:
            first = file.read(8)
            refuse_pickle(path, first)
            if first[:4] != b"GGUF":
                raise IntegrityError(f"{path}: not a GGUF file: it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(_Cursor(data, 4))
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error}") from None
    except _BadError as error:
        raise IntegrityError(f"{path}: its GGUF header is wrong: {error}") from None


def _check(cursor: _Cursor) -> None:
    version = cursor.u32("the version")
    if version not in (2, 3):
        raise _BadError(f"version {version}; 2 and 3 are known")
    tensors = cursor.u64("the number of tensors")
    keys = cursor.u64("the number of keys")
    if not 0 < tensors <= _MAX_TENSORS:
        raise _BadError(f"it names {tensors:,} tensors")
    if keys > _MAX_KEYS:
        raise _BadError(f"it names {keys:,} keys")
    found = _Found()
    for _ in range(keys):
        _key(cursor, found)
    if not found.architecture:
        raise _BadError("general.architecture is missing")
    for _ in range(tensors):
        _tensor(cursor, found)
    _layout(cursor, found)


def _key(cursor: _Cursor, found: _Found) -> None:
    name = cursor.name("a key")
    if name in found.keys:
        raise _BadError(f"the key {name!r} stands there twice")
    found.keys.add(name)
    kind = cursor.u32(name)
    if name == "general.alignment":
        if kind != _U32:
            raise _BadError("general.alignment is not a whole number")
        found.alignment = cursor.u32(name)
        power = found.alignment & (found.alignment - 1) == 0
        if not (power and 0 < found.alignment <= _MAX_ALIGNMENT):
            raise _BadError(f"general.alignment is {found.alignment:,}")
        return
    found.architecture = found.architecture or (name == "general.architecture" and kind == _STRING)
    _value(cursor, kind, name, _MAX_DEPTH)


def _value(cursor: _Cursor, kind: int, name: str, depth: int) -> None:
    if kind in _SCALARS:
        cursor.skip(_SCALARS[kind], name)
    elif kind == _STRING:
        cursor.skip(cursor.u64(name), name)
    elif kind == _ARRAY and depth > 0:
        _array(cursor, name, depth - 1)
    else:
        raise _BadError(f"{name} is of unknown type {kind}, or nested too deeply")


def _array(cursor: _Cursor, name: str, depth: int) -> None:
    kind = cursor.u32(name)
    count = cursor.u64(name)
    if kind in _SCALARS:
        cursor.skip(count * _SCALARS[kind], name)
    elif kind == _STRING:
        _strings(cursor, count, name)
    else:
        # every array inside takes 12 bytes at least, so the file's size bounds the loop
        for _ in range(min(count, len(cursor.data))):
            _value(cursor, kind, name, depth)


def _strings(cursor: _Cursor, count: int, name: str) -> None:
    """Step over a vocabulary: 150,000 texts in a tenth of a second."""
    data, place, end = cursor.data, cursor.place, len(cursor.data)
    if count * 8 > end - place:
        raise _BadError(f"{name} holds {count:,} texts; the file ends before")
    length_at = struct.Struct("<Q").unpack_from
    for _ in range(count):
        if place + 8 > end:
            raise _BadError(f"{name}: the file ends inside")
        place += 8 + length_at(data, place)[0]
    if place > end:
        raise _BadError(f"{name}: the file ends inside")
    cursor.place = place


def _tensor(cursor: _Cursor, found: _Found) -> None:
    name = cursor.name("a tensor's name")
    dimensions = cursor.u32(name)
    if not 0 < dimensions <= 4:
        raise _BadError(f"{name} has {dimensions} dimensions")
    shape = [cursor.u64(name) for _ in range(dimensions)]
    kind = cursor.u32(name)
    start = cursor.u64(name)
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError:
        raise _BadError(f"{name} is of unknown type {kind}") from None
    if min(shape) == 0 or shape[0] % block:
        raise _BadError(f"{name} has shape {shape}, which its type cannot hold")
    if start % found.alignment:
        raise _BadError(f"{name} begins at {start}, no multiple of {found.alignment}")
    found.tensors.append((start, start + math.prod(shape) // block * size, name))


def _layout(cursor: _Cursor, found: _Found) -> None:
    """Tensors fill the rest of the file: no overlap, no hole beyond padding, none twice."""
    names = {name for _, _, name in found.tensors}
    faults: list[str] = []
    if len(names) != len(found.tensors):
        faults.append("a tensor's name stands there twice")
    begin = -(-cursor.place // found.alignment) * found.alignment
    room = len(cursor.data) - begin
    end = 0
    for start, stop, name in sorted(found.tensors):
        if start < end:
            faults.append(f"{name} overlaps the tensor before it")
        elif start - end >= found.alignment:
            faults.append(f"{start - end:,} undescribed bytes before {name}")
        end = max(end, stop)
    if end > room:
        faults.append(f"its tensors need {end:,} bytes, the file has {max(room, 0):,}")
    elif room - end >= found.alignment:
        faults.append(f"{room - end:,} undescribed bytes at the end")
    if faults:
        raise _BadError("; ".join(faults[:_SHOWN]))
