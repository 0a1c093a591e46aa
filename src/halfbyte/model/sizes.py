"""The sizes of the catalogue's bases, so that a training can be planned before one is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["SIZES", "Sizes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a config.json says of a decoder's shape, in its own words."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    head_dim: int | None = None
    sliding_window: int | None = None

    def config(self) -> dict[str, Any]:
        """As config.json has it; what it does not name is left to the architecture's default."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value is not None}


# From the config.json on each model's page.
SIZES: Final[dict[str, Sizes]] = {
    "smollm2-135m": Sizes("llama", 576, 1536, 30, 9, 3, 49152, True),
    "smollm2-360m": Sizes("llama", 960, 2560, 32, 15, 5, 49152, True),
    "qwen2.5-0.5b": Sizes("qwen2", 896, 4864, 24, 14, 2, 151_936, True),
    "tinyllama-1.1b": Sizes("llama", 2048, 5632, 22, 32, 4, 32000, False),
    "qwen2.5-1.5b": Sizes("qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
    "smollm2-1.7b": Sizes("llama", 2048, 8192, 24, 32, 32, 49152, True),
    "gemma-2b": Sizes("gemma", 2048, 16384, 18, 8, 1, 256_000, True, head_dim=256),
    "llama-2-7b": Sizes("llama", 4096, 11008, 32, 32, 32, 32000, False),
    "mistral-7b": Sizes("mistral", 4096, 14336, 32, 32, 8, 32000, False, sliding_window=4096),
    "mistral-7b-instruct": Sizes("mistral", 4096, 14336, 32, 32, 8, 32000, False),
    "qwen2.5-7b": Sizes("qwen2", 3584, 18944, 28, 28, 4, 152_064, False),
}
