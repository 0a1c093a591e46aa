"""A server in a thread of the test's process: tiny base, three adapters, real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from halfbyte import api
from halfbyte.config import LoraSettings
from halfbyte.data.templates import Template
from halfbyte.model import bases
from halfbyte.model.adapters import attach, save
from halfbyte.run import Receipt, RunFolder
from halfbyte.serve import Limits, ServeSettings
from halfbyte.serve.guard import Guard
from halfbyte.serve.listening import listening
from halfbyte.serve.server import Server, make_server
from halfbyte.serve.service import Service, open_service
from tests.tiny import tiny_base, tiny_model

NAMES = ("red", "green", "blue")
QUESTION = [{"role": "user", "content": "What is a half byte?"}]


def make_run(
    runs: Path, name: str, base: Path, seed: int, recipe: str = "method: lora", **lora: Any
) -> RunFolder:
    """A finished run whose adapter has random weights; `recipe`: YAML beside the base."""
    where = json.dumps(str(base))
    run = RunFolder.create(runs, name, f"{recipe}\nmodel:\n  base: {where}\n  compute: fp32\n")
    write_adapter(run, seed, **lora)
    config = api.run_config(run)
    known = bases.resolve(str(base))
    template = Template.load(config.data.template, bases.load_tokenizer(known))
    Receipt(
        base=known.name,
        revision=None,
        base_files=known.hashes(),
        data={},
        template=template.hash,
        config={},
        seed=seed,
        threads=1,
        device="cpu",
        created="2026-01-01T00:00:00+00:00",
    ).write(run.receipt)
    return run


def write_adapter(run: RunFolder, seed: int, **lora: Any) -> None:
    """The run's adapter, anew."""
    model = attach(tiny_model(), LoraSettings(**{"rank": 4, "alpha": 8, **lora}), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save(model, run.adapter)


@dataclass
class World:
    """A folder with a base and runs, and what each model answers when it is alone."""

    folder: Path
    base: Path
    runs: Path
    _alone: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def settings(self, **given: Any) -> ServeSettings:
        """Settings for any free port; `limits` are changes to the usual ones."""
        limits = replace(Limits(new_tokens=24), **given.pop("limits", {}))
        return ServeSettings(str(self.base), "fp32", self.runs, port=0, limits=limits, **given)

    def alone(self, model: str, text: str, new: int = 24) -> str:
        """The greedy answer of one model, with nothing else loaded or running."""
        key = (model, text, new)
        if key not in self._alone:
            opened = (
                api.open_base(str(self.base), ["model.compute=fp32"])
                if model == self.base.name
                else api.open_run(self.runs / model)
            )
            done = api.answer(opened, [text], api.sampling(max_new_tokens=new))
            self._alone[key] = done[0].text
        return self._alone[key]


def make_world(folder: Path) -> World:
    """A tiny base and three runs with different targets, so that no adapter covers the others."""
    base = tiny_base(folder, max_position_embeddings=512)
    runs = folder / "runs"
    for seed, name in enumerate(NAMES):
        targets = ("all-linear", "attention", ("gate_proj", "up_proj", "down_proj"))[seed]
        make_run(runs, name, base, seed, targets=targets)
    return World(folder, base, runs)


@dataclass
class Running:
    """A server that answers now."""

    url: str
    port: int
    service: Service
    guard: Guard
    server: Server
    loop: asyncio.AbstractEventLoop

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """One request over a connection of its own: status, JSON (or text), headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Content-Type": "application/json", **(headers or {})}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, given)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        is_json = "json" in (response.getheader("content-type") or "")
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(text) if is_json else text, found

    def chat(self, model: str, text: str = "Hello", **more: Any) -> tuple[int, Any]:
        """One greedy chat answer."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        status, answer, _ = self.ask("POST", "/v1/chat/completions", {**body, **more})
        return status, answer

    def text(self, model: str, text: str = "Hello", **more: Any) -> str:
        """The text of one greedy chat answer."""
        status, answer = self.chat(model, text, **more)
        assert status == 200, answer
        content: str = answer["choices"][0]["message"]["content"]
        return content


@contextmanager
def running(settings: ServeSettings) -> Iterator[Running]:
    """Serve these settings while the block runs."""
    service = open_service(settings)
    begun = threading.Event()
    said: list[str] = []

    def ready(address: str) -> None:
        said.append(address)
        begun.set()

    server, guard = make_server(service, settings, ready)
    loop = asyncio.new_event_loop()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        with listening(settings.host, settings.port) as sockets:
            loop.run_until_complete(server.serve(sockets))
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert begun.wait(30)
    port = int(said[0].rpartition(":")[2])
    try:
        yield Running(said[0], port, service, guard, server, loop)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def is_error(body: Any) -> bool:
    """Whether a response has OpenAI's error form."""
    return (
        isinstance(body, dict)
        and set(body) == {"error"}
        and set(body["error"]) == {"message", "type", "param", "code"}
        and isinstance(body["error"]["message"], str)
    )


def events_of(text: str) -> list[Any]:
    """The JSON of a stream's events, without the last, which must be [DONE]."""
    lines: Sequence[str] = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
