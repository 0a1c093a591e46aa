"""FlexAttention on CUDA: a batch's prefix trees as a block mask, so that forbidden blocks are not
computed (FlexAttention, arXiv:2412.05496).

No line of `kernel` has run on a card here. So it proves itself before it is used: `fault` computes
a small tree with it, forward and backward, and compares with a masked softmax.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from halfbyte.data.records import Batch, Segment
from halfbyte.model.fast.layout import allowed, tree_bounds

__all__ = ["attend", "block_mask", "fault"]

_LENGTH: Final = 192  # of the trial: more than one block, and not a multiple of its 128
# 16-bit results may differ by their rounding; a mask that is wrong anywhere gives errors near 1
_NEAR: Final = 0.05


def block_mask(batch: Batch) -> BlockMask:
    """Who may attend to whom, as FlexAttention takes it: [R, 1, L, L] in blocks of 128."""
    enter, leave = tree_bounds(batch)
    rows, length = batch.input_ids.shape

    def seen(row: Any, _head: Any, q: Any, k: Any) -> Any:
        below = (enter[row, k] <= enter[row, q]) & (enter[row, q] < leave[row, k])
        return (below & (k <= q) & (enter[row, k] >= 0)) | (q == k)

    return create_block_mask(seen, rows, None, length, length, device=str(enter.device))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float
) -> torch.Tensor:
    """Query [R, H, T, D], key and value [R, G, T, D] with H a multiple of G → [R, T, H, D]."""
    run = kernel() if query.is_cuda else flex_attention
    grouped = query.shape[1] != key.shape[1]
    found: Any = run(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return torch.as_tensor(found).transpose(1, 2)


@functools.cache
def kernel() -> Any:
    """FlexAttention compiled once for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


@functools.cache
def fault(device: str, dtype: torch.dtype, width: int) -> str | None:
    """Why FlexAttention is not used for heads of this width; None after it has proved itself.

    `device`: a device's type. Computes a tree of three segments on it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return "FlexAttention is tried on the card; there is none here"
    try:
        wrong = _trial(device, dtype, width)
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        return f"FlexAttention failed its trial: {str(error).splitlines()[0]}"
    return None if wrong <= _NEAR else f"FlexAttention is off by {wrong:.2g} in its trial"


def _trial(device: str, dtype: torch.dtype, width: int) -> float:
    """The largest difference from a masked softmax, in output and (on a card) gradients."""
    trained = device != "cpu"  # torch has no backward pass of it there
    batch = _tree().to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, _LENGTH, width), (1, 2, _LENGTH, width), (1, 2, _LENGTH, width))
    given = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    outcomes = []
    for ours in (True, False):
        q, k, v = (one.clone().requires_grad_(trained) for one in given)
        if ours:
            out = attend(q, k, v, block_mask(batch), width**-0.5)
        else:
            seen = allowed(batch)[:, None]
            options: Any = {"attn_mask": seen, "enable_gqa": True}
            out = scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
        outcomes.append([out])
        if trained:
            outcomes[-1] += torch.autograd.grad(out.float().square().sum(), (q, k, v))
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(*outcomes, strict=True)
    )


def _tree() -> Batch:
    """A beginning of 40 places, and two rows that go on from it."""
    segments = (Segment(0, 0, 40), Segment(0, 40, 110, 0), Segment(0, 110, _LENGTH, 0))
    places = [*range(110), *range(40, 40 + _LENGTH - 110)]
    none = torch.zeros(0, dtype=torch.int64)
    ids = torch.zeros(1, _LENGTH, dtype=torch.int64)
    return Batch(ids, torch.tensor([places]), segments, none, none, none.float(), (), 0)
