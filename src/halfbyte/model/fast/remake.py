"""Tensors that the backward pass makes again, from others that are kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = ["Product", "Remake", "mark", "remake_of"]

_MARK = "halfbyte_remake"


class Product(NamedTuple):
    """A tensor as rows * middle * columns: [..., width] by [..., 1] and [width], None for ones.

    A product with it is one with `middle`, if the narrower ones before and after are scaled.
    """

    middle: torch.Tensor
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Remake:
    """How to compute a tensor again: `make(*tensors)`."""

    make: Callable[..., Product]
    tensors: tuple[torch.Tensor, ...]


def mark(tensor: torch.Tensor, remake: Remake) -> None:
    """Tell whoever would keep this tensor for its backward pass how to do without it."""
    if tensor.requires_grad:
        setattr(tensor, _MARK, remake)


def remake_of(tensor: torch.Tensor) -> Remake | None:
    """How to make a tensor again, if whoever made it said so."""
    return getattr(tensor, _MARK, None)
