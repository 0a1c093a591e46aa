"""The tutor rows as a whole: the mix of kinds, no two rows nearly the same, one fixed order."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from halfbyte.data.builtin.make.classes import classification_rows
from halfbyte.data.builtin.make.knowledge import knowledge_rows
from halfbyte.data.builtin.make.passages import context_rows
from halfbyte.data.builtin.make.row import Row
from halfbyte.data.builtin.make.sums import problem_rows
from halfbyte.data.builtin.make.units import conversion_rows

SEED: Final = 20
COUNTS: Final = {"context": 200, "conversion": 125, "arithmetic": 110, "rate": 48}
"""Rows of each generated kind; classification, science and history have what is written down."""

MOST_ALIKE: Final = 0.5
"""Two prompts share at most this part of their word triples (Jaccard, numbers kept)."""


def triples(text: str) -> frozenset[tuple[str, ...]]:
    """The word triples of a text, in lower case without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([tuple(words)])


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Only rows whose prompt is not nearly that of an earlier one."""
    seen: list[frozenset[tuple[str, ...]]] = []
    for row in rows:
        own = triples(f"{row.context} {row.instruction}")
        if all(len(own & other) <= MOST_ALIKE * len(own | other) for other in seen):
            seen.append(own)
            yield row


def tutor_rows(seed: int = SEED) -> list[Row]:
    """All rows, mixed."""
    rng = random.Random(seed)
    streams = {
        "context": context_rows(rng),
        "conversion": conversion_rows(rng),
        "arithmetic": problem_rows("arithmetic", rng),
        "rate": problem_rows("rate", rng),
    }
    rows = [*distinct(classification_rows(rng)), *distinct(knowledge_rows(rng))]
    for kind, stream in streams.items():
        rows += islice(distinct(stream), COUNTS[kind])
    rng.shuffle(rows)
    return rows


def tutor_lines() -> str:
    """The file's text: one JSON object a line."""
    return "".join(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in tutor_rows())
