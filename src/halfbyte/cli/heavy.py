"""What a command does before it loads torch."""

from __future__ import annotations

from halfbyte.model.fast import alloc, waiting


def before_torch(*, shares: bool = False) -> None:
    """Set up memory and threads. `shares`: the command lives beside others, as a server does."""
    alloc.set_up()
    waiting.set_up(shares=shares)
