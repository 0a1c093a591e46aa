"""A conversation: history, who answers, and how; the console and other front ends drive it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from halfbyte.api.generating import with_template
from halfbyte.api.opening import Opened, find_run, require_fit
from halfbyte.data.records import Message
from halfbyte.errors import InputError
from halfbyte.infer import NUMBERS, Completion, Engine, Request, Sampling, Update
from halfbyte.run import write_atomic

SETTINGS: Final = tuple(NUMBERS)


class Chat:
    """One conversation with one base and any of its adapters.

    `adapter` is who answers: a name in `adapters`, or None for the base. What is said is kept in
    `messages`; an answer that was cut off by the caller is kept as far as it came.
    """

    def __init__(self, opened: Opened, wanted: Sampling, runs: str | Path = "runs") -> None:
        self.opened = opened
        self.sampling = wanted
        self.adapters: dict[str, str] = {}  # a run's name: the adapter's name in the engine
        if opened.adapter is not None:
            self.adapters[opened.name] = opened.adapter
        self.adapter: str | None = opened.name if opened.adapter is not None else None
        self.messages: list[Message] = []
        if opened.config.data.system:
            self.set_system(opened.config.data.system)
        self.last: Completion | None = None
        self.speed = 0.0  # tokens a second of the last answer
        self._runs = runs
        self._engine = Engine(opened.model, opened.tokenizer)

    def set_system(self, text: str) -> None:
        """Begin anew under this system message; an empty one removes it."""
        self.messages = [Message("system", text)] if text else []

    def use_base(self) -> None:
        """The base answers from now on: every adapter off."""
        self.adapter = None

    def use_adapter(self, name: str) -> None:
        """A run's adapter answers from now on; it is loaded if it was not yet.

        Raises:
            InputError: there is no such run, or it was trained fully.
            IntegrityError: its adapter does not fit.
        """
        if name not in self.adapters:
            run = find_run(name, self._runs)
            require_fit(run, self.opened)
            inner = f"run-{len(self.adapters)}"
            self._engine.load(inner, run.adapter)
            self.adapters[name] = inner
        self.adapter = name

    def set(self, name: str, value: Any) -> None:
        """Change one sampling setting.

        Raises:
            InputError: no such setting, or a value out of its range.
        """
        if name not in SETTINGS:
            raise InputError(f"{name}: no such setting", f"There are: {', '.join(SETTINGS)}.")
        self.sampling = replace(self.sampling, **{name: value})

    def say(self, text: str) -> Iterator[Update]:
        """Add what the user says, and yield the answer as it comes."""
        self.messages.append(Message("user", text))
        yield from self._answer()

    def retry(self) -> Iterator[Update]:
        """Answer the last message again.

        Raises:
            InputError: nothing was said yet.
        """
        if self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1].role != "user":
            raise InputError("nothing was said yet", "Say something first.")
        yield from self._answer()

    def save(self, path: Path) -> None:
        """Write the conversation as one row in OpenAI's `messages` format."""
        turns = [{"role": one.role, "content": one.content} for one in self.messages]
        write_atomic(path, json.dumps({"messages": turns}, ensure_ascii=False) + "\n")

    def _answer(self) -> Iterator[Update]:
        ids = self.opened.template.encode_prompt(self.messages)
        adapter = None if self.adapter is None else self.adapters[self.adapter]
        request = Request(tuple(ids), with_template(self.opened, self.sampling), adapter)
        text, count, began = "", 0, time.perf_counter()
        try:
            for update in self._engine.stream(request):
                text += update.text
                count += len(update.ids)
                self.last = update.done or self.last
                yield update
        finally:
            self.messages.append(Message("assistant", text))
            self.speed = count / max(time.perf_counter() - began, 1e-9)
