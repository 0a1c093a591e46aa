"""JSON mode: grammars from JSON schemas, stepped by the engine token by token (llguidance)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from halfbyte.errors import InputError

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
# One way to put blanks: with free whitespace small models indent until their tokens run out.
_LAYOUT: Final[Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class Grammars:
    """Constraints for one tokenizer. `vocabulary`: width of the model's logits.

    Preparing the tokenizer takes half a second for 49,000 tokens, and is done when first needed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._known: LLTokenizer | None = None

    def json(self, schema: Mapping[str, Any], stop_ids: Sequence[int]) -> JsonConstraint:
        """A constraint under which the answer is JSON of this schema.

        Raises:
            InputError: the schema is none, holds what is not supported, or has no instance.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_LAYOUT)
        except ValueError as error:
            raise InputError(f"response_format: not a JSON schema: {error}") from None
        matcher = LLMatcher(self._prepared(), grammar)
        if matcher.is_error():
            raise InputError(f"response_format: {matcher.get_error()}")
        return JsonConstraint(matcher, self._vocabulary, stop_ids)

    def prepare(self) -> None:
        """Do now what takes half a second.

        Raises:
            InputError: the tokenizer is not one that llguidance knows.
        """
        self._prepared()

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; tokens may hold parts of characters."""
        return bytes(self._prepared().decode_bytes([token]))

    def _prepared(self) -> LLTokenizer:
        with self._lock:
            if self._known is None:
                tokenizer: Any = self._tokenizer
                try:
                    self._known = from_tokenizer(tokenizer, n_vocab=self._vocabulary)
                except ValueError as error:
                    raise InputError(
                        f"this tokenizer has neither JSON mode nor logprobs: {error}"
                    ) from None
            return self._known


class JsonConstraint:
    """One answer's place in its grammar; see `halfbyte.infer.Constraint`.

    A grammar may turn out too complex half-way: the answer then ends at once, with `fault` set.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int, stop_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._stops = torch.tensor(list(stop_ids))
        self.fault = ""

    def allowed(self) -> torch.Tensor:
        """Bool [vocabulary]: tokens the grammar allows, and end marks where it may end."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            return self._give_up()
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        found = torch.from_numpy(bits[: self._vocabulary].astype(bool))
        if self._matcher.is_accepting():
            found[self._stops] = True
        return found if bool(found.any()) else self._give_up()

    def accept(self, token: int) -> None:
        """Go on behind this token."""
        if not self._matcher.consume_token(token):
            self.fault = self.fault or self._matcher.get_error()

    def finished(self) -> bool:
        """Whether nothing can follow."""
        return bool(self.fault) or self._matcher.is_stopped()

    def _give_up(self) -> torch.Tensor:
        self.fault = self._matcher.get_error() or "no token can follow"
        only_end = torch.zeros(self._vocabulary, dtype=torch.bool)
        only_end[self._stops] = True
        return only_end
