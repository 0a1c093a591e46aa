"""Reading answers: normal forms, words, sentences, steps, and the final answer line."""

from __future__ import annotations

import re
import string
from typing import Final

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION: Final = frozenset(string.punctuation)
_WORD: Final = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’\-.,][\p{L}\p{M}\p{N}]+)*")
_SENTENCE_END: Final = regex.compile(r"(?<=[.!?।…])[\"'”’)\]]*\s+|\n+")
_LIST_MARK: Final = regex.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.):])\s*$")
_FINAL: Final = re.compile(
    r"^[ \t>*_]*(?:(?:final[ \t]+)?answer[ \t]*[*_]*[ \t]*:|####)[ \t*_]*(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_STEP: Final = re.compile(
    r"^[ \t]*(?:[*_#]+[ \t]*)?(?:step[ \t]+)?(\d{1,3})[ \t]*(?:[.):]|-[ \t])",
    re.IGNORECASE | re.MULTILINE,
)
_BULLET: Final = re.compile(r"^[ \t]*[-*•–][ \t]+\S", re.MULTILINE)


def squad_normal(text: str) -> str:
    """The published SQuAD normal form: lower case, no ASCII punctuation, no English articles,
    single spaces (Rajpurkar et al. 2016, evaluate-v1.1.py)."""
    bare = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def words(text: str) -> list[str]:
    """The words of a text in any script, in lower case; numbers and contractions stay whole."""
    return [word.lower() for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """The sentences of a text: split at ends of lines and after . ! ? … and the danda.

    A list's number or bullet is part of its sentence; an abbreviation's point ends one, which a
    rule without a dictionary cannot know.
    """
    parts = [part.strip() for part in _SENTENCE_END.split(text)]
    found: list[str] = []
    mark = ""
    for part in parts:
        if _LIST_MARK.match(part):  # "1." of a list is not a sentence of its own
            mark = part + " "
        elif _WORD.search(part):
            found.append(mark + part)
            mark = ""
    return found


def final_answer(text: str) -> str | None:
    """What follows the last `Answer:` or `####` that begins a line; None without such a line."""
    found = _FINAL.findall(text)
    return found[-1].strip().strip("*_").strip() if found else None


def after_first_final(text: str) -> str | None:
    """What follows the first final answer line; None without such a line."""
    found = _FINAL.search(text)
    return None if found is None else text[found.end() :].strip()


def step_numbers(text: str) -> list[int]:
    """The numbers of the lines that begin with `1.`, `2)`, `Step 3:` and the like, in order."""
    return [int(number) for number in _STEP.findall(text)]


def bullets(text: str) -> int:
    """How many lines begin with a bullet."""
    return len(_BULLET.findall(text))


def contains_words(needle: list[str], hay: list[str]) -> bool:
    """Whether the words of `needle` stand in `hay` one after another."""
    size = len(needle)
    return any(hay[start : start + size] == needle for start in range(len(hay) - size + 1))
