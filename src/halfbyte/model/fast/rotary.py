"""The rotary embedding (arXiv:2104.09864) of queries and keys, its angles laid out once a batch."""

from __future__ import annotations

import torch

from halfbyte.model.fast import buffers

__all__ = ["Angles", "turned"]


class Angles:
    """Cosines [R, T, 1, D] and the two halves of the sines [R, T, 1, D / 2] each, for `keys` and,
    times the scale of attention, for `queries`: the turn scales them too.

    `turns`: cosines and sines [R, T, D], as transformers' rotary embeddings give them.
    """

    def __init__(self, turns: tuple[torch.Tensor, torch.Tensor], scale: float) -> None:
        self._turns, self._scale = turns, scale
        cos, sin = (one.unsqueeze(2) for one in turns)
        self.keys = (cos, *sin.chunk(2, dim=-1))
        self.queries = tuple(one * scale for one in self.keys)

    def fits(self, turns: tuple[torch.Tensor, torch.Tensor], scale: float) -> bool:
        """Whether these were laid out for the same turns and scale: other layers of one batch."""
        return all(a is b for a, b in zip(self._turns, turns, strict=True)) and scale == self._scale


def turned(
    x: torch.Tensor,
    angles: tuple[torch.Tensor, ...],
    pool: buffers.Pool | None,
    *,
    back: bool = False,
) -> torch.Tensor:
    """x [R, T, heads, D] turned by its angles, the halves of D being the two coordinates; `back`:
    by the transposed turn, which is what gradients need.
    """
    cos, sin_first, sin_second = angles
    y = torch.mul(x, cos, out=buffers.empty(tuple(x.shape), x, pool))
    (x_first, x_second), (y_first, y_second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    if back:
        y_first.addcmul_(x_second, sin_second)
        y_second.addcmul_(x_first, sin_first, value=-1)
    else:
        y_first.addcmul_(x_second, sin_first, value=-1)
        y_second.addcmul_(x_first, sin_second)
    return y
