"""Tensors that are computed again in the backward pass, from others that are kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Remake", "mark", "remake_of"]

_MARK = "halfbyte_remake"


@dataclass(frozen=True, slots=True, eq=False)
class Remake:
    """How to compute a tensor again: `make(*tensors)`, the same bytes each time."""

    make: Callable[..., torch.Tensor]
    tensors: tuple[torch.Tensor, ...]


def mark(tensor: torch.Tensor, remake: Remake) -> None:
    """Tell whoever would keep this tensor for its backward pass how to do without it."""
    if tensor.requires_grad:
        setattr(tensor, _MARK, remake)


def remake_of(tensor: torch.Tensor) -> Remake | None:
    """How to make a tensor again, if whoever made it said so."""
    return getattr(tensor, _MARK, None)
