"""From a request as OpenAI's interface has it to requests for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from halfbyte.data.records import Message, Role
from halfbyte.infer import Constraint, Engine, Request, Sampling
from halfbyte.infer.text import decode
from halfbyte.serve.constraint import ANY_OBJECT, Grammars
from halfbyte.serve.errors import RefusedError
from halfbyte.serve.roster import Served
from halfbyte.serve.schemas import (
    Asked,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)

_SEEDS = 1 << 63


@dataclass(frozen=True, slots=True)
class Asking:
    """One HTTP request for the engine: its answers in order, and the prompts to put before them
    where the client wants an echo.
    """

    requests: tuple[Request, ...]
    echoes: tuple[str, ...] = ()


class Asker:
    """Turns requests into ids and sampling settings; slow parts, so it has a thread to itself."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        grammars: Grammars,
        new_tokens: int,
        messages: int,
    ) -> None:
        self._engine, self._tokenizer, self._grammars = engine, tokenizer, grammars
        self._new_tokens, self._messages = new_tokens, messages

    def chat(self, asked: ChatRequest, served: Served) -> Asking:
        """The prompt in the model's own template, `n` times.

        Raises:
            RefusedError: too many messages, or settings that contradict each other.
            HalfbyteError: the template refuses the messages.
        """
        if len(asked.messages) > self._messages:
            raise RefusedError(
                400,
                f"{len(asked.messages)} messages; this server takes {self._messages}",
                param="messages",
            )
        if asked.top_logprobs is not None and not asked.logprobs:
            raise RefusedError(400, "top_logprobs needs logprobs", param="top_logprobs")
        _check_stream(asked)
        template = served.persona.template
        ids = template.encode_prompt(_conversation(asked.messages, served.persona.system))
        limit = asked.max_completion_tokens or asked.max_tokens
        sampling = replace(
            self._sampling(asked, len(ids), limit, self._new_tokens),
            stop_ids=tuple(template.stop_ids),
            stop_strings=(*asked.stops(), *template.stop_strings),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        return Asking(self._repeated(asked, ids, sampling, served))

    def completion(self, asked: CompletionRequest, served: Served) -> Asking:
        """Prompts as they are, without a template, each `n` times.

        Raises:
            RefusedError: settings that contradict each other.
        """
        _check_stream(asked)
        if asked.echo and asked.logprobs is not None:
            raise RefusedError(400, "echo with logprobs is not supported", param="echo")
        requests: list[Request] = []
        echoes: list[str] = []
        for prompt in _prompts(asked):
            ids = self._ids(prompt) if isinstance(prompt, str) else prompt
            limit = asked.max_tokens or self._new_tokens
            sampling = replace(
                self._sampling(asked, len(ids), limit, limit),
                stop_strings=asked.stops(),
                logprobs=asked.logprobs,
            )
            some = self._repeated(asked, ids, sampling, served)
            requests += some
            if asked.echo:
                text = prompt if isinstance(prompt, str) else decode(self._tokenizer, prompt)
                echoes += [text] * len(some)
        return Asking(tuple(requests), tuple(echoes))

    def _ids(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer puts before every text."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def _sampling(
        self, asked: ChatRequest | CompletionRequest, prompt: int, limit: int | None, default: int
    ) -> Sampling:
        """What both kinds have in common. Without a limit of its own an answer takes what the
        context has left, up to the default.
        """
        left = self._engine.backend.positions - prompt
        seed = None if asked.seed is None else asked.seed % _SEEDS
        if asked.logprobs is not None and asked.logprobs is not False:
            self._grammars.prepare()  # here, not in the event loop, which needs it for the bytes
        return Sampling(
            max_new_tokens=limit or max(1, min(default, left)),
            temperature=_or(asked.temperature, 1.0),
            top_p=_or(asked.top_p, 1.0),
            top_k=int(_or(asked.top_k, 0)),
            min_p=_or(asked.min_p, 0.0),
            repetition_penalty=_or(asked.repetition_penalty, 1.0),
            seed=seed,
        )

    def _repeated(
        self, asked: Asked, ids: Sequence[int], sampling: Sampling, served: Served
    ) -> tuple[Request, ...]:
        """`n` requests; of one seed each makes its own, so that they differ and can be repeated."""
        made = []
        for number in range(asked.n or 1):
            seed = None if sampling.seed is None else (sampling.seed + number) % _SEEDS
            stops = sampling.stop_ids if sampling.stop_ids is not None else self._engine.end_ids
            made.append(
                Request(
                    tuple(ids),
                    replace(sampling, seed=seed),
                    served.adapter,
                    self._constraint(asked, stops),
                    streamed=bool(asked.stream),
                )
            )
        return tuple(made)

    def _constraint(self, asked: Asked, stops: Sequence[int]) -> Constraint | None:
        wanted = asked.response_format
        if isinstance(wanted, JsonObjectFormat):
            return self._grammars.json(ANY_OBJECT, stops)
        if isinstance(wanted, JsonSchemaFormat):
            schema = wanted.json_schema.schema_
            return self._grammars.json(ANY_OBJECT if schema is None else schema, stops)
        return None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_stream(asked: Asked) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise RefusedError(400, "stream_options needs stream", param="stream_options")


def _conversation(messages: Sequence[ChatMessage], system: str | None) -> list[Message]:
    """OpenAI's `developer` is what it called `system` before; without either, the run's own."""
    roles: list[Role] = ["system" if m.role == "developer" else m.role for m in messages]
    turns = [Message(role, m.text()) for role, m in zip(roles, messages, strict=True)]
    return [Message("system", system), *turns] if system and "system" not in roles else turns


def _prompts(asked: CompletionRequest) -> list[str | list[int]]:
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    # pydantic saw that it is ids, or a list of prompts
    return cast("list[str | list[int]]", [prompt] if isinstance(prompt[0], int) else prompt)
