"""The held-out loss during training: token-weighted, the same for any batching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from halfbyte.train.state import MicroBatch, State


def held_out_loss(
    state: State,
    batches: Callable[[Sequence[int]], Iterable[MicroBatch]],
    rows: int,
    stopping: Callable[[], bool] = lambda: False,
) -> float | None:
    """Summed loss of all held-out rows divided by their trained tokens, in nats.

    `batches(indices)` gives micro-batches of those of the `rows` rows; processes share them. None
    when `stopping` turns true before the end (in any process).
    """
    module, device = state.bare, state.accelerator.device
    loss = weight = 0.0
    stopped = False
    module.eval()
    with torch.no_grad():
        for batch in batches(state.share(range(rows))):
            if stopped := stopping():
                break
            loss += float(module(batch.to(device)))
            weight += float(batch.weight.sum())
    module.train()
    loss, weight, halted = state.total(loss, weight, float(stopped))
    return None if halted else loss / max(weight, 1.0)
