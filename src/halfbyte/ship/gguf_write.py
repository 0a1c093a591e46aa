"""Writing GGUF files tensor by tensor: whole models, and adapters alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from torch import Tensor
from transformers import PretrainedConfig

from halfbyte.errors import InputError, IntegrityError
from halfbyte.ship.deltas import Adapter
from halfbyte.ship.gguf_shapes import (
    ROPE_FACTORS,
    gguf_name,
    heads_of,
    hyperparameters,
    interleave,
    into_gguf,
    rope_factors,
    shape_of,
)
from halfbyte.ship.gguf_vocab import Vocabulary
from halfbyte.ship.weights import Weights

Array = np.ndarray[Any, np.dtype[Any]]
_EMBEDDINGS: Final = ("token_embd.weight", "output.weight")
_COARSE: Final = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)

# What gguf's quantizer writes (it reads more: K- and I-quants need llama.cpp's own tool).
TYPES: Final[Mapping[str, tuple[Kind, gguf.LlamaFileType]]] = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


@dataclass(frozen=True, slots=True)
class Label:
    """What a GGUF file says of itself: the model's name and the base it was made from."""

    name: str
    base: str
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    shape: tuple[int, ...]
    kind: Kind
    read: Callable[[], Tensor]


def write_model(
    path: Path,
    weights: Weights,
    config: PretrainedConfig,
    vocab: Vocabulary,
    label: Label,
    type_name: str = "q8_0",
) -> None:
    """Write a whole model in one of TYPES.

    Matrices get the type; vectors stay float32. With 4 and 5 bits, embeddings and head get
    q8_0, as every token goes through them. A matrix whose rows are no multiple of 32 long cannot
    be cut into blocks and stays float16.

    Raises:
        InputError: an architecture or type that cannot be written.
        IntegrityError: a weight that is not finite in its type.
    """
    if type_name not in TYPES:
        raise InputError(f"GGUF: no type {type_name!r}; there are {', '.join(TYPES)}")
    kind, file_type = TYPES[type_name]
    writer = GGUFWriter(path, shape_of(config).arch)
    writer.add_type(gguf.GGUFType.MODEL)
    _add_label(writer, label)
    rows = weights.shape("model.embed_tokens.weight")[0]
    _add_numbers(writer, dict(hyperparameters(config, rows)))
    writer.add_file_type(int(file_type))
    if kind not in (Kind.F32, Kind.F16, Kind.BF16):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocab.write(writer)
    _stream(writer, _model_slots(weights, config, kind))


def _model_slots(weights: Weights, config: PretrainedConfig, kind: Kind) -> list[_Slot]:
    slots = []
    for name in weights.names():
        target = gguf_name(name)
        if target is None or (target == "output.weight" and config.tie_word_embeddings):
            continue
        shape = weights.shape(name)
        slots.append(
            _Slot(
                target,
                shape,
                _kind_for(target, shape, kind),
                lambda name=name, target=target: into_gguf(target, weights.read(name), config),  # type: ignore[misc]  # bound now, called later
            )
        )
    factors = rope_factors(config)
    if factors is not None:
        slots.append(_Slot(ROPE_FACTORS, tuple(factors.shape), Kind.F32, lambda: factors))
    return slots


def _kind_for(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    if len(shape) < 2:
        return Kind.F32
    if kind in _COARSE and name in _EMBEDDINGS:
        kind = Kind.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else Kind.F16


def write_adapter(path: Path, adapter: Adapter, config: PretrainedConfig, label: Label) -> None:
    """Write an adapter alone, as `llama-cli --lora` reads it on top of its base's GGUF.

    llama.cpp scales every layer by alpha / rank; a layer whose own scale differs (rsLoRA, or a
    layer's own rank or alpha) has the rest of it in B.

    Raises:
        InputError: DoRA, which llama.cpp does not have, or an architecture it does not know.
    """
    if adapter.config.use_dora:
        raise InputError(
            "GGUF: llama.cpp cannot apply a DoRA adapter: its effect depends on the weights",
            "Leave out --adapter-only: the merged model can be exported.",
        )
    shape = shape_of(config)
    writer = GGUFWriter(path, shape.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    _add_label(writer, label)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(adapter))
    _stream(writer, _adapter_slots(adapter, config))


def _alpha(adapter: Adapter) -> float:
    """The alpha that gives the adapter's usual scale where llama.cpp divides it by the rank."""
    rank = adapter.config.r
    plain = adapter.config.lora_alpha
    return plain * rank**0.5 if adapter.config.use_rslora else plain


def _adapter_slots(adapter: Adapter, config: PretrainedConfig) -> list[_Slot]:
    interleaved = shape_of(config).interleaved
    alpha = _alpha(adapter)
    slots = []
    for module in adapter.modules:
        name = gguf_name(f"{module}.weight")
        if name is None or (".attn_" not in name and ".ffn_" not in name):
            raise InputError(f"GGUF: no place for an adapter on {module}")
        count = heads_of(name, config) if interleaved else None

        def first(module: str = module) -> Tensor:
            return adapter.factors(module).a

        def second(module: str = module, count: int | None = count) -> Tensor:
            factors = adapter.factors(module)
            rows = factors.b * (factors.scale / (alpha / factors.a.shape[0]))
            return interleave(rows, count) if count else rows

        a, b = adapter.shapes(module)
        slots.append(_Slot(f"{name}.lora_a", a, Kind.F32, first))
        slots.append(_Slot(f"{name}.lora_b", b, Kind.F32, second))
    return slots


def _add_label(writer: GGUFWriter, label: Label) -> None:
    writer.add_name(label.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, label.base)
    if label.licence:
        writer.add_license(label.licence)


def _add_numbers(writer: GGUFWriter, numbers: Mapping[str, int | float | str]) -> None:
    for key, value in numbers.items():
        full = f"{writer.arch}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)


def _stream(writer: GGUFWriter, slots: list[_Slot]) -> None:
    """Header and table first, then each tensor as it is made; one is in memory at a time."""
    for slot in slots:
        shape, size = _bytes(slot.shape, slot.kind)
        dtype = np.dtype(np.float32 if slot.kind == Kind.F32 else np.float16)
        quantized = slot.kind not in (Kind.F32, Kind.F16)
        writer.add_tensor_info(
            slot.name, shape, np.dtype(np.uint8) if quantized else dtype, size, slot.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for slot in slots:
        writer.write_tensor_data(_encoded(slot))
    writer.close()


def _bytes(shape: tuple[int, ...], kind: Kind) -> tuple[tuple[int, ...], int]:
    """The shape gguf wants (in bytes for block types) and the size in bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    total = int(np.prod(shape)) // block * size
    if kind in (Kind.F32, Kind.F16):
        return shape, total
    return (*shape[:-1], shape[-1] // block * size), total


def _encoded(slot: _Slot) -> Array:
    data = slot.read().float().contiguous().numpy()
    with np.errstate(over="ignore"):  # an overflow is reported below, with its name
        encoded: Array = gguf.quants.quantize(data, slot.kind)
    finite = encoded if slot.kind in (Kind.F32, Kind.F16) else data
    if not np.isfinite(finite).all():
        raise IntegrityError(
            f"{slot.name}: holds values that are not finite in {slot.kind.name}",
            hint="Its weights are damaged, or too large for float16: try --type bf16.",
        )
    return encoded
