"""Reading and writing weights one tensor at a time, so that memory stays that of one tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import torch
from torch import Tensor

from halfbyte.errors import IntegrityError
from halfbyte.model.untrusted import TensorInfo, check_folder, read_header

# The safetensors names of the types a model or an adapter may be stored in.
DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN: Final = 8  # the header is padded with spaces, so that the weights begin at a multiple
INDEX: Final = "model.safetensors.index.json"


class NotFiniteError(IntegrityError):
    """A tensor holds values that are not finite in the type it is to be stored in."""


class Weights(Protocol):
    """Named tensors that can be read one by one."""

    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in file order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    data: int
    info: TensorInfo


class StoredWeights:
    """The tensors of safetensors files; every header is checked before the first is read.

    Reading goes through plain file reads, not a memory map, whose touched pages would count as
    memory in use until the file is closed.

    Raises:
        IntegrityError: a damaged file, a name in two files, or a type that is no floating one.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for path in paths:
            header = read_header(path)
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].start):
                if name in self._places:
                    other = self._places[name].path.name
                    raise IntegrityError(f"{path}: {name} is in {other} too")
                if info.dtype not in DTYPES:
                    raise IntegrityError(
                        f"{path}: {name} is of type {info.dtype}; weights of type "
                        f"{', '.join(DTYPES)} can be merged and exported"
                    )
                self._places[name] = _Place(path, header.data, info)

    @classmethod
    def of_folder(cls, folder: Path) -> StoredWeights:
        """Those of a transformers model folder."""
        return cls(check_folder(folder))

    def names(self) -> tuple[str, ...]:
        """Every tensor's name, file by file, in the order of their places."""
        return tuple(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._places[name].info.shape

    def dtype(self, name: str) -> torch.dtype:
        """The type a tensor is stored in."""
        return DTYPES[self._places[name].info.dtype]

    def file(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._places[name].path.name

    def read(self, name: str) -> Tensor:
        """A tensor in its stored type."""
        place = self._places[name]
        size = place.info.stop - place.info.start
        buffer = bytearray(size)
        with place.path.open("rb") as file:
            file.seek(place.data + place.info.start)
            if file.readinto(buffer) != size:
                raise IntegrityError(f"{place.path}: ends within {name}")
        dtype = DTYPES[place.info.dtype]
        if not size:
            return torch.empty(place.info.shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).reshape(place.info.shape)


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor to be written: its type, shape and file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str

    @property
    def size(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path, slots: Mapping[str, Slot], make: Callable[[str], Tensor]
) -> dict[str, str]:
    """Write safetensors files (and their index when there is more than one).

    `make(name)` gives each tensor in turn; it is cast to its slot's type and dropped before the
    next one is made. Returns tensor name → file name.
    """
    where: dict[str, str] = {}
    for file in dict.fromkeys(slot.file for slot in slots.values()):
        mine = {name: slot for name, slot in slots.items() if slot.file == file}
        with (folder / file).open("wb") as out:
            out.write(_header(mine))
            for name, slot in mine.items():
                _append(out, name, slot, make(name))
        where |= dict.fromkeys(mine, file)
    if len(set(where.values())) > 1:
        total = sum(slot.size for slot in slots.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return where


def _header(slots: Mapping[str, Slot]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    place = 0
    for name, slot in slots.items():
        offsets = [place, place + slot.size]
        table[name] = {
            "dtype": _NAMES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": offsets,
        }
        place += slot.size
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGN)
    return len(raw).to_bytes(8, "little") + raw


def _append(out: BinaryIO, name: str, slot: Slot, tensor: Tensor) -> None:
    if tuple(tensor.shape) != slot.shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} for a slot of {slot.shape}")
    cast = tensor.detach().to("cpu", slot.dtype).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise NotFiniteError(
            f"{name}: holds values that are not finite in {_NAMES[slot.dtype]}",
            hint="Its weights are damaged, or too large for this type: write float32 instead.",
        )
    out.write(cast.reshape(-1).view(torch.uint8).numpy().data)
