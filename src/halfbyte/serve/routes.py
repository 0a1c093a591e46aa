"""The routes of OpenAI's interface, vLLM's two for adapters, and those for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from halfbyte.infer import Completion
from halfbyte.serve.answering import (
    Kind,
    chat_choices,
    completion_choices,
    events,
    usage_of,
    whole,
)
from halfbyte.serve.asking import Asking
from halfbyte.serve.errors import ErrorBody, unknown_model
from halfbyte.serve.metrics import CONTENT_TYPE
from halfbyte.serve.roster import Listed, Served
from halfbyte.serve.schemas import (
    Asked,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    Health,
    LoadRequest,
    ModelCard,
    ModelList,
    UnloadRequest,
)
from halfbyte.serve.service import Exchange, Service

T = TypeVar("T")
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": ErrorBody}
    for code in (400, 401, 403, 404, 408, 409, 413, 415, 429, 431, 500, 503, 504)
}
_STREAM: Final[dict[str, Any]] = {"text/event-stream": {"schema": {"type": "string"}}}
router = APIRouter(responses=_ERRORS)


async def _service(request: Request) -> Service:
    # async, though it waits for nothing: FastAPI gives other dependencies a thread of their own
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service)]


class ClientGoneError(Exception):
    """The client left before its answer was there: there is nobody to answer."""


@router.get("/health")
async def health(service: Here, response: Response) -> Health:
    """Whether the engine answers; needs no key."""
    if not service.engine.alive:
        response.status_code = 503
        return Health(status="failed")
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Here) -> Response:
    """Counters in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
async def models(service: Here) -> ModelList:
    """The base, and every run whose adapter was trained on it."""
    return ModelList(data=[_card(entry, service) for entry in await service.roster.listed()])


@router.get("/v1/models/{model:path}")
async def model(service: Here, model: str) -> ModelCard:
    """One model."""
    for entry in await service.roster.listed():
        if entry.name == model:
            return _card(entry, service)
    raise unknown_model(model)


@router.post(
    "/v1/chat/completions",
    response_model=ChatResponse,
    responses={200: {"content": _STREAM}},
)
async def chat(request: Request, service: Here, asked: ChatRequest) -> Any:
    """Answer a conversation."""

    def ask(served: Served) -> Asking:
        return service.asker.chat(asked, served)

    def respond(exchange: Exchange, done: list[Completion]) -> ChatResponse:
        return ChatResponse(choices=chat_choices(done, service.grammars), **_common(exchange, done))

    return await _answer(request, service, asked, ("chat.completion", ask), respond)


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses={200: {"content": _STREAM}},
)
async def complete(request: Request, service: Here, asked: CompletionRequest) -> Any:
    """Continue prompts as they are, without a template."""

    def ask(served: Served) -> Asking:
        return service.asker.completion(asked, served)

    def respond(exchange: Exchange, done: list[Completion]) -> CompletionResponse:
        return CompletionResponse(
            choices=completion_choices(done, exchange.envelope), **_common(exchange, done)
        )

    return await _answer(request, service, asked, ("text_completion", ask), respond)


@router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
async def load(service: Here, asked: LoadRequest) -> Response:
    """Load a run's adapter under a name, or swap it with `load_inplace`; needs the admin key."""
    await service.roster.load(asked.lora_name, asked.lora_path, asked.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
async def unload(service: Here, asked: UnloadRequest) -> Response:
    """Free an adapter's memory; needs the admin key."""
    await service.roster.unload(asked.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")


def _common(exchange: Exchange, done: list[Completion]) -> dict[str, Any]:
    """What whole answers of both kinds have in common."""
    envelope = exchange.envelope
    usage = usage_of(done, exchange.answers.requests)
    return {"id": envelope.id, "created": envelope.created, "model": envelope.model, "usage": usage}


async def _answer(
    request: Request,
    service: Service,
    asked: Asked,
    how: tuple[Kind, Callable[[Served], Asking]],
    respond: Callable[[Exchange, list[Completion]], T],
) -> T | StreamingResponse:
    """The whole answer, or a stream of it; either ends at once when the client leaves."""
    held = AsyncExitStack()
    async with AsyncExitStack() as first:
        first.push_async_callback(held.aclose)
        entering = held.enter_async_context(service.exchange(asked.model, *how))
        exchange = await _while_connected(request, entering)
        options = asked.stream_options
        exchange.envelope.usage = bool(options and options.include_usage)
        if asked.stream:
            first.pop_all()  # the stream closes it
            return _Stream(exchange, held)
        done = await _while_connected(request, whole(exchange.answers, exchange.envelope))
        return respond(exchange, done)


class _Stream(StreamingResponse):
    """Server-sent events; gives everything back however it ends."""

    def __init__(self, exchange: Exchange, held: AsyncExitStack) -> None:
        super().__init__(
            events(exchange.answers, exchange.envelope),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it; the answers are given up even if nothing of it could be sent."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of `work`, which is cancelled if the client leaves first."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _card(entry: Listed, service: Service) -> ModelCard:
    return ModelCard(
        id=entry.name,
        created=entry.created,
        root=service.roster.base.name,
        parent=entry.parent,
    )
