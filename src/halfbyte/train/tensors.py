"""Tensors to disk in the safetensors format, tensor by tensor: flat memory, and plain OSErrors.

The library's own writer wants everything in memory twice and reports a full disk as text. The
format is small (https://github.com/huggingface/safetensors, "Format"): the header's length in
eight bytes, a JSON header, the tensors' bytes without gaps. Reading is left to the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from halfbyte.errors import IntegrityError
from halfbyte.run.files import HashingFile

_NAMES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK: Final = 64 << 20


def write_tensors(file: HashingFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` (any device, any strides) as one safetensors file."""
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    start = 0
    for name in names:
        tensor = tensors[name]
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        view = memoryview(raw.numpy().data)
        for offset in range(0, len(view), _CHUNK):
            file.write(view[offset : offset + _CHUNK])


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: cannot be read as safetensors: {error}") from None


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """What the tensors take on disk, in bytes, header left out."""
    return sum(math.prod(one.shape) * one.element_size() for one in tensors.values())
