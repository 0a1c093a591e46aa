"""Reading files that may be damaged or hostile: JSON and safetensors headers, before anything else
opens them.

Every check here runs on the header alone, with limits on its size, so that a bad file costs
neither time nor memory; weights are read only by `halfbyte.model.finite`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from halfbyte.errors import InputError, IntegrityError

MAX_JSON: Final = 64 << 20  # a tokenizer.json of 256,000 entries has about 35 MB
MAX_HEADER: Final = 8 << 20  # a 7B model's header has 35 kB
MAX_DIMENSIONS: Final = 8
_SHOWN: Final = 3  # faults named in a message

# Bits of one element, from the safetensors format description (version 0.8).
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
}  # fmt: skip
_CONVERT: Final = (
    "Pickles run code when opened, so halfbyte never opens one. On a machine you can throw away, "
    "load the model with transformers and save_pretrained() it: that writes safetensors."
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file: type name, shape, bytes `start:stop` of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked safetensors header; `data` is where the weights begin in the file."""

    tensors: dict[str, TensorInfo]
    data: int


class _DoubledError(ValueError):
    """A JSON object names a key twice."""


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        IntegrityError: too large, not UTF-8, not a JSON object, too deep, a doubled name, or not
            JSON at all (a pickle, say).
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise IntegrityError(f"{path}: {size:,} bytes; at most {limit:,} make sense here")
        raw = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error}") from None
    return _parse(path, raw, "not JSON")


def read_header(path: Path) -> Header:
    """The header of a safetensors file, with every statement in it checked against the file.

    Raises:
        IntegrityError: naming the first faults.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            refuse_pickle(path, first)
            if size < 8 or length > size - 8:
                raise IntegrityError(
                    f"{path}: not a safetensors file: its header says {length:,} bytes, "
                    f"the file has {size:,}"
                )
            if length > MAX_HEADER:
                raise IntegrityError(
                    f"{path}: a header of {length:,} bytes; at most {MAX_HEADER:,} make sense"
                )
            raw = file.read(length)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error}") from None
    table = _parse(path, raw, "its safetensors header is not JSON")
    return Header(_checked(path, table, size - 8 - length), 8 + length)


def _parse(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    refuse_pickle(path, raw[:8])
    try:
        table = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _DoubledError as error:
        raise IntegrityError(f"{path}: the name {error} stands there twice") from None
    except RecursionError:
        raise IntegrityError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: {what}: {error}") from None
    if not isinstance(table, dict):
        raise IntegrityError(f"{path}: {what}: a {type(table).__name__} where an object belongs")
    return table


def refuse_pickle(path: Path, first: bytes) -> None:
    """Refuse a file whose first eight bytes are those of a pickle, or of torch.save's archive.

    Raises:
        IntegrityError: it is one.
    """
    # a bare pickle begins with its protocol, torch.save's with a zip archive
    pickle = len(first) > 1 and first[0] == 0x80 and 2 <= first[1] <= 5
    # an eight-byte header length that starts so would be possible, but not below our limit
    too_long = int.from_bytes(first, "little") > MAX_HEADER
    if (pickle and too_long) or first.startswith(b"PK\x03\x04"):
        raise IntegrityError(f"{path}: a pickle under another name; not opened", hint=_CONVERT)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add returns None on purpose here
        raise _DoubledError(repr(doubled))
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _checked(path: Path, table: dict[str, Any], data: int) -> dict[str, TensorInfo]:
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise IntegrityError(f"{path}: __metadata__ may only hold texts")
    if not table:
        raise IntegrityError(f"{path}: holds no tensors")
    _refuse_short(path, table, data)
    tensors: dict[str, TensorInfo] = {}
    faults: list[str] = []
    for name, entry in table.items():
        found = _tensor(entry, data)
        if isinstance(found, TensorInfo):
            tensors[name] = found
        else:
            faults.append(f"{name[:200]}: {found}")
    faults = faults or list(_gaps(tensors, data))
    if faults:
        count = f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''} in its header:"
        raise IntegrityError(count, faults[:_SHOWN])
    return tensors


def _refuse_short(path: Path, table: dict[str, Any], data: int) -> None:
    """Say it in one line where a file ends too early and nothing else is wrong with its header."""
    found = [_tensor(entry, sys.maxsize) for entry in table.values()]
    whole = [one for one in found if isinstance(one, TensorInfo)]
    end = max((one.stop for one in whole), default=0)
    if end > data and len(whole) == len(found):
        raise IntegrityError(
            f"{path}: is cut short: {data:,} bytes of weights instead of {end:,}",
            hint="Copy or fetch it again.",
        )


def _tensor(entry: Any, data: int) -> TensorInfo | str:
    """The tensor a header entry describes, or what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"unknown dtype {str(dtype)[:40]!r}"
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        return "its shape is not a list of up to eight sizes"
    if not _naturals(offsets) or len(offsets) != 2:
        return "its data_offsets are not two places"
    tensor = TensorInfo(dtype, tuple(shape), *offsets)
    return _misplaced(tensor, data) or tensor


def _misplaced(tensor: TensorInfo, data: int) -> str:
    start, stop = tensor.start, tensor.stop
    if not start <= stop <= data:
        return f"bytes {start} to {stop} do not lie in the file's {data:,} bytes of weights"
    needed = math.prod(tensor.shape) * _BITS[tensor.dtype] // 8
    if needed != stop - start:
        return (
            f"shape {list(tensor.shape)} of {tensor.dtype} needs {needed} bytes, not {stop - start}"
        )
    return ""


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _gaps(tensors: dict[str, TensorInfo], data: int) -> Iterator[str]:
    """Bytes that two tensors share, or that none describes: room to hide something."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start < end:
            yield f"{name[:200]}: overlaps the tensor before it"
        elif tensor.start > end:
            yield f"{name[:200]}: {tensor.start - end} undescribed bytes before it"
        end = max(end, tensor.stop)
    if end != data:
        yield f"{data - end} undescribed bytes at the end"


def check_folder(folder: Path) -> tuple[Path, ...]:
    """Check a model folder without loading anything; its safetensors files come back.

    Raises:
        IntegrityError: a damaged or hostile file, custom code, or weights only as pickles.
        InputError: not a model folder.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(
            f"{folder}: has no config.json: not a transformers model folder",
            "For an adapter, give the run or adapter folder to a command that takes one.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _refuse_code(folder / name, read_json(folder / name))
    for path in sorted(folder.glob("tokenizer.*")):
        with path.open("rb") as file:
            refuse_pickle(path, file.read(8))
    if absent := _absent(folder):
        raise IntegrityError(
            f"{folder}: {len(absent)} files that its index names are missing:", absent[:_SHOWN]
        )
    weights = weight_files(folder)
    if not weights:
        check_no_pickle(folder)
        raise IntegrityError(f"{folder}: holds no .safetensors file")
    for path in weights:
        read_header(path)
    return weights


def _refuse_code(path: Path, table: dict[str, Any]) -> None:
    if table.get("auto_map"):
        raise IntegrityError(
            f"{path}: names Python code of its own (auto_map), which halfbyte never runs",
            hint="Use a model whose architecture transformers has built in.",
        )


def check_no_pickle(folder: Path) -> None:
    """Say that weights stored as pickles must be converted, where there are any.

    Raises:
        IntegrityError: the folder holds weights as pickles.
    """
    pickles = [
        path.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
        for path in sorted(folder.glob(pattern))
    ]
    if pickles:
        raise IntegrityError(
            f"{folder}: its weights are pickles ({', '.join(pickles[:_SHOWN])}); not opened",
            hint=_CONVERT,
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model, in name order.

    Those the index names; without one `model.safetensors`, else all there are. Some hub
    repositories hold the same weights a second time under the names of another program.

    Raises:
        IntegrityError: the index is no index.
    """
    if names := _indexed(folder):
        return tuple(folder / name for name in names if (folder / name).is_file())
    single = folder / "model.safetensors"
    return (single,) if single.is_file() else tuple(sorted(folder.glob("*.safetensors")))


def is_complete(folder: Path) -> bool:
    """Whether config.json and every file that the index names are there.

    Raises:
        IntegrityError: the index is no index.
    """
    return (folder / "config.json").is_file() and not _absent(folder)


def _absent(folder: Path) -> list[str]:
    here = {path.name for path in folder.glob("*.safetensors")}
    return [name for name in _indexed(folder) if name not in here]


def _indexed(folder: Path) -> list[str]:
    """The files that the index of a model in several files names; none without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise IntegrityError(f"{index}: has no weight_map of names to files")
    return sorted(set(names.values()))
