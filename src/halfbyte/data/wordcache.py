"""The same ids as the tokenizer, many times sooner: words are looked up, not encoded again.

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
import struct
import threading
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
WIDTH: Final = 4  # bytes of a packed id
_MOST: Final = 1 << 17  # words, and pieces, remembered at most: some 30 MB each
_LONGEST_PIECE: Final = 40  # characters; a longer one will not recur
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
    return found if found.packed([[trial]]) == [pack(exact)] else None


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
    """Ids of texts by looking up their pieces.

    A single space between other characters is always a cut: no rule has a word that holds white
    space after something else. So a text is split at spaces, which costs a tenth of applying the
    rule, and its pieces are looked up. A text with a piece that begins or ends with white space is
    cut by the rule, and its words are looked up.
    """

    def __init__(self, backend: Tokenizer, rule: re.Pattern[str], *, ascii_only: bool) -> None:
        self._backend = backend
        self._rule = rule
        self._ascii_only = ascii_only
        self._lock = threading.Lock()  # a server's threads share what is remembered
        self._words: dict[str, bytes] = {}
        self._pieces = _Pieces()
        # parts of texts that cannot be split at spaces, and what stands for each among the pieces
        self._parts: dict[str, str] = {}
        self._classes = _Classes(backend)

    def packed(self, texts: Sequence[Sequence[str | int]]) -> list[bytes]:
        """The ids of texts (see `pack`); each is given in parts, added tokens as their ids."""
        with self._lock:
            return self._packed(texts)

    def _packed(self, texts: Sequence[Sequence[str | int]]) -> list[bytes]:
        pieces = self._pieces
        cut = [self._split(text) for text in texts]
        # finding a piece takes longer than all else: each is looked up once, and new ones noted
        found = [[*map(pieces.__getitem__, split)] for split in cut]
        odd = self._learn(pieces.take_new())
        ids: list[bytes] = []
        for text, split, parts in zip(texts, cut, found, strict=True):
            if odd and not odd.isdisjoint(split):
                ids.append(self._with_odd(text, odd))
            else:
                place = -1
                for _ in range(parts.count(b"")):  # pieces that were new
                    place = parts.index(b"", place + 1)
                    parts[place] = pieces[split[place]]
                ids.append(b"".join(parts))
        self._forget()
        return ids

    def _split(self, text: Sequence[str | int]) -> list[str | int]:
        found: list[str | int] = []
        for part in text:
            if isinstance(part, int):
                found.append(part)
            elif part in self._parts:
                found.append(self._parts[part])
            else:
                found += _split(part)
        return found

    def _learn(self, pieces: Iterable[str]) -> set[str]:
        """Remember the ids of these pieces; those that cannot stand alone are given back."""
        cuts = {piece: self._cut_piece(piece) for piece in pieces}
        good = {piece: words for piece, words in cuts.items() if words is not None}
        self._encode(chain.from_iterable(good.values()))
        for piece, words in good.items():
            self._pieces[piece] = b"".join(map(self._words.__getitem__, words))
        return cuts.keys() - good.keys()

    def _with_odd(self, text: Sequence[str | int], odd: set[str]) -> bytes:
        """The ids of a text of which some parts cannot be split at spaces."""
        ids: list[bytes] = []
        for part in text:
            split = self._split([part])
            if odd.isdisjoint(split):
                ids += map(self._pieces.__getitem__, split)
            else:
                assert isinstance(part, str)
                ids.append(self._by_rule(part))
        return b"".join(ids)

    def _by_rule(self, part: str) -> bytes:
        if self._left_alone(part):
            ids = pack(self._backend.encode(part, add_special_tokens=False).ids)
        else:
            words = self._cut(part)
            self._encode(words)
            ids = b"".join(map(self._words.__getitem__, words))
        # system messages and turn headers recur
        if len(part) <= _LONGEST_PART and len(self._parts) < _MOST_PARTS:
            self._parts[part] = name = f"{part}  "  # no piece ends in two spaces
            self._pieces[name] = ids
        return ids

    def _encode(self, words: Iterable[str]) -> None:
        # asked one by one: taking a dict's keys from a set goes through all of the dict
        fresh = [*{word for word in words if word not in self._words}]
        encoded = self._backend.encode_batch_fast(fresh, add_special_tokens=False)
        self._words.update((word, pack(ids.ids)) for word, ids in zip(fresh, encoded, strict=True))

    def _cut_piece(self, piece: str) -> list[str] | None:
        """The words of a piece as `_split` gives it; None if it cannot stand alone."""
        if len(piece) > _LONGEST_PIECE or self._left_alone(piece):
            return None
        begins = piece.endswith(" ")
        text = piece[:-1] if begins else piece
        edges = self._stand_in(text[:1] + text[-1:])
        if edges[-1:].isspace() or (not begins and (not text or edges[0].isspace())):
            return None
        return self._cut(text if begins else f" {text}")

    def _cut(self, text: str) -> list[str]:
        stand_in = self._stand_in(text)
        if stand_in is text:
            return self._rule.findall(text)
        return [text[m.start() : m.end()] for m in self._rule.finditer(stand_in)]

    def _stand_in(self, text: str) -> str:
        return text.translate(self._classes) if _ODD.search(text) else text

    def _left_alone(self, part: str) -> bool:
        return (self._ascii_only and not part.isascii()) or _FOLDS in part

    def _forget(self) -> None:
        if len(self._words) > _MOST:
            self._words.clear()
        if len(self._pieces) > _MOST:
            self._pieces.clear()
            self._parts.clear()


def pack(ids: Sequence[int]) -> bytes:
    """Ids as four bytes each: quicker to join, to search and to store than lists."""
    return struct.pack(f"<{len(ids)}i", *ids)


def unpack(ids: bytes) -> list[int]:
    """The inverse of `pack`."""
    return list(struct.unpack(f"<{len(ids) // WIDTH}i", ids))


def _split(part: str) -> list[str]:
    """A part of a text cut at its spaces; the first piece, before which none stood, ends in one."""
    pieces = part.split(" ")
    pieces[0] += " "
    return pieces


class _Pieces(dict[str | int, bytes]):
    """Piece → its ids, packed; added tokens stand for themselves. A new piece has none yet."""

    def __init__(self) -> None:
        super().__init__()
        self._new: set[str] = set()

    def __missing__(self, key: str | int) -> bytes:
        if isinstance(key, str):
            self._new.add(key)
            return b""
        self[key] = found = pack([key])
        return found

    def take_new(self) -> set[str]:
        """The new pieces that were asked for since the last call."""
        new, self._new = self._new, set()
        return new


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
