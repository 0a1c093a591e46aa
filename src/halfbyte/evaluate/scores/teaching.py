"""Teaching structure: is it laid out as the reference is, for somebody to learn from?"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

import pyphen  # type: ignore[import-untyped]  # it has no annotations

from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.text import final_answer, sentences, step_numbers, words

_GROUP = "teaching"
_DEFINITION: Final = re.compile(
    r"\b(?:means|is called|are called|is defined as|refers to|is known as|stands for"
    r"|is the (?:process|study|force|name|number|amount|distance|time|measure|act|part) \w+"
    r"|is an? (?:kind|type|form|measure|unit) of)\b",
    re.IGNORECASE,
)
_EXAMPLE: Final = re.compile(
    r"\bfor (?:example|instance)\b|\be\.\s?g\.|\bsuch as\b|\bimagine\b|\bexamples?\s*:",
    re.IGNORECASE,
)
_VOWELS: Final = re.compile(r"[aeiouy]+")
_SILENT: Final = re.compile(r"(?:[^laeiouy]es|[^aeiouydt]ed|[^laeiouy]e)$")
_EASE_WORDS: Final = 20  # reading ease of fewer words says little


def has_steps(text: str) -> bool:
    """At least two numbered lines, counting up from 1 without a gap."""
    numbers = step_numbers(text)
    return len(numbers) >= 2 and numbers == list(range(1, len(numbers) + 1))


def ends_with_final(text: str) -> bool:
    """The last line that is not blank is a final answer line with something in it."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and bool(final_answer(lines[-1]))


@score(Kind(_GROUP, binary=True), applies=lambda row: has_steps(row.reference))
def numbered_steps(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """1 if the answer has two or more numbered lines that count up from 1, else 0. Rows whose
    reference has them."""
    return float(has_steps(answer.text))


@score(Kind(_GROUP, binary=True), applies=lambda row: bool(_DEFINITION.search(row.reference)))
def definition(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """1 if the answer has a defining phrase (means, is called, refers to, is a kind of ...), else
    0. Rows whose reference has one."""
    return float(bool(_DEFINITION.search(answer.text)))


@score(Kind(_GROUP, binary=True), applies=lambda row: bool(_EXAMPLE.search(row.reference)))
def example(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """1 if the answer announces an example (for example, e.g., such as, imagine), else 0. Rows
    whose reference does."""
    return float(bool(_EXAMPLE.search(answer.text)))


@score(Kind(_GROUP, binary=True), applies=lambda row: ends_with_final(row.reference))
def final_line(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """1 if the answer's last line is a final answer line (`Answer: ...` or `#### ...`), else 0.
    Rows whose reference ends so."""
    return float(ends_with_final(answer.text))


@score(
    Kind(_GROUP, better="neither", unit="plain"),
    applies=lambda row: row.reference.isascii() and len(words(row.reference)) >= _EASE_WORDS,
)
def reading_ease(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """Flesch reading ease, 206.835 - 1.015 * words per sentence - 84.6 * syllables per word,
    clipped to -100..121: 60 to 70 is plain English, higher is easier; 0 for an empty answer.
    English references of twenty words or more. Flesch 1948, J. Appl. Psychol. 32:221."""
    return flesch(answer.text)


def flesch(text: str) -> float:
    """Reading ease of an English text, clipped to -100..121; 0 without words."""
    spoken = [word for word in words(text) if any(char.isalpha() for char in word)]
    if not spoken:
        return 0.0
    per_sentence = len(spoken) / max(1, len(sentences(text)))
    per_word = sum(syllables(word) for word in spoken) / len(spoken)
    return min(121.0, max(-100.0, 206.835 - 1.015 * per_sentence - 84.6 * per_word))


@lru_cache(maxsize=1)
def _hyphens() -> Any:
    return pyphen.Pyphen(lang="en_US")


def syllables(word: str) -> int:
    """Syllables of an English word: its groups of vowels without a silent ending, or the parts
    pyphen's hyphenation gives, whichever are more (right for 93 % of 6,562 words against the CMU
    dictionary, in sum within 0.3 %; either alone 90 % and 82 %)."""
    spoken = _SILENT.sub(lambda match: match[0][0], word) if len(word) > 3 else word
    return max(1, len(_VOWELS.findall(spoken)), len(_hyphens().positions(word)) + 1)
