"""Code mixing: does the answer mix languages as the reference does?"""

from __future__ import annotations

from collections import Counter

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

from halfbyte.evaluate.lexicon import HINGLISH, HINGLISH_OR_ENGLISH
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.text import words

_GROUP = "code mixing"
_LATIN = regex.compile(r"\p{Latin}")
_SCRIPTS = {
    name: regex.compile(rf"\p{{{name}}}")
    for name in ("Devanagari", "Cyrillic", "Arabic", "Greek", "Han", "Bengali", "Tamil", "Telugu")
}


def word_languages(text: str) -> list[str | None]:
    """The language of each word: `hi` or `en` for words in Latin letters, else the name of the
    script; None for numbers. Words of both languages take that of the nearest clear word before
    them, else after them."""
    found = [_language(word) for word in words(text)]
    for place, language in enumerate(found):
        if language == "both":
            near = [*reversed(found[:place]), *found[place + 1 :]]
            found[place] = next((one for one in near if one not in {None, "both"}), "en")
    return found


def _language(word: str) -> str | None:
    if _LATIN.search(word):
        if word in HINGLISH_OR_ENGLISH:
            return "both"
        return "hi" if word in HINGLISH else "en"
    return next((name for name, script in _SCRIPTS.items() if script.search(word)), None)


def mixing_index(text: str) -> float:
    """The code-mixing index, 0 to 100: 100 * (1 - words of the main language / words of any)."""
    counts = Counter(language for language in word_languages(text) if language is not None)
    total = counts.total()
    return 100 * (1 - max(counts.values()) / total) if total else 0.0


def _mixed(row: Row) -> bool:
    return mixing_index(row.reference) > 0


@score(Kind(_GROUP, better="neither", unit="points"), applies=_mixed)
def code_mixing(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """Code-mixing index of the answer: 100 * (1 - share of the main language among its words), 0 in
    one language, up to 50 for two. Words are told apart by script and, in Latin letters, by a list
    of common Hindi words. Rows whose reference is mixed. Das and Gambäck 2014, W14-5152."""
    return mixing_index(answer.text)


@score(Kind(_GROUP, better="lower", unit="points"), applies=_mixed)
def code_mixing_gap(answer: Answer, row: Row) -> float:
    """Distance between the code-mixing indices of answer and reference, 0 to 100, lower is better.
    Rows whose reference is mixed."""
    return abs(mixing_index(answer.text) - mixing_index(row.reference))
