"""Science and history rows, written out in nature.py and past.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

from halfbyte.data.builtin.make.nature import SCIENCE
from halfbyte.data.builtin.make.past import HISTORY
from halfbyte.data.builtin.make.row import Row


def knowledge_rows(rng: random.Random) -> Iterator[Row]:
    """Every fact once; the right choice comes first or last by chance."""
    for kind, table in (("science", SCIENCE), ("history", HISTORY)):
        lines = table.strip().splitlines()
        for question, rest in zip(lines[::2], lines[1::2], strict=True):
            first, second, answer = (part.strip() for part in rest.split("|"))
            asked, _, choices = question.removesuffix("?").rpartition(": ")
            order = rng.sample(choices.split(" or "), 2)
            yield Row(kind, f"{asked}: {' or '.join(order)}?", (first, second), answer, (answer,))
