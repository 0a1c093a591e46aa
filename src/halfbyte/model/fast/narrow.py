"""Embeddings and head of a quantized base in the 16 bits of its files, computed with in float32.

On a processor without 16-bit products a base is computed in float32. Its linear layers are
quantized, but the two largest tables of a 7B model are not: 1.05 GB in float32, half of that in
16 bits. A bfloat16 or float16 number is a float32 number too, so nothing is rounded; the head's
rows become float32 slice by slice as they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = [
    "Narrow",
    "NarrowEmbedding",
    "NarrowLinear",
    "narrow",
    "product",
    "slices",
    "working_dtype",
]

_SLICE: Final = 1 << 20  # weights widened at once: 4 MiB of float32


class Narrow:
    """A module whose weight is held in 16 bits; `working` is the type that comes out of it."""

    working: torch.dtype


class NarrowEmbedding(Narrow, nn.Embedding):
    """An embedding that widens the rows it looks up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] → `working` [..., width]."""
        return super().forward(ids).to(self.working)


class NarrowLinear(Narrow, nn.Linear):
    """A linear layer without bias whose weight is widened slice by slice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] → [..., outputs], both `working`."""
        return product(x, self.weight)


def narrow(model: PreTrainedModel) -> None:
    """Hold the frozen embeddings and head in 16 bits where that loses nothing.

    Only plain modules are exchanged: an architecture that scales its embeddings in a class of its
    own keeps it.
    """
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is source.weight
    plain = type(head) is nn.Linear and head.bias is None
    if type(source) is nn.Embedding and (plain or not tied):
        small = _narrowed(source.weight)
        if small is not None:
            model.set_input_embeddings(_exchanged(source, NarrowEmbedding, small))
            if tied:
                model.set_output_embeddings(_exchanged(head, NarrowLinear, small))
    if plain and not tied:
        small = _narrowed(head.weight)
        if small is not None:
            model.set_output_embeddings(_exchanged(head, NarrowLinear, small))


def slices(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a weight [n, width] in `dtype`, some at a time; all at once where it has it."""
    step = len(weight) if weight.dtype == dtype else max(1, _SLICE // weight.shape[1])
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        yield part, weight[part].to(dtype)


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., width] by a weight [n, width] of a narrower type: [..., n] in the type of x."""
    out = x.new_empty(*x.shape[:-1], len(weight)) if out is None else out
    for part, wide in slices(weight, x.dtype):
        out[..., part] = x @ wide.T
    return out


def working_dtype(model: Any) -> torch.dtype:
    """The type a transformers model computes in: that of its weights, narrow ones aside."""
    source = model.get_input_embeddings()
    dtype: torch.dtype = source.working if isinstance(source, Narrow) else model.dtype
    return dtype


def _narrowed(weight: torch.Tensor) -> nn.Parameter | None:
    """The same numbers in 16 bits; None where they do not fit."""
    if weight.dtype != torch.float32:
        return None
    step = max(1, _SLICE // weight.shape[1])
    for dtype in (torch.bfloat16, torch.float16):
        parts = weight.detach().split(step)
        if all(torch.equal(part.to(dtype).float(), part) for part in parts):
            return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return None


def _exchanged(module: nn.Module, kind: type[Any], weight: nn.Parameter) -> nn.Module:
    """The same module as another class with another weight."""
    with torch.device("meta"):  # only the shape: the weight is there already
        if kind is NarrowLinear:
            made = kind(*reversed(weight.shape), bias=False)
        else:
            made = kind(*weight.shape, padding_idx=getattr(module, "padding_idx", None))
    made.weight = weight
    made.working = torch.float32
    return made.train(module.training)
