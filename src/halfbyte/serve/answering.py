"""From the engine's updates to whole responses and to streams of events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from halfbyte.errors import HalfbyteError
from halfbyte.infer import Completion, Request, TokenLogprob, Update
from halfbyte.serve.constraint import Grammars, JsonConstraint
from halfbyte.serve.engine_thread import Answers
from halfbyte.serve.errors import RefusedError, failure_event, refusal_of
from halfbyte.serve.schemas import (
    ChatChoice,
    ChatLogprobs,
    CompletionChoice,
    LegacyLogprobs,
    PromptDetails,
    TopLogprob,
    Turn,
    Usage,
)
from halfbyte.serve.schemas import TokenLogprob as TokenLogprobCard

Kind = Literal["chat.completion", "text_completion"]
DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Envelope:
    """What every part of one response repeats, and how its parts look.

    `echoes`: prompts to begin the texts with. `counted` gets the completions, for the metrics.
    """

    id: str
    created: int
    model: str
    kind: Kind
    grammars: Grammars
    echoes: Sequence[str] = ()
    usage: bool = False
    counted: list[Completion] = field(default_factory=list)

    def echo(self, index: int) -> str:
        """What an answer's text begins with."""
        return self.echoes[index] if self.echoes else ""

    def event(self, choices: Sequence[dict[str, Any]], usage: Usage | None = None) -> bytes:
        """One server-sent event."""
        chat = self.kind == "chat.completion"
        table: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if chat else self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        if self.usage:
            table["usage"] = usage.model_dump() if usage is not None else None
        return f"data: {json.dumps(table, ensure_ascii=False)}\n\n".encode()


async def whole(answers: Answers, envelope: Envelope) -> list[Completion]:
    """Every answer, once all are done.

    Raises:
        HalfbyteError: the engine failed.
        RefusedError: a grammar turned out too complex.
    """
    done: dict[int, Completion] = {}
    async for index, update in answers.updates():
        if update.done is not None:
            done[index] = update.done
            envelope.counted.append(update.done)
            _require_sound(answers.requests[index])
    return [done[index] for index in range(len(answers.requests))]


async def events(answers: Answers, envelope: Envelope) -> AsyncIterator[bytes]:
    """The answers as server-sent events; a failure is the last event, in OpenAI's error form."""
    try:
        for index in range(len(answers.requests)):
            yield _beginning(envelope, index)
        async for index, update in answers.updates():
            if update.text or update.logprobs:
                yield envelope.event([_part(envelope, index, update)])
            if update.done is not None:
                envelope.counted.append(update.done)
                _require_sound(answers.requests[index])
                yield envelope.event([_end(envelope, index, update.done)])
    except HalfbyteError as error:
        yield failure_event(refusal_of(error))
    except RefusedError as error:
        yield failure_event(error)
    else:
        if envelope.usage:
            yield envelope.event([], usage_of(envelope.counted, answers.requests))
        yield DONE


def _beginning(envelope: Envelope, index: int) -> bytes:
    if envelope.kind == "chat.completion":
        return envelope.event([_delta(index, {"role": "assistant", "content": ""})])
    return envelope.event([_text(index, envelope.echo(index))])


def chat_choices(done: Sequence[Completion], grammars: Grammars) -> list[ChatChoice]:
    """Whole answers of a chat."""
    return [
        ChatChoice(
            index=index,
            message=Turn(content=one.text),
            logprobs=_chat_logprobs(one.logprobs, grammars),
            finish_reason=_reason(one),
        )
        for index, one in enumerate(done)
    ]


def completion_choices(done: Sequence[Completion], envelope: Envelope) -> list[CompletionChoice]:
    """Whole continuations."""
    return [
        CompletionChoice(
            index=index,
            text=envelope.echo(index) + one.text,
            logprobs=_legacy_logprobs(one.logprobs, envelope.grammars),
            finish_reason=_reason(one),
        )
        for index, one in enumerate(done)
    ]


def usage_of(done: Sequence[Completion], requests: Sequence[Request]) -> Usage:
    """A prompt counts once, however many answers it has."""
    prompts = sum(len(ids) for ids in {request.ids for request in requests})
    answers = sum(len(one.ids) for one in done)
    cached = min((one.cached_tokens for one in done), default=0)
    return Usage(
        prompt_tokens=prompts,
        completion_tokens=answers,
        total_tokens=prompts + answers,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
    )


def _require_sound(request: Request) -> None:
    if isinstance(request.constraint, JsonConstraint) and request.constraint.fault:
        raise RefusedError(
            400, f"response_format: {request.constraint.fault}", param="response_format"
        )


def _reason(done: Completion) -> Literal["stop", "length"]:
    return "length" if done.finish == "length" else "stop"


def _delta(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _part(envelope: Envelope, index: int, update: Update) -> dict[str, Any]:
    entries = update.logprobs or None
    found: ChatLogprobs | LegacyLogprobs | None
    if envelope.kind == "chat.completion":
        card = _delta(index, {"content": update.text})
        found = _chat_logprobs(entries, envelope.grammars)
    else:
        card = _text(index, update.text)
        found = _legacy_logprobs(entries, envelope.grammars)
    card["logprobs"] = None if found is None else found.model_dump()
    return card


def _end(envelope: Envelope, index: int, done: Completion) -> dict[str, Any]:
    if envelope.kind == "chat.completion":
        return _delta(index, {}, _reason(done))
    return _text(index, "", _reason(done))


def _chat_logprobs(
    entries: Sequence[TokenLogprob] | None, grammars: Grammars
) -> ChatLogprobs | None:
    if entries is None:
        return None
    content = []
    for entry in entries:
        top = [TopLogprob(**_token(token, value, grammars)) for token, value in entry.top]
        content.append(
            TokenLogprobCard(**_token(entry.id, entry.logprob, grammars), top_logprobs=top)
        )
    return ChatLogprobs(content=content)


def _token(token: int, value: float, grammars: Grammars) -> dict[str, Any]:
    own = grammars.token_bytes(token)
    return {"token": own.decode("utf-8", "replace"), "logprob": _finite(value), "bytes": list(own)}


def _finite(value: float) -> float:
    """JSON has no infinity; OpenAI writes this for what is all but impossible."""
    return max(value, -9999.0)


def _legacy_logprobs(
    entries: Sequence[TokenLogprob] | None, grammars: Grammars
) -> LegacyLogprobs | None:
    if entries is None:
        return None
    texts = [grammars.token_bytes(entry.id).decode("utf-8", "replace") for entry in entries]
    starts, place = [], 0
    for text in texts:
        starts.append(place)
        place += len(text)
    tops = [
        {
            grammars.token_bytes(token).decode("utf-8", "replace"): _finite(value)
            for token, value in entry.top
        }
        for entry in entries
    ]
    values = [_finite(entry.logprob) for entry in entries]
    return LegacyLogprobs(
        tokens=texts, token_logprobs=values, top_logprobs=tops, text_offset=starts
    )
