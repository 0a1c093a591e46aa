"""LoRA on a linear layer."""

from __future__ import annotations

from torch import nn

__all__ = ["custom_modules"]


def custom_modules() -> dict[type[nn.Module], type[nn.Module]]:
    """What PEFT's custom-module mapping should use instead of its own LoRA layers."""
    return {}
