"""From tokens to text while they arrive: whole characters only, and no stop string leaks."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what decoders write for bytes that are not (yet) a character


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of `ids` without special tokens, its spaces left as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


class TextStream:
    """The text of one answer, token by token.

    `push` and `flush` return what may be shown; what they returned, joined, is the text of all
    tokens, cut before the first stop string. `stop` is that string, once it was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.stop: str | None = None
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._from = 0  # ids before this are no context any more
        self._until = 0  # ids before this are in the text already
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain, often empty."""
        self._ids.append(token)
        text = self._fresh()
        # a character may take several tokens: wait for its end
        if not text or text.endswith(_BROKEN):
            return ""
        self._from, self._until = self._until, len(self._ids)
        return self._release(text)

    def flush(self) -> str:
        """The answer ends here: whatever was held back, broken bytes included."""
        text = self._fresh()
        self._from = self._until = len(self._ids)
        shown = self._release(text)
        rest, self._held = self._held, ""
        return shown + ("" if self.stop else rest)

    def _fresh(self) -> str:
        """What the ids from `_until` on add: decoded with their context, since decoders join
        words and bytes across tokens.
        """
        before = decode(self._tokenizer, self._ids[self._from : self._until])
        both = decode(self._tokenizer, self._ids[self._from :])
        return both[len(before) :]

    def _release(self, text: str) -> str:
        """Hold back what may begin a stop string; find the stop string that begins first."""
        if self.stop:
            return ""
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            place, self.stop = min(found)
            self._held = ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
