"""Slots that are computed together although some of what lies between is computed in vain."""

from __future__ import annotations

from collections.abc import Sequence


def stretches(sizes: Sequence[tuple[int, int]], call: int) -> list[slice]:
    """Parts of `sizes`, (slot, size) by slot, each computed as one rectangle: its slots by its
    largest size. One call more costs as much as `call` places computed in vain.
    """
    found: list[slice] = []
    area = longest = 0
    for index, (slot, size) in enumerate(sizes):
        if found:
            most = max(longest, size)
            joined = (slot + 1 - sizes[found[-1].start][0]) * most
            if joined <= area + size + call:
                found[-1] = slice(found[-1].start, index + 1)
                area, longest = joined, most
                continue
        found.append(slice(index, index + 1))
        area = longest = size
    return found
