"""The same ids as the tokenizer, ten times sooner: words are looked up, not encoded again.

Byte-level BPE cuts a text into words by a fixed rule and encodes each by itself, so the ids of a
text are those of its words, and a training set has few different words. This holds only for the
rules listed here; any other tokenizer, and any text in doubt, is left to the tokenizer itself.

A rule is a regular expression over four classes of characters: letters, numbers, white space and
the rest. ASCII is in the class it looks like. What class another character is in, the tokenizer
itself is asked, once, and a stand-in from ASCII is put in its place before the rule is applied: no
table of Unicode has to agree with the tokenizer's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GPT_2: Final = r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
# after a cut between digits the rule starts anew: a digit is then the end of white space before it
_DIGITS_GPT_2: Final = (
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+"
)
_LLAMA_3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}"
    r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2: Final = _LLAMA_3.replace("{1,3}", "")
# the same two as the tokenizers write them
_LLAMA_3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2_SPLIT: Final = _LLAMA_3_SPLIT.replace("{1,3}", "")
# characters whose class is not asked for: printable ASCII, tab and the line breaks
_ODD: Final = re.compile(r"[^\t\n\r\x20-\x7e]")
# folds to "s" in a contraction that ignores case: no stand-in shows that
_FOLDS: Final = "\u017f"
_MOST_WORDS: Final = 1 << 19  # remembered at most: some 100 MB
_MOST_PARTS: Final = 4096
_LONGEST_PART: Final = 400  # characters
_TRIAL: Final = (
    "It's 12,345.67 m² – “naïve”  café,\n\n  ٣٤ and ½;\tdon't\u00a0SHE'LL\r\n日本語 100%!?   \n "
    "\x1f a\u0301 "
)


def word_ids(backend: Tokenizer, added: Iterable[str]) -> WordIds | None:
    """A quick way to this tokenizer's ids; None where none is known to be exact.

    `added`: its added tokens; texts are cut at them beforehand.
    """
    parts = json.loads(backend.to_str())
    model = parts["model"]
    plain = (
        model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )
    rule = _rule(parts["pre_tokenizer"])
    # these leave ASCII and what is composed alone; other texts are not for us then
    composing = (parts["normalizer"] or {}).get("type") in {"NFC", "NFKC"}
    if not plain or rule is None or (parts["normalizer"] and not composing):
        return None
    found = WordIds(backend, rule, ascii_only=composing)
    trial = _TRIAL
    for text in added:
        trial = trial.replace(text, "")
    exact = backend.encode(trial, add_special_tokens=False).ids
    return found if found.ids([[trial]]) == [exact] else None


def _rule(cutting: dict[str, Any] | None) -> re.Pattern[str] | None:
    steps = (cutting or {}).get("pretokenizers") or [cutting or {}]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    before = steps[:-1]
    if not before and last.get("use_regex"):
        return re.compile(_GPT_2)
    if len(before) != 1:
        return None
    if last.get("use_regex"):
        digits = {"type": "Digits", "individual_digits": True}
        return re.compile(_DIGITS_GPT_2) if before[0] == digits else None
    split = before[0]
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    rules = {_LLAMA_3_SPLIT: _LLAMA_3, _QWEN_2_SPLIT: _QWEN_2}
    known = rules.get(split.get("pattern", {}).get("Regex"))
    return re.compile(known) if known else None


class WordIds:
    """Ids of texts by looking up their words."""

    def __init__(self, backend: Tokenizer, rule: re.Pattern[str], *, ascii_only: bool) -> None:
        self._backend = backend
        self._rule = rule
        self._ascii_only = ascii_only
        self._known = _Known()
        self._parts: dict[str, list[str] | list[int]] = {}
        self._classes = _Classes(backend)

    def ids(self, texts: Sequence[Sequence[str | int]]) -> list[list[int]]:
        """The ids of texts; each is given in parts, added tokens as their ids."""
        cut = [self._cut(text) for text in texts]
        if len(self._known) > _MOST_WORDS:
            self._known = _Known()
        known = self._known
        words = set(chain.from_iterable(cut)) - known.keys()
        fresh = [word for word in words if isinstance(word, str)]
        encoded = self._backend.encode_batch_fast(fresh, add_special_tokens=False)
        known.update((word, found.ids) for word, found in zip(fresh, encoded, strict=True))
        return [list(chain.from_iterable(map(known.__getitem__, text))) for text in cut]

    def _cut(self, text: Sequence[str | int]) -> list[str | int]:
        words: list[str | int] = []
        for part in text:
            if isinstance(part, int):
                words.append(part)
            elif part in self._parts:
                words += self._parts[part]
            else:
                words += self._words_of(part)
        return words

    def _words_of(self, part: str) -> list[str] | list[int]:
        words: list[str] | list[int]
        if not _ODD.search(part):
            words = self._rule.findall(part)
        elif self._left_alone(part):
            words = self._backend.encode(part, add_special_tokens=False).ids
        else:
            stand_in = part.translate(self._classes)
            words = [part[m.start() : m.end()] for m in self._rule.finditer(stand_in)]
        # system messages and turn headers recur
        if len(part) <= _LONGEST_PART and len(self._parts) < _MOST_PARTS:
            self._parts[part] = words
        return words

    def _left_alone(self, part: str) -> bool:
        return (self._ascii_only and not part.isascii()) or _FOLDS in part


class _Known(dict[str | int, Sequence[int]]):
    """Word → its ids; an id stands for itself."""

    def __missing__(self, key: str | int) -> Sequence[int]:
        assert isinstance(key, int)
        return (key,)


class _Classes(dict[int, str]):
    """Character → a stand-in of the class the tokenizer puts it into; for str.translate."""

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__({code: chr(code) for code in range(128) if not _ODD.match(chr(code))})
        self._cutter = backend.pre_tokenizer

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = found = self._asked(char)
        return found

    def _asked(self, char: str) -> str:
        # "a" and not "s", "t", …: those have a meaning after an apostrophe
        for stand_in, trial in (("a", f"a{char}a"), ("!", f"!{char}!"), ("\t", f"\t{char}\t")):
            if len(self._cutter.pre_tokenize_str(trial)) == 1:
                return stand_in
        return "1"
