"""One loaded base behind an engine thread, and what the routes need of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from halfbyte.api.opening import Opened, open_any, open_base
from halfbyte.infer import Engine, Request, Sampling
from halfbyte.infer import Limits as EngineLimits
from halfbyte.serve.answering import Envelope, Kind
from halfbyte.serve.asking import Asker, Asking
from halfbyte.serve.constraint import Grammars
from halfbyte.serve.engine_thread import Answers, EngineThread
from halfbyte.serve.metrics import Metrics
from halfbyte.serve.roster import Roster, Served
from halfbyte.serve.settings import ServeSettings
from halfbyte.serve.worker import Worker

T = TypeVar("T")
_KEPT: Final = 16  # answers whose conversations go on without being computed again


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request being answered."""

    answers: Answers
    envelope: Envelope


class Service:
    """Everything behind the routes."""

    def __init__(self, opened: Opened, settings: ServeSettings, worker: Worker) -> None:
        limits = settings.limits
        bounds = EngineLimits(max_batch=limits.rows, kept=_KEPT)
        engine = Engine(opened.model, opened.tokenizer, bounds)
        # what is made in the first steps, a tenth of a second, is no client's to wait for
        engine.generate([Request((0,), Sampling(max_new_tokens=3, stop_ids=()))])
        self.settings = settings
        self.engine = EngineThread(worker, engine, limits.rows + limits.waiting)
        self.roster = Roster(opened, settings.runs, self.engine, limits.adapters)
        self.grammars = Grammars(opened.tokenizer, engine.backend.vocabulary)
        self.asker = Asker(
            engine, opened.tokenizer, self.grammars, limits.new_tokens, limits.messages
        )
        self.metrics = Metrics()
        # one thread: tokenizers keep caches, and a long prompt must not stop the event loop
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._watch(engine)

    def _watch(self, engine: Engine) -> None:
        watch = self.metrics.watch
        watch("halfbyte_running", "Answers in the batch.", lambda: engine.running)
        watch("halfbyte_waiting", "Answers that wait for a place.", lambda: engine.waiting)
        watch("halfbyte_open", "Answers admitted and not done.", lambda: self.engine.open)
        counts = self.roster.counts
        loaded = self.roster
        watch("halfbyte_adapters", "Adapters in memory.", lambda: len(loaded.loaded))
        watch("halfbyte_adapter_loads", "Adapters loaded so far.", lambda: counts.loads)
        watch("halfbyte_adapter_evictions", "Adapters evicted.", lambda: counts.evictions)

    async def start(self) -> None:
        """Begin to answer."""
        self.engine.start()

    async def stop(self) -> None:
        """Stop; what is under way is dropped."""
        await self.engine.stop()
        self._encoder.shutdown()

    async def encode(self, work: Callable[[], T]) -> T:
        """Run slow work on texts beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, work)

    @asynccontextmanager
    async def exchange(
        self, model: str, kind: Kind, ask: Callable[[Served], Asking]
    ) -> AsyncIterator[Exchange]:
        """A request under way: its model stays loaded and its answers come until the block is
        left; then whatever is not done is cancelled.

        Raises:
            RefusedError: no such model, or too much to do.
            HalfbyteError: the request can never be answered.
        """
        async with AsyncExitStack() as held:
            served = await held.enter_async_context(self.roster.using(model))
            asking = await self.encode(lambda: ask(served))
            answers = await held.enter_async_context(self.engine.answering(asking.requests))
            envelope = Envelope(
                id=f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{secrets.token_hex(12)}",
                created=int(time.time()),
                model=model,
                kind=kind,
                grammars=self.grammars,
                echoes=asking.echoes,
            )
            exchange = Exchange(answers, envelope)
            try:
                yield exchange
            finally:
                self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        done, requests = exchange.envelope.counted, exchange.answers.requests
        self.metrics.tokens(
            exchange.envelope.model,
            (
                ("prompt", sum(len(request.ids) for request in requests)),
                ("cached", sum(one.cached_tokens for one in done)),
                ("generated", sum(len(one.ids) for one in done)),
            ),
        )
        self.metrics.cancelled(len(requests) - len(done))


def open_service(settings: ServeSettings) -> Service:
    """Load the model and put the parts together.

    Raises:
        HalfbyteError: settings that are unsafe, or a model that cannot be opened.
    """
    settings.check()
    worker = Worker("engine")

    def make() -> Service:
        if settings.compute == "auto":
            opened = open_any(settings.model, settings.runs)
        else:
            opened = open_base(settings.model, (f"model.compute={settings.compute}",))
        return Service(opened, settings, worker)

    return worker.submit(make).result()
