"""The architectures GGUF export knows: names of tensors, and what llama.cpp wants to be told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from halfbyte.errors import InputError

_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ROPE_FACTORS: Final = "rope_freqs.weight"
# A buffer that older checkpoints store; it follows from the config.
_IGNORED: Final = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformers model type in GGUF's terms.

    `arch`: llama.cpp's name. `interleaved`: its rotary embedding pairs neighbours (x0, x1), where
    transformers pairs halves, so that the rows of q and k are reordered. `norm_shift` is added to
    norm weights (Gemma's norms multiply by 1 + weight).
    """

    arch: str
    interleaved: bool = False
    norm_shift: float = 0.0


SHAPES: Final[dict[str, Shape]] = {
    "llama": Shape("llama", interleaved=True),
    "mistral": Shape("llama", interleaved=True),  # llama.cpp has no name of its own for it
    "qwen2": Shape("qwen2"),
    "qwen3": Shape("qwen3"),
    "gemma": Shape("gemma", norm_shift=1.0),
}


def shape_of(config: PretrainedConfig) -> Shape:
    """The GGUF shape of a model config.

    Raises:
        InputError: an architecture, or a variant of one, that llama.cpp computes differently.
    """
    shape = SHAPES.get(config.model_type)
    if shape is None:
        raise InputError(
            f"GGUF: {config.model_type} models cannot be exported; {', '.join(SHAPES)} can",
            "Export with --to safetensors, and convert with llama.cpp's own script.",
        )
    if config.model_type in ("qwen2", "qwen3") and getattr(config, "use_sliding_window", False):
        raise InputError("GGUF: llama.cpp does not know Qwen's sliding-window layers")
    return shape


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a transformers tensor; None for one that is left out.

    Raises:
        InputError: a tensor these architectures do not have.
    """
    if name in _OUTER:
        return _OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is not None and match[2] in _BLOCK:
        return f"blk.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
    if _IGNORED.fullmatch(name):
        return None
    raise InputError(f"GGUF: no place for the tensor {name}")


def heads(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads, and the width of one."""
    queries = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or queries)
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return queries, keys, int(width)


def heads_of(name: str, config: PretrainedConfig) -> int | None:
    """The heads whose rows are reordered in this GGUF tensor; None where none are."""
    queries, keys, _ = heads(config)
    if ".attn_q." in name:
        return queries
    return keys if ".attn_k." in name else None


def interleave(rows: Tensor, count: int) -> Tensor:
    """Reorder the rows of q or k [count * width, …] from paired halves to paired neighbours."""
    split = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, count: int) -> Tensor:
    """The inverse of `interleave`."""
    split = rows.reshape(count, rows.shape[0] // count // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def into_gguf(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    """A weight as llama.cpp wants it under the GGUF name `name`."""
    shape = shape_of(config)
    if shape.norm_shift and "norm" in name:
        return weight.float() + shape.norm_shift
    count = heads_of(name, config) if shape.interleaved else None
    return interleave(weight, count) if count else weight


def out_of_gguf(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    """The inverse of `into_gguf`."""
    shape = shape_of(config)
    if shape.norm_shift and "norm" in name:
        return weight - shape.norm_shift
    count = heads_of(name, config) if shape.interleaved else None
    return deinterleave(weight, count) if count else weight


def hyperparameters(
    config: PretrainedConfig, vocab: int
) -> Iterator[tuple[str, int | float | str]]:
    """What llama.cpp must be told, as key (without the architecture's prefix) and value."""
    queries, keys, width = heads(config)
    yield "block_count", int(config.num_hidden_layers)
    yield "context_length", int(config.max_position_embeddings)
    yield "embedding_length", int(config.hidden_size)
    yield "feed_forward_length", int(config.intermediate_size)
    yield "attention.head_count", queries
    yield "attention.head_count_kv", keys
    yield "attention.key_length", width
    yield "attention.value_length", width
    yield "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)
    yield "rope.dimension_count", width
    yield "vocab_size", vocab
    rope = _rope(config)
    yield "rope.freq_base", float(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(rope["factor"])
    if kind == "yarn":
        yield "rope.scaling.original_context_length", int(rope["original_max_position_embeddings"])


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise InputError(f"GGUF: rotary scaling of type {kind} cannot be exported")
    return rope


def rope_factors(config: PretrainedConfig) -> Tensor | None:
    """What each rotary frequency is divided by, float32 [width / 2]; None where nothing is."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    _, _, width = heads(config)
    plain = float(rope["rope_theta"]) ** (torch.arange(0, width, 2).double() / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (1.0 / (scaled.double() * plain)).float()


def notes(config: PretrainedConfig) -> list[str]:
    """What llama.cpp will do otherwise than transformers, in words."""
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < config.max_position_embeddings:
        return [
            f"beyond {window} tokens llama.cpp attends to the whole text, the model was trained "
            "with a sliding window: keep the context below that (-c)"
        ]
    return []
