"""Rendering by shape: conversations of the same roles differ only in their texts.

An opaque template (see `opaque`) is rendered once for a sequence of roles, with a hole for each
text; rows of that shape are then put together from the pieces between the holes. Rendering a row
of two turns costs 70 µs, in a process of its own 200; filling a shape costs 3.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final

from halfbyte.data.jinja_sandbox import Refusal, Rendered, Reply, Row
from halfbyte.data.jinja_worker import OUTPUT_PER_INPUT
from halfbyte.data.opaque import is_opaque

# A template cannot know the word between them, so it cannot write a hole itself.
_OPEN: Final = f"\ufdd2{secrets.token_hex(8)}:"
_CLOSE: Final = "\ufdd3"
_HOLE: Final = re.compile(f"{_OPEN}([0-9]+):([slr]*){_CLOSE}")
_STRIPS: Final[Mapping[str, Callable[[str], str]]] = {
    "s": str.strip,
    "l": str.lstrip,
    "r": str.rstrip,
}
_MOST: Final = 1024  # shapes remembered

_Key = tuple[tuple[str, ...], bool, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A rendering with holes.

    `pieces`: what stands before each hole, and after the last. `holes`: which text goes into each,
    and how it is stripped. `prompts`: for each cut the holes before it, and the characters beside.
    """

    pieces: tuple[str, ...]
    holes: tuple[tuple[int, str], ...]
    prompts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, row: Rendered | Refusal) -> Shape | None:
        """The shape of a rendering of holes; None if its rows have to be rendered one by one."""
        if isinstance(row, Refusal):
            return None
        found = list(_HOLE.finditer(row.text))
        often = Counter(hole.group(1) for hole in found)
        if any(count > OUTPUT_PER_INPUT for count in often.values()):
            return None  # too long an output perhaps: its limit is kept where it is rendered
        prompts = []
        for cut in row.prompts:
            if not isinstance(cut, int):
                return None  # only a row's own texts can show whether its prompt begins it
            before = [hole for hole in found if hole.end() <= cut]
            size = sum(hole.end() - hole.start() for hole in before)
            prompts.append((len(before), cut - size))
        return cls(
            pieces=tuple(_HOLE.split(row.text)[::3]),  # two groups stand between them
            holes=tuple((int(hole.group(1)), hole.group(2)) for hole in found),
            prompts=tuple(prompts),
        )

    def fill(self, texts: Sequence[str]) -> Rendered:
        """The rendering of a row with these texts."""
        filled = [texts[place] for place, _ in self.holes]
        for at, (_, strips) in enumerate(self.holes):
            for strip in strips:
                filled[at] = _STRIPS[strip](filled[at])
        text = "".join(chain.from_iterable(zip(self.pieces, (*filled, ""), strict=True)))
        sizes = [*map(len, filled)]
        return Rendered(text, tuple(size + sum(sizes[:count]) for count, size in self.prompts))


class Shapes:
    """The shapes of one template's rows."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._known: dict[_Key, Shape | None] = {}

    @cached_property
    def _opaque(self) -> bool:
        return is_opaque(self._source)

    def render(
        self, rows: Sequence[Row], whole: Callable[[Sequence[Row]], Reply]
    ) -> list[Rendered | Refusal]:
        """Render rows, in order; `whole` renders those whose shape is not known."""
        found: list[Rendered | Refusal | None] = [self._filled(row) for row in rows]
        left = [place for place, done in enumerate(found) if done is None]
        if left:
            fresh = {} if not self._opaque else self._fresh(rows, left)
            holed = [_holed(rows[place]) for place in fresh.values()]
            done = whole([*(rows[place] for place in left), *holed]).rows
            for place, row in zip(left, done, strict=False):
                found[place] = row
            for (key, place), row in zip(fresh.items(), done[len(left) :], strict=True):
                shape = Shape.of(row)
                # an example as well: what was read off the syntax tree shall not go unproved
                fits = shape is not None and shape.fill(_texts(rows[place])) == found[place]
                self._known[key] = shape if fits else None
        return [row for row in found if row is not None]

    def _filled(self, row: Row) -> Rendered | None:
        shape = self._known.get(_key(row))
        texts = _texts(row)
        return shape.fill(texts) if shape and all(map(str.strip, texts)) else None

    def _fresh(self, rows: Sequence[Row], left: Sequence[int]) -> dict[_Key, int]:
        """The shapes to learn, and a row of each."""
        fresh: dict[_Key, int] = {}
        for place in left:
            key = _key(rows[place])
            room = len(self._known) + len(fresh) < _MOST
            if room and key not in self._known and all(map(str.strip, _texts(rows[place]))):
                fresh.setdefault(key, place)
        return fresh


def _key(row: Row) -> _Key:
    roles = tuple([message["role"] for message in row["messages"]])
    return roles, row["context"] is not None, tuple(row["cuts"])


def _texts(row: Row) -> list[str]:
    texts = [message["content"] for message in row["messages"]]
    return texts if row["context"] is None else [*texts, row["context"]]


def _holed(row: Row) -> Row:
    """The same row with holes for texts."""
    holes = [f"{_OPEN}{place}:{_CLOSE}" for place in range(len(row["messages"]) + 1)]
    turns = [
        {**message, "content": hole}
        for message, hole in zip(row["messages"], holes[:-1], strict=True)
    ]
    context = None if row["context"] is None else holes[-1]
    return {**row, "messages": turns, "context": context, "holes": True}
