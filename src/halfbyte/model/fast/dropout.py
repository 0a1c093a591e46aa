"""Dropout that reads its mask from a table instead of drawing it element by element.

Drawing a number per element took 23 % of a training step, a random byte each still some 15 %
(DECISIONS.md). So the decisions are drawn once, into a fixed table of a few million, and every call
reads a window of it at a random offset: one multiplication per element, nothing to keep but the
offset. Each element is dropped with the wanted probability, and rows, layers and steps see
different windows.
"""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["apply", "draw_seed"]

SIZE = 1 << 22
_TABLE_SEED = 0x68616C66  # any constant: the table is part of the method, not of the run


def draw_seed() -> int:
    """What a mask is made from, by torch's generator: a resumed run goes on with the same masks."""
    return int(torch.randint(2**62, ()).item())


def apply(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """A new tensor: x with elements dropped by the mask that `seed` stands for, the rest scaled so
    that the expectation is x. The same seed gives the same mask.
    """
    table = _table(rate, x.dtype, x.device)
    flat = x.reshape(-1)
    result = torch.empty_like(flat)
    for number, start in enumerate(range(0, len(flat), SIZE // 2)):
        stop = min(start + SIZE // 2, len(flat))
        # odd multiplier: the windows of one call start at unrelated places
        offset = (seed + number * 0x9E3779B97F4A7C15) % (SIZE - (stop - start) + 1)
        torch.mul(flat[start:stop], table[offset : offset + stop - start], out=result[start:stop])
    return result.view(x.shape)


@lru_cache(maxsize=8)
def _table(rate: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """SIZE factors: 0, or what brings the table's mean to 1."""
    generator = torch.Generator().manual_seed(_TABLE_SEED)
    kept = torch.rand(SIZE, generator=generator) >= rate
    return (kept / kept.double().mean()).to(dtype=dtype, device=device)
