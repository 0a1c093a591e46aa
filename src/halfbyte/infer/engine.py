"""The generation engine: many answers at once, each as if it were alone.

Continuous batching: rows enter when there is room, take part in every step, and leave when they
are done; nobody waits for the longest. A step computes one token of every answering row and up to
a budget of prompt tokens, so that long prompts do not stall running answers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halfbyte.errors import InputError
from halfbyte.infer.backend import Backend, Span, inner_model
from halfbyte.infer.decoder import DecoderBackend, unsupported
from halfbyte.infer.fallback import TransformersBackend
from halfbyte.infer.records import Completion, Request, Update
from halfbyte.infer.rows import Row, Slots
from halfbyte.infer.sampler import Chooser, choose, logprobs
from halfbyte.infer.text import TextStream, decode

Progress = Callable[[int, int, int], None]

_CACHE_SHARE: Final = 0.25  # of the memory that is free: weights and others need theirs


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may take.

    - `max_batch`: rows computed at once.
    - `max_tokens`: cache places over all rows (None: a quarter of the free memory).
    - `prefill_tokens`: prompt tokens computed in one step at most; a running answer's next token
      waits no longer than that takes.
    - `kept`: answers that are remembered beside the rows under way, as far as `max_tokens` allows:
      conversations that go on, passages asked about again.
    """

    max_batch: int = 64
    max_tokens: int | None = None
    prefill_tokens: int = 512
    kept: int = 0


class Engine:
    """Generates with one loaded model and the adapters it holds.

    Either whole: `generate` (a list of requests) and `stream` (one); or step by step, for a
    server: `submit`, `step` and `cancel`. `submit` and `cancel` may be called from any thread,
    all else from the one that steps.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits = limits or Limits()
        self.tokenizer = tokenizer
        self.backend = backend_for(model)
        self.end_ids = end_ids(model, tokenizer)
        tokens = limits.max_tokens or _free_tokens(self.backend)
        self._slots = Slots(self.backend.cache, limits.max_batch, tokens, limits.kept)
        self._max_tokens = tokens
        self._tickets = itertools.count()
        self._pending: deque[Row] = deque()
        self._cancels: deque[int] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not self._pending and not self._slots.rows

    @property
    def waiting(self) -> int:
        """Requests that have not entered the batch yet."""
        return len(self._pending)

    @property
    def running(self) -> int:
        """Rows in the batch."""
        return len(self._slots.rows)

    def submit(self, request: Request) -> int:
        """Queue a request; its ticket names it in updates.

        Raises:
            InputError: when it can never be answered: an unknown adapter, ids outside the
                vocabulary, more tokens than the model has positions for.
        """
        row = self._row(request)
        self._pending.append(row)
        return row.ticket

    def cancel(self, ticket: int) -> None:
        """End an answer before the next token; its last update says "cancelled"."""
        self._cancels.append(ticket)

    def load(self, name: str, folder: Path) -> None:
        """Take the adapter of a folder under a name that requests can give.

        Raises:
            IntegrityError: it does not fit the model, or is damaged.
            InputError: the name is taken.
        """
        self.backend.load(name, folder)

    def unload(self, name: str) -> None:
        """Forget an adapter; one of the model's own is read anew when it is next asked for.

        Rows under way finish with the weights they began with where the backend can do that.
        """
        self._slots.forget(self.backend.unload(name))

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Let rows in, compute the next token of every row, and say what came of it."""
        updates = self._drop_cancelled()
        self._admit()
        spans, rows = self._plan()
        if not rows:
            return updates
        logits = self.backend.forward(spans)
        ready = []
        for span, row in zip(spans, rows, strict=True):
            self._slots.computed(row, span.stop)
            if span.want:
                ready.append(row)
        return updates + self._extend(ready, logits)

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> list[Completion]:
        """Answer all requests; the completions are in their order.

        `progress(answers done, answers in all, tokens generated so far)` is called when an answer
        is done.

        Raises:
            InputError: as `submit`, before anything is computed, naming the request.
        """
        self._only_when_idle()
        rows = []
        for index, request in enumerate(requests):
            try:
                rows.append(self._row(replace(request, streamed=False)))
            except InputError as error:
                raise InputError(f"request {index}: {error.message}", error.hint) from None
        place = {row.ticket: index for index, row in enumerate(rows)}
        # rows that begin alike side by side: what they share is computed once
        self._pending.extend(sorted(rows, key=lambda r: (r.request.adapter or "", r.ids)))
        done: dict[int, Completion] = {}
        tokens = 0
        while len(done) < len(rows):
            updates = self.step()
            tokens += sum(len(update.ids) for update in updates)
            for update in updates:
                if update.done:
                    done[place[update.ticket]] = update.done
                    if progress:
                        progress(len(done), len(rows), tokens)
        return [done[index] for index in range(len(rows))]

    def stream(self, request: Request) -> Iterator[Update]:
        """Answer one request; yields what each token adds, the last update with the completion.

        Closing the iterator cancels the answer.
        """
        self._only_when_idle()
        ticket = self.submit(request)
        try:
            while not self.idle:
                yield from self.step()
        finally:
            if not self.idle:
                self.cancel(ticket)
                self.step()

    def _only_when_idle(self) -> None:
        if not self.idle:
            raise InputError("the engine is answering other requests: use submit and step")

    def _row(self, request: Request) -> Row:
        self._check(request)
        sampling = request.sampling
        ids = list(request.ids)
        stops = self.end_ids if sampling.stop_ids is None else sampling.stop_ids
        adapter = None if request.adapter is None else self.backend.adapter(request.adapter)
        return Row(
            ticket=next(self._tickets),
            request=request,
            adapter=adapter,
            chooser=Chooser(sampling, ids, request.constraint),
            stops=frozenset(stops),
            stream=TextStream(self.tokenizer, sampling.stop_strings),
            ids=ids,
        )

    def _check(self, request: Request) -> None:
        count, more = len(request.ids), request.sampling.max_new_tokens
        if not count:
            raise InputError("the prompt has no tokens", "Give at least one, e.g. the BOS token.")
        if not all(0 <= token < self.backend.vocabulary for token in request.ids):
            raise InputError(
                f"the prompt has token ids outside the model's 0 to {self.backend.vocabulary - 1}",
                "Encode it with this model's own tokenizer.",
            )
        most = min(self.backend.positions, self._max_tokens)
        if count + more > most:
            left = most - count
            hint = f"max_new_tokens={left} would fit." if left > 0 else "Shorten the prompt."
            raise InputError(
                f"a prompt of {count} tokens and up to {more} new ones: the context has {most}",
                hint,
            )

    def _drop_cancelled(self) -> list[Update]:
        gone = {self._cancels.popleft() for _ in range(len(self._cancels))}
        if not gone:
            return []
        waiting = [row for row in list(self._pending) if row.ticket in gone]
        for row in waiting:
            self._pending.remove(row)
        running = [row for row in self._slots.rows if row.ticket in gone]
        for row in running:
            self._slots.leave(row)
        return [Update(r.ticket, done=r.finished("cancelled")) for r in waiting + running]

    def _admit(self) -> None:
        """Let waiting rows in, first come first served, but for rows whose beginning another row
        is about to compute: they enter when it is there to be shared.
        """
        budget = self.limits.prefill_tokens
        budget -= sum(len(row.request.ids) - row.computed for row in self._slots.rows)
        held: list[Row] = []
        while self._pending and budget > 0 and len(held) < self.limits.max_batch:
            row = self._pending.popleft()
            if not self._slots.room(row, self._pending):
                held.append(row)
                break
            if self._slots.waits(row):
                held.append(row)
                continue
            self._slots.enter(row)
            budget -= len(row.ids) - row.computed
        self._pending.extendleft(reversed(held))

    def _plan(self) -> tuple[list[Span], list[Row]]:
        """This step's spans: the next token of every answer, and prompts up to the budget."""
        spans, rows = [], []
        budget = self.limits.prefill_tokens
        for row in self._slots.rows:
            left = len(row.ids) - row.computed
            count = left if left == 1 else min(left, budget)
            if not count:
                continue
            budget -= count if left > 1 else 0
            ids = tuple(row.ids[row.computed : row.computed + count])
            spans.append(Span(row.slot, row.computed, ids, int(count == left), row.adapter))
            rows.append(row)
        return spans, rows

    def _extend(self, rows: Sequence[Row], logits: torch.Tensor) -> list[Update]:
        """Choose each row's token from its logits [rows, vocabulary]; rows that end leave."""
        if not rows:
            return []
        tokens = choose(logits, [row.chooser for row in rows])
        asked = [i for i, row in enumerate(rows) if row.request.sampling.logprobs is not None]
        if asked:
            tops = [rows[i].request.sampling.logprobs or 0 for i in asked]
            found = logprobs(logits[asked], [tokens[i] for i in asked], tops)
            for i, entry in zip(asked, found, strict=True):
                rows[i].logprobs.append(entry)
        return [self._append(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _append(self, row: Row, token: int) -> Update:
        sampling = row.request.sampling
        if token in row.stops:
            return self._end(row, "", (), token)
        row.ids.append(token)
        text = "" if row.quiet else row.stream.push(token)
        if row.chooser.constraint is not None:
            row.chooser.constraint.accept(token)
        entry = tuple(row.logprobs[-1:]) if sampling.logprobs is not None else ()
        over = row.chooser.constraint is not None and row.chooser.constraint.finished()
        if row.stream.stop is None and not over and len(row.answer) < sampling.max_new_tokens:
            row.shown += text
            return Update(row.ticket, text, (token,), entry)
        return self._end(row, text, (token,), None, over)

    def _end(
        self, row: Row, text: str, ids: tuple[int, ...], stop: int | None, over: bool = False
    ) -> Update:
        text += decode(self.tokenizer, row.answer) if row.quiet else row.stream.flush()
        row.shown += text
        reason = row.stream.stop if stop is None else stop
        if stop is not None and row.logprobs:
            row.logprobs.pop()  # the end mark is not part of the answer
        entry = tuple(row.logprobs[-1:]) if ids and row.logprobs else ()
        finish = row.finished("stop" if over or reason is not None else "length", reason)
        self._slots.leave(row)
        return Update(row.ticket, text, ids, entry, finish)


def backend_for(model: PreTrainedModel | PeftModel) -> Backend:
    """The compact pass where the model has its shape, else transformers' own."""
    reason = unsupported(model)
    return TransformersBackend(model, reason) if reason else DecoderBackend(model)


def end_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Every id that ends an answer: of the generation config, the config and the tokenizer."""
    inner = inner_model(model)
    given = [
        getattr(getattr(inner, "generation_config", None), "eos_token_id", None),
        getattr(inner.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    flat = [e for ids in given for e in (ids if isinstance(ids, list | tuple) else [ids])]
    return tuple(dict.fromkeys(int(e) for e in flat if e is not None))


def _free_tokens(backend: Backend) -> int:
    """Cache places that fit in a quarter of the memory that is free, at least one full context
    of 2,048 (or what the model has).
    """
    free = psutil.virtual_memory().available * _CACHE_SHARE
    return max(int(free // backend.token_bytes()), min(backend.positions, 2048))
