"""The server under load: eight clients, three adapters, swaps in between, against one client.

    python bench/bench_serve.py                          # 200 requests, as in docs/serving.md
    python bench/bench_serve.py --requests 24 --new 16   # a quick look

Three adapters with random small weights are made over the embedded model. One client asks alone
first, then eight at once; in the second part two adapters are swapped and one is unloaded again and
again. Printed: errors, tokens a second of both, their ratio, the server's resident memory before,
half-way and after, answers that are not those the same adapter gave alone, and what the ratio would
be if a step were nothing but the base's products, or the engine's without a server; and how busy
the machine was before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from halfbyte.api import open_base
from halfbyte.api.opening import Opened
from halfbyte.config import LoraSettings
from halfbyte.infer import Engine, Request, Sampling
from halfbyte.infer.decoder import linear_groups
from halfbyte.infer.products import product_for
from halfbyte.model.adapters import attach, save
from halfbyte.run import Receipt, RunFolder
from machine import begin_as_train

NAMES = ("one", "two", "three")
QUESTIONS = (
    "What is a half byte, and who uses it?",
    "Name three rivers and the countries they flow through.",
    "Explain in two sentences why the sky is blue.",
    "How do I boil an egg so that the yolk stays soft?",
    "Write a short poem about an empty railway station.",
)
ADMIN = "bench-admin-key"
Asked = tuple[str, str]  # model, question


@dataclass
class Tally:
    """What came of some requests."""

    seconds: float = 0.0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    texts: dict[Asked, set[str]] = field(default_factory=dict)
    middle: float = 0.0  # the server's memory when half was answered, MB

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    begin_as_train()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    busy = psutil.cpu_percent(2.0)
    counts = (1, asked.clients)
    opened = open_base("smollm2-135m")
    bare = products(opened, *counts)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs(runs, opened)
        steps = engine_steps(runs, opened, *counts)
        with served(runs, asked) as (port, memory):
            load(port, asked, 1, 6, memory)  # warm: adapters, caches, threads
            every = len(NAMES) * len(QUESTIONS)
            alone = load(port, asked, 1, max(every, asked.requests // 8), memory)
            before = memory()
            crowd = load(port, asked, asked.clients, asked.requests, memory, swap=True)
            after = memory()
    print(f"others used {busy:.0f} % of the processors before")
    report(asked, alone, crowd, (before, crowd.middle, after))
    for name, (one, many) in (("the base's products", bare), ("a step of the engine", steps)):
        words = f"one row {1e3 * one:.1f} ms, {asked.clients} rows {1e3 * many:.1f} ms"
        print(f"{name} alone: {words}; ratio of rows/s {asked.clients * one / many:.2f}")


def report(asked: argparse.Namespace, alone: Tally, crowd: Tally, memory: Sequence[float]) -> None:
    """The figures as lines."""
    errors = [*alone.errors, *crowd.errors]
    other = sum(texts != alone.texts.get(key, texts) for key, texts in crowd.texts.items())
    before, middle, after = memory
    print(f"{os.cpu_count()} cores, {asked.threads or torch.get_num_threads()} threads")
    print(f"{asked.requests} requests, {asked.clients} clients, {asked.new} new tokens each")
    print(f"errors: {len(errors)} {errors[:3] or ''}")
    print(f"answers that differ from the adapter's alone: {other}")
    print(f"one client: {alone.speed:.1f} tokens/s; {asked.clients}: {crowd.speed:.1f} tokens/s")
    print(f"ratio: {crowd.speed / alone.speed:.2f}")
    print(f"resident memory: {before:.0f} MB, half-way {middle:.0f} MB, after {after:.0f} MB")


@torch.inference_mode()
def products(opened: Opened, *counts: int) -> list[float]:
    """Seconds of the base's products in a step of so many rows, for each count, medians of 20."""
    model = opened.model
    blocks = [group for layer in model.model.layers for group in linear_groups(layer)]
    groups = [*blocks, [model.lm_head]]
    made = [torch.jit.script(product_for(one, torch.float32, copy=True)) for one in groups]
    medians = []
    for rows in counts:
        inputs = [torch.randn(rows, one[0].in_features) for one in groups]
        taken = []
        for _ in range(25):
            began = time.perf_counter()
            for product, x in zip(made, inputs, strict=True):
                product(x)
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken[5:]))
    return medians


def engine_steps(runs: Path, opened: Opened, *counts: int) -> list[float]:
    """Seconds of the engine's step of so many rows of the three adapters, for each count: medians
    of the middle of 48 steps.
    """
    engine = Engine(opened.model, opened.tokenizer)
    for name in NAMES:
        engine.load(name, RunFolder(runs / name).adapter)
    prompts = [tuple(opened.tokenizer(question)["input_ids"]) for question in QUESTIONS]
    sampling = Sampling(max_new_tokens=48, stop_ids=())
    medians = []
    for rows in (max(counts), *counts):  # the first one warms up
        for row in range(rows):
            ids, name = prompts[row % len(prompts)], NAMES[row % len(NAMES)]
            engine.submit(Request(ids, sampling, name, streamed=False))
        taken = []
        while not engine.idle:
            began = time.perf_counter()
            engine.step()
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken[4:44]))
    return medians[1:]


def make_runs(runs: Path, opened: Opened) -> None:
    """Three finished runs over the embedded model, their adapters drawn at random."""
    for seed, name in enumerate(NAMES):
        run = RunFolder.create(runs, name, "method: lora\nmodel:\n  base: smollm2-135m\n")
        receipt(opened, seed).write(run.receipt)
        model = attach(opened.model, LoraSettings(rank=16), seed)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.002)
        save(model, run.adapter)
        model.unload()


def receipt(opened: Opened, seed: int) -> Receipt:
    """What a training would have noted."""
    return Receipt(
        base=opened.base.name,
        revision=opened.base.revision,
        base_files=opened.base.hashes(),
        data={},
        template=opened.template.hash,
        config={},
        seed=seed,
        threads=1,
        device="cpu",
        created="2026-01-01T00:00:00+00:00",
    )


@contextmanager
def served(runs: Path, asked: argparse.Namespace) -> Iterator[tuple[int, Callable[[], float]]]:
    """A server as a process of its own: its port, and a function for its memory in MB."""
    line = [sys.executable, "-m", "halfbyte", "serve", "--runs", str(runs), "--port", "0"]
    environment = {**os.environ, "HALFBYTE_ADMIN_KEY": ADMIN, "PYTHONUNBUFFERED": "1"}
    if asked.threads:
        environment["OMP_NUM_THREADS"] = str(asked.threads)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
        watched = psutil.Process(process.pid)
        try:
            yield port, lambda: watched.memory_info().rss / 1e6
        finally:
            process.terminate()


def load(
    port: int,
    asked: argparse.Namespace,
    clients: int,
    requests: int,
    memory: Callable[[], float],
    swap: bool = False,
) -> Tally:
    """So many requests from so many clients, who ask again as soon as they are answered."""
    todo: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    for number in range(requests):
        todo.put((NAMES[number % len(NAMES)], QUESTIONS[number % len(QUESTIONS)]))
    tally, lock, over = Tally(), threading.Lock(), threading.Event()
    threads = [
        threading.Thread(target=client, args=(port, asked.new, todo, tally, lock))
        for _ in range(clients)
    ]
    swapper = threading.Thread(target=swaps, args=(port, asked.swap_every, over, tally))
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    if swap:
        swapper.start()
    while todo.qsize() > requests // 2 and any(thread.is_alive() for thread in threads):
        time.sleep(0.1)
    tally.middle = memory()
    for thread in threads:
        thread.join()
    tally.seconds = time.perf_counter() - began
    over.set()
    if swap:
        swapper.join()
    return tally


def client(
    port: int, new: int, todo: queue.SimpleQueue[Asked], tally: Tally, lock: threading.Lock
) -> None:
    """Ask until nothing is left to ask."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    while True:
        try:
            model, question = todo.get_nowait()
        except queue.Empty:
            connection.close()
            return
        message = [{"role": "user", "content": question}]
        body = {"model": model, "messages": message, "temperature": 0, "max_tokens": new}
        status, answer = post(connection, "/v1/chat/completions", body)
        with lock:
            if status != 200:
                tally.errors.append(f"{status} {answer}")
                continue
            tally.tokens += answer["usage"]["completion_tokens"]
            text = answer["choices"][0]["message"]["content"]
            tally.texts.setdefault((model, question), set()).add(text)


def swaps(port: int, every: float, over: threading.Event, tally: Tally) -> None:
    """Load two adapters anew and unload the third, again and again, while others ask."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    while not over.wait(every):
        for name in NAMES[:2]:
            body = {"lora_name": name, "lora_path": name, "load_inplace": True}
            status, answer = post(connection, "/v1/load_lora_adapter", body)
            if status != 200:
                tally.errors.append(f"swap: {status} {answer}")
        status, answer = post(connection, "/v1/unload_lora_adapter", {"lora_name": NAMES[2]})
        if status not in {200, 404, 409}:  # 409: it is answering, which is as it should be
            tally.errors.append(f"unload: {status} {answer}")
    connection.close()


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    if path.endswith("adapter"):
        headers["Authorization"] = f"Bearer {ADMIN}"
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    return response.status, json.loads(text) if text.startswith("{") else text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--swap-every", type=float, default=5.0, help="seconds between swaps")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
