"""Quantizing weights on their way in, into the form in which bitsandbytes stores them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Final, Literal

import bitsandbytes.functional as bnb
import torch

from halfbyte.model.fast import alloc
from halfbyte.model.stream import StoredTensor

Quantization = Literal["nf4", "fp4", "int8"]

BLOCK: Final = 64  # weights that share a scale (QLoRA, section 3)
_BLOCK_OF_SCALES: Final = 256  # scales that share a scale, with double quantization
# Weights handled at once: they stay in the cache, and torch does not split work this small among
# threads, whose barriers cost more than the work where cores are shared (measured: 16 times).
_CHUNK: Final = 1 << 15
# Bytes from which a weight's memory is given back at once: kept by the allocator, the freed pages
# between quantized weights add up to half a GB for a 1.1B base (measured: peak 2.0 against 1.5 GB).
_LARGE: Final = 4 << 20
_CELLS: Final = 1024  # of the look-up table; neighbouring bounds are at least 40 cells apart
_NAMES: Final = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are quantized: the type, whether scales are too, and what they are cast to first.

    `dtype` is also the type that bitsandbytes dequantizes into.
    """

    quantization: Quantization
    double_quant: bool
    dtype: torch.dtype

    def config(self) -> dict[str, Any]:
        """What a config.json says about weights quantized so."""
        if self.quantization == "int8":
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.quantization,
            "bnb_4bit_use_double_quant": self.double_quant,
            "bnb_4bit_compute_dtype": str(self.dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
        }

    def parts(self) -> tuple[str, ...]:
        """The suffixes under which one quantized weight is stored, in natural order."""
        if self.quantization == "int8":
            return ("SCB", "weight", "weight_format")
        nested = ("weight.nested_absmax", "weight.nested_quant_map") if self.double_quant else ()
        state = f"weight.quant_state.bitsandbytes__{self.quantization}"
        return ("weight", "weight.absmax", *nested, "weight.quant_map", state)

    def apply(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Quantize a weight [out, in] on its device: suffix → tensor."""
        weight = weight.contiguous()
        if self.quantization == "int8":
            # LLM.int8's layer quantizes from float16, row by row
            rows, scales, _ = bnb.int8_vectorwise_quant(weight.to(self.dtype).to(torch.float16))
            return {
                "weight": rows,
                "SCB": scales,
                "weight_format": torch.tensor(0, dtype=torch.uint8),
            }
        packed, state = self._four_bit(weight)
        stored = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {"weight": packed, **stored}

    def _four_bit(self, weight: torch.Tensor) -> tuple[torch.Tensor, bnb.QuantState]:
        quick = self.quantization == "nf4" and weight.device.type == "cpu"
        if not quick or weight.numel() % BLOCK:
            return bnb.quantize_4bit(
                weight.to(self.dtype),
                compress_statistics=self.double_quant,
                quant_type=self.quantization,
            )
        # widening is exact, and done chunk by chunk: a copy would double what is in memory
        packed, scales = quantize_nf4(
            weight if self.dtype == torch.float32 else weight.to(self.dtype)
        )
        shared: dict[str, Any] = {"absmax": scales}
        if self.double_quant:
            offset = scales.mean()
            scales, outer = bnb.quantize_blockwise(scales - offset, blocksize=_BLOCK_OF_SCALES)
            shared = {"absmax": scales, "offset": offset, "state2": outer}
        code = bnb.get_4bit_type("nf4", device="cpu")
        state = bnb.QuantState(
            shape=weight.shape,
            dtype=self.dtype,
            blocksize=BLOCK,
            code=code,
            quant_type="nf4",
            **shared,
        )
        return packed, state


class _Table:
    """Finds the nearest of sixteen values by looking up a cell and comparing once.

    Bit for bit what bitsandbytes finds by a binary search, which takes three quarters of its
    time: 9 million weights a second on one core against 40 here (measured, AVX2).
    """

    def __init__(self) -> None:
        code = bnb.get_4bit_type("nf4", device="cpu")
        bounds = (code[1:] + code[:-1]) / 2
        edges = torch.arange(_CELLS + 1, dtype=torch.float64) * 2 / _CELLS - 1
        self.below = torch.searchsorted(bounds.double(), edges).to(torch.uint8)
        self.bound = torch.full((_CELLS + 1,), torch.inf)
        self.bound[((bounds.double() + 1) * (_CELLS / 2)).long()] = bounds


def quantize_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A contiguous CPU weight of a multiple of 64 elements: (packed [n/2, 1], scales [n/64]).

    The work is done in chunks that stay in the cache, so that nothing of the weight's size is
    allocated beside the result; torch's threads each take a strip of chunks.
    """
    flat = weight.reshape(-1)
    total = flat.numel()
    scales = torch.empty(total // BLOCK)
    packed = torch.empty(total // 2, dtype=torch.uint8)
    table = _Table()
    workers = torch.get_num_threads()
    strip = -(-total // (workers * _CHUNK)) * _CHUNK

    def work(begin: int) -> None:
        end = min(begin + strip, total)
        block, pair = slice(begin // BLOCK, end // BLOCK), slice(begin // 2, end // 2)
        _quantize_strip(flat[begin:end], table, scales[block], packed[pair])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(0, total, strip)))
    return packed.unsqueeze(1), scales


def _quantize_strip(
    flat: torch.Tensor, table: _Table, scales: torch.Tensor, packed: torch.Tensor
) -> None:
    total = flat.numel()
    room = min(_CHUNK, total)
    values, other = torch.empty(room), torch.empty(room)
    cells = torch.empty(room, dtype=torch.int32)
    codes, above = torch.empty(room, dtype=torch.uint8), torch.empty(room, dtype=torch.bool)
    for start in range(0, total, _CHUNK):
        size = min(_CHUNK, total - start)
        x, y, i, q, up = values[:size], other[:size], cells[:size], codes[:size], above[:size]
        x.copy_(flat[start : start + size])
        scale = scales[start // BLOCK : (start + size) // BLOCK]
        torch.amax(torch.abs(x, out=y).view(-1, BLOCK), dim=1, out=scale)
        inverse = 1.0 / scale.clamp(min=1e-38)  # a block of zeros stays zeros
        x.view(-1, BLOCK).mul_(inverse.view(-1, 1)).clamp_(-1, 1)
        i.copy_(torch.add(x, 1, out=y).mul_(_CELLS / 2))
        torch.index_select(table.below, 0, i, out=q)
        torch.index_select(table.bound, 0, i, out=y)
        q.add_(torch.gt(x, y, out=up))
        pairs = q.view(torch.int16)  # little-endian: the first of two codes is the low byte
        packed[start // 2 : (start + size) // 2] = torch.bitwise_or(pairs << 4, pairs >> 8)


class QuantizedTensor:
    """A stored weight that is quantized once, when the first of its parts is read."""

    def __init__(
        self, source: StoredTensor, recipe: Recipe, device: torch.device, transpose: bool
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._device = device
        self._transpose = transpose
        self._lock = threading.Lock()  # transformers reads from several threads
        self._parts: dict[str, torch.Tensor] | None = None

    def parts(self) -> dict[str, Part]:
        """Suffix → a part that reads like a stored tensor."""
        return {suffix: Part(self, suffix) for suffix in self._recipe.parts()}

    def take(self, suffix: str) -> torch.Tensor:
        """Hand out a part; each can be taken once, so that nothing is kept."""
        with self._lock:
            if self._parts is None:
                weight = self._source[...].to(self._device)
                self._parts = self._recipe.apply(weight.T if self._transpose else weight)
                large = weight.nbytes >= _LARGE
                del weight
                if large:
                    alloc.trim()
            return self._parts.pop(suffix)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tensors a quantized weight consists of."""

    owner: QuantizedTensor
    suffix: str

    def get_dtype(self) -> str:
        """Its type in safetensors' spelling: parts are never cast."""
        return "U8"

    def __getitem__(self, key: EllipsisType) -> torch.Tensor:
        return self.owner.take(self.suffix)
