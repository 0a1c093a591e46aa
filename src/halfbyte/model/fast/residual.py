"""Decoder layers that add the residual stream into what attention and MLP give, in their memory.

transformers' layers make a new tensor of every sum: two a layer, kept for the backward pass beside
the outputs they were made of, which nobody needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from halfbyte.model.fast.mixins import mix_in

__all__ = ["JointLayer", "replace"]

# Exactly these forward passes were read: x + attention(norm(x)), then x + mlp(norm(x)).
_KNOWN = frozenset(
    f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Gemma")
)


def replace(model: nn.Module) -> int:
    """Make the decoder layers known here instances of `JointLayer`; how many there are."""
    return mix_in(model, JointLayer, _KNOWN)


class JointLayer:
    """Mixed into transformers' decoder layers (`replace`)."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """[R, T, width] to the same."""
        layer: Any = self
        x = hidden_states
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(x), **kwargs)
        x = attended.add_(x)
        more: torch.Tensor = layer.mlp(layer.post_attention_layernorm(x))
        return more.add_(x)
