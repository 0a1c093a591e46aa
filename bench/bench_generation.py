"""Generation: the engine against transformers' `generate`, on the same model and rows, in turn.

    python bench/bench_generation.py                       # the figures of docs/benchmarks.md
    python bench/bench_generation.py --rows 24 --repeats 1 # a quick look

Two questions. Batched, as in evaluation: rows of a data set, 64 new tokens each; transformers gets
them in batches of 8, in the order of the file, left-padded. One stream, as in a chat: one prompt,
one answer, an adapter (rank 16, all linear layers) attached. Each side runs the same loaded
weights, greedily, with the same threads, one after the other, several times; the medians count.
End marks are switched off on both sides, so that every row gives all its tokens; the last table
lets rows end by themselves, which is how evaluation really runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from halfbyte.api.opening import Opened, open_base
from halfbyte.config import DataSettings, LoraSettings
from halfbyte.data.table import read_table
from halfbyte.infer import Engine, Limits, Request, Sampling
from halfbyte.infer.engine import end_ids
from halfbyte.model import adapters

Ids = tuple[int, ...]
Answers = list[Ids]
Side = Callable[[], Answers]
BATCH = 8


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    print(_where())
    compute = f"model.compute={asked.compute}"
    plain = open_base(asked.base, ["method=lora", compute])
    prompts = _prompts(plain, asked.data, asked.rows)
    spread = sorted(len(p) for p in prompts)
    print(f"{len(prompts)} rows of {asked.data}, {spread[0]} to {spread[-1]} prompt tokens,")
    print(f"median {spread[len(spread) // 2]}; {asked.new} new tokens each\n")
    print("| case | transformers, tokens/s | halfbyte, tokens/s | ratio | equal answers |")
    print("|---|---|---|---|---|")
    _batched("batch, base", plain, prompts, asked)
    _batched("batch, base, rows end by themselves", plain, prompts, asked, ends=True)
    _stream("one stream, adapter", _adapted(plain), prompts, asked)
    del plain
    four_bit = _adapted(open_base(asked.base, ["method=qlora", compute]))
    _stream("one stream, adapter, NF4 base", four_bit, prompts, asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", default="builtin:tutor")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--compute", default="auto", help="bf16 or fp32: what both sides load")
    parser.add_argument("--max-batch", type=int, default=Limits().max_batch)
    return parser.parse_args()


def _where() -> str:
    names = ("torch", "transformers", "peft", "bitsandbytes", "halfbyte")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    threads = torch.get_num_threads()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {threads} threads; {versions}\n"
        f"load before: {os.getloadavg()[0]:.1f}"
    )


def _prompts(opened: Opened, data: str, count: int) -> list[Ids]:
    with read_table(data, DataSettings(), count) as table:
        rows = [table.example(index) for index in range(len(table))]
    return [tuple(opened.template.encode_prompt(row.prompt, row.context)) for row in rows]


def _adapted(opened: Opened) -> Opened:
    """With an adapter that changes answers: trained ones differ from the base as well."""
    model = adapters.attach(opened.model, LoraSettings(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.004)
    fields = (opened.name, opened.config, opened.base, opened.form, model.eval())
    return Opened(*fields, opened.tokenizer, opened.template, adapters.DEFAULT)


def _batched(
    name: str, opened: Opened, prompts: Sequence[Ids], asked: argparse.Namespace, ends: bool = False
) -> None:
    stop = None if ends else ()
    requests = [Request(ids, Sampling(asked.new, stop_ids=stop)) for ids in prompts]

    def theirs() -> Answers:
        batches = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        return [row for batch in batches for row in _transformers(opened, batch, asked.new, ends)]

    def ours() -> Answers:
        # a new engine each time: reading the weights is part of what an evaluation waits for
        engine = Engine(opened.model, opened.tokenizer, Limits(max_batch=asked.max_batch))
        return [answer.ids for answer in engine.generate(requests)]

    _compare(name, theirs, ours, asked.repeats)


def _stream(name: str, opened: Opened, prompts: Sequence[Ids], asked: argparse.Namespace) -> None:
    engine = Engine(opened.model, opened.tokenizer)
    few = prompts[:: max(1, len(prompts) // 3)][:3]
    sampling = Sampling(asked.new, stop_ids=())

    def theirs() -> Answers:
        return [_transformers(opened, [ids], asked.new, ends=False)[0] for ids in few]

    def ours() -> Answers:
        answers = []
        for ids in few:
            *_, last = engine.stream(Request(ids, sampling, opened.adapter))
            assert last.done is not None
            answers.append(last.done.ids)
        return answers

    _compare(name, theirs, ours, asked.repeats)


def _transformers(opened: Opened, rows: Sequence[Ids], new: int, ends: bool) -> Answers:
    """Greedy answers of transformers for one batch, without end marks and what follows them."""
    pad = opened.tokenizer.pad_token_id or 0
    longest = max(len(ids) for ids in rows)
    padded = [[pad] * (longest - len(ids)) + list(ids) for ids in rows]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]
    stops: Any = sorted(set(end_ids(opened.model, opened.tokenizer))) if ends else None
    kept = opened.model.generation_config.eos_token_id
    opened.model.generation_config.eos_token_id = stops
    with torch.inference_mode():
        out = opened.model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=pad,
        )
    opened.model.generation_config.eos_token_id = kept
    return [_until(row, stops or ()) for row in out[:, longest:].tolist()]


def _until(row: list[int], stops: Sequence[int]) -> Ids:
    end = next((i for i, token in enumerate(row) if token in stops), len(row))
    return tuple(row[:end])


def _compare(name: str, theirs: Side, ours: Side, repeats: int) -> None:
    """Run both sides in turn and print a line of the table."""
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    found: dict[str, Answers] = {}
    for _ in range(repeats):
        for side, run in (("theirs", theirs), ("ours", ours)):
            start = time.perf_counter()
            found[side] = run()
            times[side].append(time.perf_counter() - start)
    rates = {side: sum(map(len, found[side])) / statistics.median(times[side]) for side in times}
    pairs = list(zip(found["theirs"], found["ours"], strict=True))
    equal = sum(a == b for a, b in pairs)
    ratio = rates["ours"] / rates["theirs"]
    print(
        f"| {name} | {rates['theirs']:.1f} | {rates['ours']:.1f} | {ratio:.2f} "
        f"| {equal} of {len(pairs)} |"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
