"""From text to ids: which ids are marks, and where a prompt ends within its row's ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from halfbyte.data.wordcache import WIDTH, pack, unpack, word_ids
from halfbyte.errors import IntegrityError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Noncharacters: Unicode promises that no text for interchange holds them.
_OPEN: Final = "\ufdd0"
_CLOSE: Final = "\ufdd1"
_MARKED: Final = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_REMEMBERED: Final = 4096  # tails of prompts whose ids are kept
_LONGEST_TAIL: Final = 200  # characters; a longer one holds a row's own text and will not recur


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning `text[:length]` of a row's text, and how its number of ids is found.

    enc(row) begins with enc(prompt) exactly if, after the `skip`-th `lead`, it goes on with the
    ids of `tail`: added tokens cut a text into parts that are encoded one by one, so what stands
    before the last of them has the same ids in both. `lead` is that last one in the prompt, and
    the `skip`-th of its kind there; without any, `tail` is the whole prompt.
    """

    skip: int
    lead: str
    tail: str


class Tokens:
    """A tokenizer as the templates need it.

    `control`: the text of each special token → id. In what users wrote they are text, not marks:
    `guard` keeps them from being read as marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        added = {
            str(token.content): (i, token) for i, token in tokenizer.added_tokens_decoder.items()
        }
        self.control = {text: i for text, (i, token) in added.items() if token.special}
        self._added = {text: i for text, (i, _) in added.items()}
        self._added_re = _alternatives(self._added)
        self._control_re = _alternatives(self.control)
        self._first = tuple({text[0] for text in self.control if text})
        self._cuts = self._backend is not None and all(
            not (token.lstrip or token.rstrip or token.single_word)
            and (not token.normalized or self._backend.normalizer is None)
            for _, token in added.values()
        )
        self._words = None
        if self._backend is not None and self._cuts:
            self._words = word_ids(self._backend, self._added)
        self._tails: dict[tuple[str, str], bytes] = {}
        self.eos = tokenizer.eos_token_id
        self.bos = tokenizer.bos_token_id

    @property
    def adds_bos(self) -> bool:
        """Whether this tokenizer begins every text with its BOS."""
        return self.bos is not None and self.tokenizer("a")["input_ids"][:1] == [self.bos]

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which ids a text has."""
        if self._backend is not None:
            core = self._backend.to_str()
        else:
            core = repr(sorted(self.tokenizer.get_vocab().items()))
        marks = repr(
            (sorted(self._added.items()), self.eos, self.bos, type(self.tokenizer).__name__)
        )
        return hashlib.sha256((core + marks).encode()).hexdigest()

    def packed(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of rendered texts (see `pack`); nothing is added to them."""
        if self._backend is None:
            return [
                pack(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
            ]
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        if self._words is not None:
            return self._words.packed([self._parts(text) for text in texts])
        done = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [pack(encoding.ids) for encoding in done]

    def ids(self, text: str) -> list[int]:
        """The ids from which the model goes on after a rendered text, guarded or not."""
        return self.guarded_ids(text) if Tokens.is_guarded(text) else unpack(self.packed([text])[0])

    def _parts(self, text: str) -> list[str | int]:
        parts: list[str | int] = self._added_re.split(text)
        parts[1::2] = [self._added[str(mark)] for mark in parts[1::2]]
        return parts

    def guard(self, text: str) -> str:
        """The same text with every control token in it marked as mere text (see `guarded_ids`)."""
        if not any(first in text for first in self._first):
            return text
        if not self._control_re.search(text):
            return text
        text = text.replace(_OPEN, "").replace(_CLOSE, "")
        return self._control_re.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)

    @staticmethod
    def is_guarded(text: str) -> bool:
        """Whether `guard` marked anything in it."""
        return _OPEN in text

    def guarded_ids(self, text: str) -> list[int]:
        """The ids of a text rendered from guarded messages: its marked parts are encoded as text.

        Raises:
            IntegrityError: the tokenizer cannot encode a control token as text.
        """
        found: list[int] = []
        # every second part is a marked one
        for index, part in enumerate(_MARKED.split(text)):
            if part:
                found += self._middle(part, as_text=index % 2 == 1, first=not found)
        return found

    def _middle(self, part: str, *, as_text: bool, first: bool) -> list[int]:
        # after a line break: some tokenizers put a space before the beginning of a text
        lead = [] if first else self._plain("\n", as_text=False)
        ids = self._plain(part if first else f"\n{part}", as_text=as_text)
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else self._plain(part, as_text=as_text)
        if as_text and self.control[part] in ids:
            raise IntegrityError(f"this tokenizer reads {part!r} in a text as the mark itself")
        return ids

    def _plain(self, text: str, *, as_text: bool) -> list[int]:
        return list(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)[
                "input_ids"
            ]
        )

    def prompt(self, text: str) -> Prompt:
        """How to find where the ids of this prompt end."""
        parts = self._added_re.split(text) if self._cuts else [text]
        if len(parts) == 1:
            return Prompt(0, "", text)
        *_, lead, tail = parts
        return Prompt(parts[1::2].count(lead), lead, tail)

    def prompt_lengths(
        self, rows: Mapping[int, bytes], prompts: Sequence[tuple[int, Prompt]]
    ) -> list[int]:
        """For each (row, prompt): how many of the row's ids are the prompt's; -1 if they differ."""
        wanted = {(p.lead, p.tail) for _, p in prompts}
        missing = sorted(wanted - self._tails.keys())
        fresh = self.packed([lead + tail for lead, tail in missing])
        tails = {
            key: ids[WIDTH:] if key[0] else ids for key, ids in zip(missing, fresh, strict=True)
        }
        if len(self._tails) < _REMEMBERED:
            self._tails |= {key: ids for key, ids in tails.items() if len(key[1]) < _LONGEST_TAIL}
        tails |= {key: self._tails[key] for key in wanted - tails.keys()}
        return [self._length(rows[row], p, tails[p.lead, p.tail]) for row, p in prompts]

    def _length(self, ids: bytes, prompt: Prompt, tail: bytes) -> int:
        start = 0
        for _ in range(prompt.skip):
            start = after(ids, self._added[prompt.lead], start) or len(ids) // WIDTH
        return start + len(tail) // WIDTH if ids.startswith(tail, start * WIDTH) else -1


def after(ids: bytes, wanted: int, start: int = 0) -> int | None:
    """The place after the first `wanted` from `start` on; None if there is none."""
    mark = wanted.to_bytes(WIDTH, "little")
    found = ids.find(mark, start * WIDTH)
    while found % WIDTH and found >= 0:  # the end of one id and the beginning of the next
        found = ids.find(mark, found + 1)
    return None if found < 0 else found // WIDTH + 1


def _alternatives(texts: dict[str, int]) -> re.Pattern[str]:
    # the longest first, as the tokenizer itself prefers them; a group, so that split() keeps them
    longest = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")
