"""Context rows: a short text, and a question that only this text can answer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final

from halfbyte.data.builtin.make.places import MORE_SCENES
from halfbyte.data.builtin.make.row import NAMES, Row, rounds
from halfbyte.data.builtin.make.scenes import POOLS, SCENES, Scene

_PLACES: Final = tuple(f"{name}{number}" for name in (*POOLS, "name") for number in ("", 2, 3))


def _words(pool: str) -> list[str]:
    words = POOLS[pool] if pool in POOLS else " ".join(NAMES)
    return words.split("|") if "|" in words else words.split()


def _fill(scene: Scene, rng: random.Random) -> dict[str, str]:
    """A word for every place in the text; two places of one pool never get the same word."""
    filled: dict[str, str] = {}
    for place in _PLACES:
        if "{" + place + "}" in scene.text:
            pool = place.rstrip("23")
            free = [word for word in _words(pool) if word not in filled.values()]
            filled[place] = rng.choice(free)
    return filled


def _grammar(text: str) -> str:
    """`an` before a vowel that is spoken (no word of the pools begins with a spoken `yu`)."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def context_rows(rng: random.Random) -> Iterator[Row]:
    """An endless stream: scenes in turn, each time with other words and another question."""
    scenes = (*SCENES, *MORE_SCENES)
    turns = {scene: rounds(scene.questions, 300, rng) for scene in scenes}
    while True:
        for scene in rng.sample(scenes, len(scenes)):
            question = turns[scene].pop()
            filled = _fill(scene, rng)
            answer = _grammar(question.answer.format(**filled))
            quote = _grammar(question.quote.format(**filled))
            text = _grammar(scene.text.format(**filled))
            yield Row(
                kind="context",
                instruction=question.ask.format(**filled),
                context=text[0].upper() + text[1:],
                steps=(f'The text says "{quote}".', f"So the {question.what} is {answer}."),
                answer=answer,
                facts=(answer,),
            )
