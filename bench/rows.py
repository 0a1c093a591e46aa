"""Generated rows: distinct, of realistic words and lengths, the same for a seed everywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from halfbyte.data.builtin import BUILTINS, load_builtin


def words() -> list[str]:
    """The words of the built-in rows, as they are written there: real ones, for the tokenizer."""
    texts = (
        message.content
        for name in BUILTINS
        for row in load_builtin(name)
        for message in row.messages
    )
    return sorted({word for text in texts for word in text.split() if word.isalpha()})


def rows(count: int, median: int = 60, seed: int = 2) -> Iterator[dict[str, str]]:
    """Rows of instruction and response: log-normal lengths of about `median` words, common words
    more often than rare ones (Zipf), every tenth word a number."""
    source = random.Random(seed)
    vocabulary = words()
    ranks = [1 / (place + 3) for place in range(len(vocabulary))]
    for number in range(count):
        length = min(4 * median, max(4, round(source.lognormvariate(0, 0.5) * median)))
        chosen = source.choices(vocabulary, ranks, k=length)
        for place in range(0, length, 10):
            chosen[place] = str(source.randint(0, 9999))
        cut = max(2, length * 2 // 5)
        yield {
            "instruction": f"{' '.join(chosen[:cut])} {number}?",
            "response": f"{' '.join(chosen[cut:])}.",
        }


def write_rows(path: Path, count: int, median: int = 60, seed: int = 2) -> Path:
    """Write them as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows(count, median, seed):
            file.write(json.dumps(row) + "\n")
    return path
