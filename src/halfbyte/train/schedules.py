"""The learning rate as a pure function of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """The factor on the peak rate over `steps` steps.

    It rises linearly over `warmup` steps (the first step already moves, the step after the warm-up
    has the peak), then falls to zero after the last step (`cosine`, `linear`) or stays.
    """

    kind: Literal["cosine", "linear", "constant"]
    steps: int
    warmup: int = 0

    def factor(self, step: int) -> float:
        """For the step that follows `step` completed ones; between 0 and 1, never 0 within."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = max(0.0, 1.0 - share)
        return left if self.kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def warmup_steps(warmup: float, steps: int) -> int:
    """`warmup` as steps: a fraction of all below 1 (rounded up), else a number of steps."""
    return min(steps, math.ceil(warmup * steps) if warmup < 1 else int(warmup))


def every(setting: int | Literal["epoch"], steps_per_epoch: int) -> int:
    """`eval_every` or `save_every` as a number of steps."""
    return max(1, steps_per_epoch) if setting == "epoch" else setting


def total_steps(epochs: float, steps_per_epoch: int, max_steps: int | None = None) -> int:
    """Steps of a training: part of an epoch is rounded up, `max_steps` caps."""
    steps = math.ceil(epochs * steps_per_epoch - 1e-9)  # 0.1 * 30 is more than 3 in floats
    return steps if max_steps is None else min(steps, max_steps)
