"""Requests and responses of OpenAI's interface, as far as they are kept; what is not is refused.

Every field below does something, or says that only its neutral value is taken.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """A request: unknown fields and wrong types are errors, NaN is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=256)]
    name: str | None = Field(None, max_length=64, description="Accepted, and not used.")

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Strict):
    """No constraint."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema and its name."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: str = Field(max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class Asked(Strict):
    """What both kinds of requests have in common."""

    model: str = Field(max_length=1024)
    n: int | None = Field(1, ge=1, le=16)
    temperature: float | None = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, le=1 << 20, description="0 keeps all tokens.")
    min_p: float | None = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=512, description="Accepted, and not used.")
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=1, le=1 << 30)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 30)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(Asked):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=64)
        ]
    )
    max_tokens: int | None = Field(16, ge=1, le=1 << 30)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(False, description="Put the prompt before the answer.")


class LoadRequest(Strict):
    """POST /v1/load_lora_adapter, as vLLM's; `lora_path` is a run below the runs folder."""

    lora_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    lora_path: str = Field(max_length=1024)
    load_inplace: bool = False


class UnloadRequest(Strict):
    """POST /v1/unload_lora_adapter, as vLLM's."""

    lora_name: str = Field(max_length=1024)
    lora_int_id: int | None = Field(None, description="Accepted, and not used.")


class PromptDetails(BaseModel):
    """How much of the prompt was not computed anew."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request and its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The chosen token, and the likeliest ones there."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """Log probabilities of a chat's answer."""

    content: list[TokenLogprob]


class Turn(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: Turn
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Response(BaseModel):
    """What every response begins with."""

    id: str
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str


class ChatResponse(Response):
    """The answers of a chat."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class LegacyLogprobs(BaseModel):
    """Log probabilities in the form of /v1/completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(Response):
    """Continuations of prompts."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """One model. `parent`: the base of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "halfbyte"
    root: str
    parent: str | None = None


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok", "failed"]
