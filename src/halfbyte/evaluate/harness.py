"""EleutherAI's lm-eval on a model that is loaded here: the adapter stays on, nothing is reloaded.

This module needs the extra `lm-eval`; `tasks.run_tasks` imports it and says so where it is missing.
Likelihoods come from the same TokenLoss as perplexity, answers from the same engine as all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from halfbyte.data.records import Encoded, Message
from halfbyte.data.templates import Template
from halfbyte.evaluate.runner import Progress, Subject, likelihoods, positions, silent
from halfbyte.infer import Request, Sampling

_MOST_NEW: int = 256  # lm-eval's own default for tasks that set none


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What the wrapper needs: who is judged, its tokenizer and the template for chats."""

    subject: Subject
    tokenizer: Any
    template: Template
    progress: Progress = silent


class LoadedModel(TemplateLM):
    """A Subject as lm-eval sees models."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.tokenizer = parts.tokenizer
        self.max_length = positions(parts.subject.model)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end mark."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, else the end mark."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of chat prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The run's own template; lm-eval keeps its hash in the results."""
        return self.parts.template.source if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat by the run's template; without generation prompt the last turn is left open."""
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]  # lm-eval's roles are ours
        if add_generation_prompt:
            return self.parts.template.prompt_text(turns)
        return self.parts.template.prompt_text(turns[:-1]) + turns[-1].content

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text; a BOS that the text already holds is not put there again."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return [int(token) for token in ids]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm  # progress is ours
        rows = [self._row(context, wanted) for _, context, wanted in requests]
        found = likelihoods(self.parts.subject, rows, progress=self.parts.progress)
        return [
            (0.0, True) if one is None else (-one.nll, one.correct == one.tokens) for one in found
        ]

    def _row(self, context: list[int], wanted: list[int]) -> Encoded:
        """Context and continuation, the context cut on its left to the model's length."""
        ids = np.array((context + wanted)[-self.max_length :], dtype=np.int32)
        trained = np.arange(len(ids)) >= len(ids) - len(wanted)
        trained[0] = False  # nothing stands before it to predict it from
        return Encoded(ids, trained, len(ids) - len(wanted))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, longer ones in windows as lm-eval cuts them."""
        del disable_tqdm
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            rows = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(rows)))
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers under each request's own settings; greedy unless it asks to sample."""
        del disable_tqdm
        asked = [self._request(*request.args) for request in requests]
        done = self.parts.subject.engine.generate(
            asked, lambda count, total, _tokens: self.parts.progress("tasks", count, total)
        )
        return [one.text for one in done]

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else until
        most = int(settings.get("max_gen_toks", settings.get("max_new_tokens", _MOST_NEW)))
        most = min(most, self.max_length - 1)
        samples = bool(settings.get("do_sample", False))
        sampling = Sampling(
            max_new_tokens=most,
            temperature=float(settings.get("temperature", 1.0)) if samples else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            top_k=int(settings.get("top_k", 0)),
            stop_strings=tuple(stop for stop in stops if stop),
        )
        ids = self.tok_encode(context)[-(self.max_length - most) :]
        return Request(tuple(ids), sampling, self.parts.subject.adapter)
