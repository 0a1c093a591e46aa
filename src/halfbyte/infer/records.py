"""What goes into the engine and what comes out: plain frozen records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol

import torch

from halfbyte.errors import InputError

Finish = Literal["stop", "length", "cancelled"]
MAX_LOGPROBS: Final = 20  # alternatives a token may list, as in OpenAI's API

# The settings of `Sampling` that are numbers, as people set them: whether they are whole.
NUMBERS: Final[Mapping[str, bool]] = MappingProxyType(
    {
        "max_new_tokens": True,
        "temperature": False,
        "top_p": False,
        "top_k": True,
        "min_p": False,
        "repetition_penalty": False,
        "seed": True,
    }
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen from the model's logits, and when to stop.

    The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p.

    - `max_new_tokens`: at most so many, at least 1.
    - `temperature`: 0 is greedy (the most likely token); otherwise logits are divided by it.
    - `top_k`: keep the k most likely tokens (0: all of them).
    - `top_p`: keep the smallest set that holds this share of probability (arXiv:1904.09751).
    - `min_p`: keep tokens of at least this share of the most likely one's (arXiv:2407.01082).
    - `repetition_penalty`: divides the positive and multiplies the negative logits of tokens that
      occur in prompt or answer (arXiv:1909.05858); 1 is off.
    - `seed`: the same request with the same seed gives the same answer, whatever shares its batch;
      without one, each answer draws anew.
    - `stop_ids`: token ids that end the answer; None stands for the model's own end marks.
    - `stop_strings`: texts that end the answer and are cut off with all that follows.
    - `logprobs`: None for none; n for the chosen token's log probability and the n likeliest
      tokens', from the logits before any of the above.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        faults = list(self._wrong_types())
        faults = faults or [text for right, text in self._rules() if not right]
        if faults:
            raise InputError("; ".join(faults))

    def _wrong_types(self) -> Iterator[str]:
        for name, whole in NUMBERS.items():
            value = getattr(self, name)
            number = isinstance(value, int if whole else int | float)
            if (not number or isinstance(value, bool)) and not (name == "seed" and value is None):
                yield f"{name}: {value!r} is not a {'whole ' if whole else ''}number"

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        penalty = self.repetition_penalty
        logprobs = self.logprobs
        return (
            (self.max_new_tokens >= 1, f"max_new_tokens: {self.max_new_tokens} is below 1"),
            (
                math.isfinite(self.temperature) and self.temperature >= 0,
                f"temperature: {self.temperature} is not a number from 0 on",
            ),
            (0 < self.top_p <= 1, f"top_p: {self.top_p} is not above 0 and at most 1"),
            (self.top_k >= 0, f"top_k: {self.top_k} is below 0 (0 keeps all tokens)"),
            (0 <= self.min_p <= 1, f"min_p: {self.min_p} is not between 0 and 1"),
            (
                math.isfinite(penalty) and penalty > 0,
                f"repetition_penalty: {penalty} is not a number above 0",
            ),
            (
                self.seed is None or 0 <= self.seed < 2**63,
                f"seed: {self.seed} is not between 0 and 2**63 - 1",
            ),
            (all(self.stop_strings), "stop_strings: an empty text would stop at once"),
            (
                logprobs is None or 0 <= logprobs <= MAX_LOGPROBS,
                f"logprobs: {logprobs} is not between 0 and {MAX_LOGPROBS}",
            ),
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without chance."""
        return self.temperature == 0 or self.top_k == 1


PRESETS: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        # min-p keeps high temperatures coherent (arXiv:2407.01082, which advises 0.05 to 0.1)
        "creative": MappingProxyType({"temperature": 1.0, "top_p": 1.0, "min_p": 0.05}),
        # the values Llama-2's and Mistral's own generation configs ship with
        "balanced": MappingProxyType({"temperature": 0.7, "top_p": 0.9}),
        "deterministic": MappingProxyType({"temperature": 0.0}),
    }
)


class Constraint(Protocol):
    """Which tokens may follow: a grammar's state for one answer, stepped by the engine."""

    def allowed(self) -> torch.Tensor:
        """Bool [vocabulary]: true for every token that may come next (at least one)."""

    def accept(self, token: int) -> None:
        """The token was chosen."""

    def finished(self) -> bool:
        """Whether the text is complete, so that the answer ends here."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: the prompt's token ids, how to sample, and which adapter answers.

    `adapter` is a name the model holds; None is the base, with every adapter off. `constraint`
    belongs to this request alone, since it changes with every token. Where `streamed` is false
    nobody reads the answer before it is done: only its last update need have any text.
    """

    ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None
    constraint: Constraint | None = field(default=None, compare=False)
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's log probability (natural, at most 0), and the likeliest tokens' there."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer.

    - `ids`: the tokens generated, without the end mark that stopped it.
    - `text`: those tokens decoded, special tokens left out, cut before a stop string.
    - `finish`: "stop" (an end mark, a stop string or a complete grammar), "length" or "cancelled".
    - `stop`: the id or the text that stopped it, if one did.
    - `logprobs`: one for each of `ids`, where asked for.
    - `prompt_tokens`: length of the prompt; `cached_tokens`: how many of those were not computed
      anew because a row before it began alike.
    """

    ids: tuple[int, ...]
    text: str
    finish: Finish
    stop: int | str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """What a step added to one answer. The texts of all updates joined are the answer's text.

    `ids` and `text` need not belong together: text is held back while it may still turn out to
    be half a character or the beginning of a stop string. `done` comes with the last update.
    """

    ticket: int
    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    done: Completion | None = None
