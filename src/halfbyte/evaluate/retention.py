"""Retention: general questions that no training here touches, so that forgetting shows.

150 rows written for this (CC0): geography, nature, language, time, people, everyday things and
small reasoning. Each has a full sentence as its reference, for the perplexity, and the short
answers that count as right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from halfbyte.data.builtin import load_builtin
from halfbyte.data.records import Example
from halfbyte.evaluate.scores import REGISTRY, Score
from halfbyte.evaluate.text import words

# a short answer within a sentence: longer ones are cut off, which changes none of these scores
MAX_NEW_TOKENS: Final = 32
_SCORES: Final = ("exact_match", "contains", "f1")


def retention_examples(trained: Iterable[str] = ()) -> tuple[Example, ...]:
    """The general rows, without those whose question stands in a `trained` prompt."""
    seen = {" ".join(words(prompt)) for prompt in trained}
    return tuple(
        row
        for row in load_builtin("retention")
        if " ".join(words(row.prompt[0].content)) not in seen
    )


def retention_scores() -> dict[str, Score]:
    """The short-answer scores that are computed on these rows, beside perplexity."""
    return {name: REGISTRY[name] for name in _SCORES}
