"""Hostile and damaged files: each is a typed error, raised from its header alone."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.bases import resolve
from halfbyte.model.gguf_header import check_gguf
from halfbyte.model.untrusted import check_folder, read_header, read_json
from tests.tiny import tiny_base

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def st(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A safetensors file with this header, honest or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(**changes: object) -> dict[str, object]:
    return {**ENTRY, **changes}


HOSTILE_SAFETENSORS: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "length only": struct.pack("<Q", 0),
    "header longer than the file": st({"a": ENTRY}, length=10**6),
    "header of 2**63 bytes": st({"a": ENTRY}, length=2**63),
    "header of all ones": st({"a": ENTRY}, length=2**64 - 1),
    "huge header": st(b" " * ((8 << 20) + 2)),
    "not UTF-8": st(b'{"\xff\xfe": 1}'),
    "not JSON": st(b"{'a': 1}"),
    "cut JSON": st(b'{"a": {"dtype": "F32"'),
    "a list": st([ENTRY]),
    "a number": st(b"7"),
    "NaN as JSON": st(b'{"a": NaN}'),
    "very deep": st(b"[" * 100_000),
    "no tensors": st({}, b""),
    "metadata only": st({"__metadata__": {"format": "pt"}}, b""),
    "metadata not text": st({"__metadata__": {"a": 1}, "t": ENTRY}),
    "metadata a list": st({"__metadata__": [], "t": ENTRY, "u": ENTRY}),
    "doubled name": st(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2)),
    "doubled key inside": st(
        b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}'
    ),
    "entry not an object": st({"a": 1}),
    "missing offsets": st({"a": {"dtype": "F32", "shape": [2]}}),
    "extra key": st({"a": entry(code="import os")}),
    "unknown dtype": st({"a": entry(dtype="F33")}),
    "dtype not text": st({"a": entry(dtype=4)}),
    "negative shape": st({"a": entry(shape=[-2])}),
    "two negatives": st({"a": entry(shape=[-1, -2])}),
    "boolean shape": st({"a": entry(dtype="F64", shape=[True])}),
    "float shape": st({"a": entry(shape=[2.0])}),
    "shape a text": st({"a": entry(shape="2")}),
    "forty dimensions": st({"a": entry(shape=[2] + [1] * 39)}),
    "overflowing shape": st({"a": entry(shape=[2**62, 4])}),
    "a number of 5,000 digits": st(
        b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 5000)
    ),
    "size too small": st({"a": entry(shape=[1])}),
    "size too large": st({"a": entry(shape=[3])}),
    "end before start": st({"a": entry(shape=[0], data_offsets=[8, 0])}),
    "negative start": st({"a": entry(data_offsets=[-8, 0])}),
    "past the end": st({"a": entry(data_offsets=[8, 16])}),
    "three offsets": st({"a": entry(data_offsets=[0, 4, 8])}),
    "data cut": st({"a": ENTRY}, bytes(4)),
    "overlap": st({"a": ENTRY, "b": ENTRY}),
    "partial overlap": st({"a": ENTRY, "b": entry(data_offsets=[4, 12])}, bytes(12)),
    "hole": st({"a": ENTRY, "b": entry(data_offsets=[16, 24])}, bytes(24)),
    "bytes before": st({"a": entry(data_offsets=[8, 16])}, bytes(16)),
    "bytes behind": st({"a": ENTRY}, bytes(9)),
    "a pickle": pickle.dumps({"weight": [1.0] * 100}),
    "a torch archive": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE_SAFETENSORS)
def test_hostile_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    """Whatever the header claims, the answer is an IntegrityError, in little memory."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE_SAFETENSORS[name])
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_a_file_that_ends_too_early_is_one_fault(tmp_path: Path) -> None:
    """Not one for each tensor that is missing."""
    path = tmp_path / "model.safetensors"
    save_file({str(i): torch.ones(8) for i in range(9)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="188 bytes of weights instead of 288") as error:
        read_header(path)
    assert error.value.hint
    assert not error.value.faults


def test_an_honest_file_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    """Names, types, shapes and places agree with the reference writer's file."""
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    raw = path.read_bytes()
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    info = header.tensors["a"]
    stored = raw[header.data + info.start : header.data + info.stop]
    assert stored == tensors["a"].numpy().tobytes()


def gguf(
    *,
    version: int = 3,
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    counts: tuple[int, int] | None = None,
    data: bytes = bytes(64),
) -> bytes:
    """A GGUF file of these parts, its data aligned to 32 bytes."""
    keys = [text("general.architecture", "llama")] if keys is None else keys
    tensors = [tensor("t", [16])] if tensors is None else tensors
    counted = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *counted) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def name_of(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def text(key: str, value: str) -> bytes:
    return name_of(key) + struct.pack("<I", 8) + name_of(value)


def tensor(name: str, shape: list[int], kind: int = 0, start: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return name_of(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, start)


ARCHITECTURE = text("general.architecture", "llama")
HOSTILE_GGUF: dict[str, bytes] = {
    "empty file": b"",
    "no magic": b"GGML" + bytes(60),
    "magic only": b"GGUF",
    "version 1": gguf(version=1),
    "version from the future": gguf(version=99),
    "no tensors": gguf(tensors=[]),
    "too many tensors": gguf(counts=(2**60, 1)),
    "too many keys": gguf(counts=(1, 2**60)),
    "more tensors than there are": gguf(counts=(50, 1)),
    "no architecture": gguf(keys=[]),
    "architecture a number": gguf(
        keys=[name_of("general.architecture") + struct.pack("<II", 4, 1)]
    ),
    "key without end": gguf(keys=[struct.pack("<Q", 2**50) + b"abc"]),
    "key not UTF-8": gguf(keys=[struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)]),
    "doubled key": gguf(keys=[ARCHITECTURE, ARCHITECTURE]),
    "unknown value type": gguf(keys=[ARCHITECTURE, name_of("k") + struct.pack("<I", 77)]),
    "endless text": gguf(keys=[ARCHITECTURE, name_of("k") + struct.pack("<IQ", 8, 2**62)]),
    "endless array": gguf(keys=[ARCHITECTURE, name_of("k") + struct.pack("<IIQ", 9, 4, 2**62)]),
    "endless texts": gguf(keys=[ARCHITECTURE, name_of("k") + struct.pack("<IIQ", 9, 8, 2**60)]),
    "arrays in arrays": gguf(
        keys=[ARCHITECTURE, name_of("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50]
    ),
    "alignment zero": gguf(
        keys=[ARCHITECTURE, name_of("general.alignment") + struct.pack("<II", 4, 0)]
    ),
    "alignment 48": gguf(
        keys=[ARCHITECTURE, name_of("general.alignment") + struct.pack("<II", 4, 48)]
    ),
    "five dimensions": gguf(tensors=[tensor("t", [16, 1, 1, 1, 1])]),
    "a dimension of zero": gguf(tensors=[tensor("t", [0])]),
    "overflowing shape": gguf(tensors=[tensor("t", [2**62, 2**62])]),
    "unknown tensor type": gguf(tensors=[tensor("t", [16], kind=99)]),
    "no whole block": gguf(tensors=[tensor("t", [16], kind=2)]),
    "crooked start": gguf(tensors=[tensor("t", [8], start=4)]),
    "past the end": gguf(tensors=[tensor("t", [16], start=64)]),
    "overlap": gguf(tensors=[tensor("a", [16]), tensor("b", [8], start=32)]),
    "doubled tensor": gguf(tensors=[tensor("a", [8]), tensor("a", [8], start=32)]),
    "hole": gguf(tensors=[tensor("a", [8]), tensor("b", [8], start=96)], data=bytes(128)),
    "bytes behind": gguf(data=bytes(200)),
    "data cut": gguf(data=bytes(60)),
    "a pickle": pickle.dumps([1.0] * 100),
}


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_hostile_gguf_is_refused(name: str, tmp_path: Path) -> None:
    """Whatever the header claims, the answer is an IntegrityError that names the file."""
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE_GGUF[name])
    with pytest.raises(IntegrityError, match=r"m\.gguf"):
        check_gguf(path)


def test_an_honest_gguf_passes(tmp_path: Path) -> None:
    """The files the hostile ones are made from are accepted, so each fails for its own fault."""
    nested = name_of("k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 2) + bytes(8)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf())
    check_gguf(path)
    path.write_bytes(gguf(keys=[ARCHITECTURE, nested, text("x", "y")]))
    check_gguf(path)
    path.write_bytes(gguf(tensors=[tensor("a", [8]), tensor("b", [8], start=32)]))
    check_gguf(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base(tmp_path)


def add_to_json(path: Path, **more: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def custom_code(folder: Path) -> None:
    add_to_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})


def custom_tokenizer(folder: Path) -> None:
    add_to_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", None]})


def pickled_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(pickle.dumps({"model": {}}))


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def index_leading_out(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "../../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_without_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (custom_code, "never runs"),
        (custom_tokenizer, "never runs"),
        (pickled_tokenizer, "pickle"),
        (pickled_weights, r"pytorch_model\.bin"),
        (no_weights, "no .safetensors"),
        (index_leading_out, "missing"),
        (index_without_map, "weight_map"),
        (broken_config, "not JSON"),
    ],
)
def test_hostile_folders_are_refused(
    folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """A folder with code, pickles or a crooked index is refused before anything is loaded."""
    check_folder(folder)
    spoil(folder)
    with pytest.raises(IntegrityError, match=says):
        resolve(str(folder))


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    """A folder that is no model is the user's mistake, not a damaged file."""
    with pytest.raises(InputError, match=r"config\.json") as caught:
        resolve(str(tmp_path))
    assert not isinstance(caught.value, IntegrityError)


def test_json_of_a_size_without_sense_is_not_read(tmp_path: Path) -> None:
    """The limit is checked on the file's size, not on what was read."""
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)  # sparse: takes no disk
    with pytest.raises(IntegrityError, match="make sense"):
        read_json(path)
