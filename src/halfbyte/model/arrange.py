"""How much is computed at once, chosen so that a training stays within a memory limit.

The rows of a step are settled elsewhere and never change: only how many of them are computed
together, and how many layers compute their activations twice. Both leave loss and gradient as they
are, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from halfbyte.model.budget import Load, Memory, Way, memory
from halfbyte.model.shape import Shape

__all__ = ["Arrangement", "Wishes", "arrange", "choices"]

# Fewer tokens at once make thin products and dequantize the base more often: below this many,
# layers are recomputed instead, which costs up to a third of a step.
_FLOOR: Final = 256
_STEPS: Final = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the settings leave open. `rows`, `tokens`: computed at once at most. `fixed`: the tokens
    were set by the user. `checkpointing`: as in the settings. `longest`: tokens of the longest row,
    which cannot be split."""

    rows: int
    tokens: int
    longest: int
    fixed: bool = False
    checkpointing: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """At most `rows` rows and `tokens` tokens at once; the first `recomputed` layers compute their
    activations again in the backward pass. `memory`: what that takes at its peak."""

    rows: int
    tokens: int
    recomputed: int
    memory: Memory

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return self.memory.peak

    def facts(self) -> dict[str, int]:
        """For the receipt."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "recomputed": self.recomputed,
            "peak": self.peak,
        }


Loads = Callable[[int, int], Load]


def arrange(
    shape: Shape, way: Way, wishes: Wishes, loads: Loads, room: tuple[int | None, int]
) -> Arrangement | None:
    """The fastest arrangement within a limit; None where not even the smallest one fits.

    `loads(rows, tokens)` is the largest micro-batch under such limits. `room` is the limit in bytes
    (None: there is none) and what the process holds before the model is loaded.
    """
    limit, runtime = room
    for rows, tokens in choices(wishes):
        load = loads(rows, tokens)
        last = (rows, tokens) == _least(wishes)
        for recomputed in _recomputed(shape, wishes, last=last):
            found = memory(shape, way, load, recomputed, runtime)
            if limit is None or found.peak <= limit:
                return Arrangement(rows, tokens, recomputed, found)
    return None


def choices(wishes: Wishes) -> Iterator[tuple[int, int]]:
    """(rows, tokens) at once, from what is wished down to the least."""
    seen = set()
    for share in _STEPS:
        tokens = wishes.tokens if wishes.fixed else max(int(wishes.tokens * share), _floor(wishes))
        if tokens not in seen:
            seen.add(tokens)
            yield wishes.rows, tokens


def _floor(wishes: Wishes) -> int:
    return max(wishes.longest, min(_FLOOR, wishes.tokens))


def _least(wishes: Wishes) -> tuple[int, int]:
    return list(choices(wishes))[-1]


def _recomputed(shape: Shape, wishes: Wishes, *, last: bool) -> Iterator[int]:
    """How many layers may be recomputed, fewest first; in `auto` only once nothing else helps."""
    if wishes.checkpointing == "on":
        yield shape.blocks
    elif wishes.checkpointing == "off" or not last:
        yield 0
    else:
        yield from range(shape.blocks + 1)
