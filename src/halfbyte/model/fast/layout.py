"""Who may attend to whom in a batch: computed once from its segments, used by every layer."""

from __future__ import annotations

import torch

from halfbyte.data.records import Batch, Segment

__all__ = ["additive_mask", "allowed", "enter_leave", "longest"]


def enter_leave(segments: tuple[Segment, ...]) -> tuple[list[int], list[int]]:
    """For each segment its number in preorder and the number after its last descendant.

    Segment k is an ancestor of q (or q itself) exactly if enter[k] <= enter[q] < leave[k].
    """
    leave = list(range(1, len(segments) + 1))
    for number in reversed(range(len(segments))):
        parent = segments[number].parent
        if parent >= 0:
            leave[parent] = max(leave[parent], leave[number])
    return list(range(len(segments))), leave


def longest(batch: Batch) -> int:
    """Tokens of the longest row in the batch, its shared beginning included."""
    return int(batch.position_ids.max()) + 1


def allowed(batch: Batch, window: int | None = None) -> torch.Tensor:
    """bool [R, L, L]: query place q may attend to key place k of the same sequence.

    With `window` only keys fewer than so many positions back. A padding place sees itself alone,
    because a row of a softmax may not be empty.
    """
    rows, length = batch.input_ids.shape
    device = batch.input_ids.device
    enter = torch.full((rows, length), -1, dtype=torch.int32)
    leave = torch.full((rows, length), -1, dtype=torch.int32)
    for segment, first, last in zip(batch.segments, *enter_leave(batch.segments), strict=True):
        enter[segment.row, segment.start : segment.stop] = first
        leave[segment.row, segment.start : segment.stop] = last
    enter, leave = enter.to(device), leave.to(device)
    q, k = enter[:, :, None], enter[:, None, :]
    mask = (k <= q) & (q < leave[:, None, :]) & (k >= 0)
    mask &= torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        positions = batch.position_ids
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask | torch.eye(length, dtype=torch.bool, device=device)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[R, L, L] bool into [R, 1, L, L]: 0 where allowed, the type's least number elsewhere."""
    least = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, least)[
        :, None
    ]
