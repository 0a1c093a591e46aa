"""The fast path: the same sums in less time and memory, and a stated reason where it is off.

Importing this package loads no torch: the allocator (alloc.py) must be set up before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from halfbyte.model.fast.parts import Part

__all__ = ["status"]


def status(model: nn.Module) -> list[Part]:
    """(part, active, reason) of everything the fast path consists of, for a loaded model."""
    from halfbyte.model.fast import parts  # heavy: torch

    return parts.status(model)
