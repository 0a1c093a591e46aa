"""Reading weights one at a time: what transformers gets instead of opening the files itself.

Files are read, not mapped: a mapped file counts as memory of the process until it is closed, so
that loading a 7B base would show 14 GB beside the weights it keeps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Final

import torch

from halfbyte.errors import IntegrityError
from halfbyte.model.untrusted import TensorInfo, read_header

_DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_SHOWN: Final = 3


@dataclass(slots=True)
class Faults:
    """Weights that turned out bad while they were read.

    transformers catches whatever is raised while it loads, so faults are collected here and
    raised after it.
    """

    found: list[str] = field(default_factory=list)

    def raise_if_any(self, where: Path) -> None:
        """Raise what was found.

        Raises:
            IntegrityError: with the first three.
        """
        if self.found:
            raise IntegrityError(
                f"{where}: {len(self.found)} weights are damaged:", sorted(self.found)[:_SHOWN]
            )


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A weight in a file; indexing it with `...` reads it, as transformers does.

    `cast`: the floating type it is handed out in (None: the file's). transformers leaves the
    unquantized weights of a quantized checkpoint in the file's type, whatever it was asked for.
    """

    path: Path
    name: str
    info: TensorInfo
    data: int
    faults: Faults
    cast: torch.dtype | None = None

    def get_dtype(self) -> str:
        """Its type in safetensors' spelling."""
        return self.info.dtype

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.info.shape)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return self.info.stop - self.info.start

    def __getitem__(self, key: EllipsisType) -> torch.Tensor:
        tensor = self._read()
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # NaN and infinities survive it; no copy is made
            if not (torch.isfinite(low) and torch.isfinite(high)):
                self.faults.found.append(f"{self.name}: holds NaN or infinity ({self.path.name})")
                tensor.zero_()  # nothing between here and the error shall stumble over them
            tensor = tensor if self.cast is None else tensor.to(self.cast)
        return tensor

    def _read(self) -> torch.Tensor:
        raw = torch.empty(self.bytes, dtype=torch.uint8)
        view = raw.numpy().data
        handle = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < self.bytes:  # one read gives at most 2 GiB
                got = os.preadv(handle, [view[done:]], self.data + self.info.start + done)
                if got == 0:
                    self.faults.found.append(f"{self.name}: the file ends before it")
                    raw[done:] = 0
                    break
                done += got
        finally:
            os.close(handle)
        return raw.view(_DTYPES[self.info.dtype]).reshape(self.info.shape)


def stored_tensors(paths: Sequence[Path], faults: Faults) -> dict[str, StoredTensor]:
    """Every weight of these safetensors files, unread; headers are checked.

    Raises:
        IntegrityError: a bad header, a type torch has no use for, or a name in two files.
    """
    found: dict[str, StoredTensor] = {}
    for path in paths:
        header = read_header(path)
        for name, info in header.tensors.items():
            if info.dtype not in _DTYPES:
                raise IntegrityError(f"{path}: {name}: weights of type {info.dtype} cannot be used")
            if name in found:
                raise IntegrityError(f"{path}: {name} is in {found[name].path.name} too")
            found[name] = StoredTensor(path, name, info, header.data, faults)
    return found
