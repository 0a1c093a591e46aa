"""The engine in a thread of its own; requests come from the event loop, updates go back to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from halfbyte.errors import HalfbyteError
from halfbyte.infer import Engine, Request, Update
from halfbyte.serve.errors import RefusedError
from halfbyte.serve.worker import Worker

T = TypeVar("T")
_LOG = logging.getLogger("halfbyte.serve")


class Answers:
    """The answers to one HTTP request, as they come: (which of them, update)."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self._news: asyncio.Queue[tuple[int, Update] | HalfbyteError] = asyncio.Queue()
        self._open = len(self.requests)

    def push(self, news: tuple[int, Update] | HalfbyteError) -> None:
        """One more update, or the failure that ends them all."""
        self._news.put_nowait(news)

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Every update, until all answers are done.

        Raises:
            HalfbyteError: the engine failed.
        """
        while self._open:
            news = await self._news.get()
            if isinstance(news, HalfbyteError):
                raise news
            self._open -= news[1].done is not None
            yield news


class EngineThread:
    """Steps the engine while there is something to answer.

    All methods are the event loop's. Whatever touches the model runs in the worker, between two
    steps: `call` brings it there.
    """

    def __init__(self, worker: Worker, engine: Engine, most: int) -> None:
        self.engine = engine
        self.open = 0  # answers that were admitted and are not done
        self._worker = worker
        self._most = most
        self._owners: dict[int, tuple[Answers, int]] = {}
        self._stepping = False
        self._broken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin; called within the event loop that asks."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """End after the step under way; answers that are not done are dropped."""
        await asyncio.to_thread(self._worker.stop)

    @property
    def alive(self) -> bool:
        """Whether answers can still come."""
        return self._worker.alive and not self._broken

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` between two steps; its result or its error. It runs also if nobody waits for
        it any more.
        """
        return await asyncio.shield(asyncio.wrap_future(self._worker.submit(work)))

    @asynccontextmanager
    async def answering(self, requests: Sequence[Request]) -> AsyncIterator[Answers]:
        """The answers to these requests; on leaving, those not done are cancelled.

        Raises:
            RefusedError: too many for this server (400), or for now (429).
            InputError: one of them can never be answered.
        """
        if len(requests) > self._most:
            raise RefusedError(400, f"{len(requests)} answers; this server gives {self._most}")
        if self.open + len(requests) > self._most:
            raise RefusedError(
                429, "too many answers are under way; try again later", code="queue_full"
            )
        self.open += len(requests)
        answers = Answers(requests)
        try:
            await self.call(partial(self._submit, answers))
            yield answers
        finally:
            self.open -= len(requests)
            self._worker.submit(partial(self._cancel, answers))

    def _submit(self, answers: Answers) -> None:
        try:
            for index, request in enumerate(answers.requests):
                self._owners[self.engine.submit(request)] = (answers, index)
        except HalfbyteError:
            self._cancel(answers)
            raise
        finally:
            self._go_on()

    def _cancel(self, answers: Answers) -> None:
        mine = [ticket for ticket, (owner, _) in self._owners.items() if owner is answers]
        for ticket in mine:
            self.engine.cancel(ticket)
            del self._owners[ticket]

    def _go_on(self) -> None:
        if not self._stepping and not self.engine.idle:
            self._stepping = True
            self._worker.submit(self._step)

    def _step(self) -> None:
        """One step, and another behind whatever else there is to do, until all is answered."""
        try:
            self._deliver(self._news())
        except Exception:
            self._broken = True
            raise
        self._stepping = False
        self._go_on()

    def _news(self) -> list[tuple[Answers, Any]]:
        try:
            updates = self.engine.step()
        except Exception:  # noqa: BLE001  whatever it was: those who wait must hear of it
            _LOG.exception("the engine failed; its answers are given up")
            return self._give_up()
        news: list[tuple[Answers, Any]] = []
        for update in updates:
            owner = self._owners.get(update.ticket)
            if owner is not None:
                answers, index = owner
                if update.done is None and not answers.requests[index].streamed:
                    continue  # waking the event loop takes time from the next step
                news.append((answers, (index, update)))
            if update.done is not None:
                self._owners.pop(update.ticket, None)
        return news

    def _give_up(self) -> list[tuple[Answers, Any]]:
        for ticket in self._owners:
            self.engine.cancel(ticket)
        waiting = {id(answers): answers for answers, _ in self._owners.values()}
        self._owners.clear()
        self.engine.step()  # nothing is left in it but the cancelled
        failure = HalfbyteError("the engine failed while answering")
        return [(answers, failure) for answers in waiting.values()]

    def _deliver(self, news: list[tuple[Answers, Any]]) -> None:
        """All of a step at once: one wake-up of the event loop."""
        if news and self._loop is not None:
            self._loop.call_soon_threadsafe(_push_all, news)


def _push_all(news: list[tuple[Answers, Any]]) -> None:
    for answers, entry in news:
        answers.push(entry)
