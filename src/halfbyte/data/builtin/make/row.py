"""The shape of a tutor row, and the words that several kinds of rows share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

Item = TypeVar("Item")

NAMES: Final = [
    "Ana",
    "Ben",
    "Chloe",
    "Dev",
    "Elif",
    "Finn",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kemi",
    "Liam",
    "Mira",
    "Noah",
    "Oona",
    "Pablo",
    "Quinn",
    "Rosa",
    "Sami",
    "Tara",
    "Umar",
    "Vera",
    "Wei",
    "Xenia",
    "Yusuf",
    "Zara",
    "Amir",
    "Bela",
    "Cara",
    "Dario",
    "Emma",
    "Farid",
    "Gita",
    "Hana",
    "Ivan",
    "Jia",
    "Kofi",
    "Lena",
    "Marco",
    "Nadia",
    "Omar",
    "Priya",
    "Ravi",
    "Sofia",
    "Tomas",
    "Uma",
    "Viktor",
    "Wanda",
    "Yara",
    "Zeno",
]
"""First names from many places, none of which tells a model whether to say he or she."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tutor row before it is written.

    `steps` become numbered lines; `answer` is the last line's. `facts` are what an answer must
    hold. `labels` is the closed set that a classification row allows.
    """

    kind: str
    instruction: str
    steps: tuple[str, ...]
    answer: str
    facts: tuple[str, ...]
    context: str = ""
    labels: tuple[str, ...] = ()

    @property
    def response(self) -> str:
        """The numbered steps and the answer line."""
        lines = [f"{number}. {step}" for number, step in enumerate(self.steps, start=1)]
        return "\n".join([*lines, f"Answer: {self.answer}"])

    def record(self) -> dict[str, Any]:
        """The row as it stands in the file; columns that do not apply are left out."""
        record: dict[str, Any] = {"kind": self.kind, "instruction": self.instruction}
        if self.context:
            record["context"] = self.context
        record["response"] = self.response
        record["facts"] = list(self.facts)
        if self.labels:
            record["labels"] = list(self.labels)
        return record


def rounds(items: Sequence[Item], count: int, rng: random.Random) -> list[Item]:
    """`count` items such that each is taken about equally often, in random order."""
    taken: list[Item] = []
    while len(taken) < count:
        taken += rng.sample(items, len(items))
    return taken[:count]


def either(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last
