"""A class of our own mixed into transformers' modules, in place: weights and names stay."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["mix_in"]


def mix_in(model: nn.Module, mixin: type, names: frozenset[str]) -> int:
    """Make transformers' modules of these class names instances of `mixin` too, which comes first;
    how many there are. Idempotent.
    """
    count = 0
    for module in model.modules():
        kind: Any = type(module)
        known = kind.__name__ in names and kind.__module__.startswith("transformers.models.")
        if known:
            module.__class__ = _mixed(mixin, kind)
        count += known or isinstance(module, mixin)
    return count


@cache
def _mixed(mixin: type, kind: Any) -> Any:
    return type(f"Joint{kind.__name__}", (mixin, kind), {})
