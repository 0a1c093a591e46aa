"""A QLoRA step of a Mistral-7B-shaped model from a cold start: peak memory, and where it goes.

Weights are random. They are written to disk shard by shard (14.5 GB of bf16, removed afterwards),
never held whole; then one process loads them as `halfbyte train` would and takes a step over one
row of 512 tokens with adapters of rank 16 on all linear layers.

    python bench/bench_7b.py --folder DISK        # a folder on a real disk: memory is measured
    python bench/bench_7b.py --layers 4           # the same, shallower: to try it out
    python bench/bench_7b.py --steps 2            # the second holds the optimizer's moments as well
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from machine import begin_as_train, machine_words

ROW = 512
SHARD = 2 << 30  # bytes
LIMIT = 7_000_000_000


def write_model(folder: Path, layers: int) -> int:
    """Config and random weights of Mistral-7B's shape; returns the bytes written.

    One block of normal numbers is drawn, and every weight is filled from random places of it: as
    hard to quantize as independent ones, at the speed of the disk.
    """
    import torch

    from halfbyte.model.shape import catalogue_config
    from halfbyte.model.sizes import SIZES

    config = catalogue_config(SIZES["mistral-7b"])
    config.num_hidden_layers = layers
    config.architectures = ["MistralForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    draws = torch.Generator().manual_seed(0)
    block = (torch.randn(1 << 23, generator=draws) * 0.02).to(torch.bfloat16)
    raw = memoryview(block.view(torch.uint8).numpy().data)
    ones = memoryview(torch.ones(8192, dtype=torch.bfloat16).view(torch.uint8).numpy().data)
    total = 0
    for number, shard in enumerate(shards(weights_of(config))):
        with (folder / f"model-{number:05d}.safetensors").open("wb") as file:
            header, start = {}, 0
            for name, shape in shard:
                stop = start + 2 * count_of(shape)
                header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
                start = stop
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            for _, shape in shard:
                left, source = 2 * count_of(shape), ones if len(shape) == 1 else raw
                while left:
                    begin = 2 * int(torch.randint(len(source) // 4, (), generator=draws))
                    begin = 0 if source is ones else begin
                    part = source[begin : begin + left]
                    file.write(part)
                    left -= len(part)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        total += start
    return total


def weights_of(config: object) -> list[tuple[str, list[int]]]:
    """Name and shape of every weight, from a model without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [(name, list(one.shape)) for name, one in model.named_parameters()]


def count_of(shape: list[int]) -> int:
    """Elements of a shape."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def shards(names: list[tuple[str, list[int]]]) -> list[list[tuple[str, list[int]]]]:
    """The weights in order, by so many bytes a file."""
    found: list[list[tuple[str, list[int]]]] = [[]]
    size = 0
    for name, shape in names:
        if size > SHARD:
            found.append([])
            size = 0
        found[-1].append((name, shape))
        size += 2 * count_of(shape)
    return found


def train(folder: Path, limit: int, steps: int) -> None:
    """Load, attach, take some steps; print what that took as JSON."""
    begin_as_train()
    from halfbyte import api  # noqa: F401  what `halfbyte train` loads
    from halfbyte.api.arranging import Work, settle, way_of
    from halfbyte.config import load_config
    from halfbyte.data.batches import MicroLimits, plan_step
    from halfbyte.model.adapters import attach
    from halfbyte.model.bases import Base, load_model_config
    from halfbyte.model.fast import checkpoint
    from halfbyte.model.load import form_of, load_base
    from halfbyte.model.loss import TokenLoss
    from halfbyte.model.shape import shape_of
    from halfbyte.train import OptimizerSettings, Source, prepare_state
    from halfbyte.train.step import apply_gradient, peak_memory, step_gradient
    from steps import dense_rows

    began = time.perf_counter()
    config = load_config(None, (f"train.memory_limit={limit // 10**6}MB",)).config
    form = form_of(config)
    base = Base("mistral-shaped", "folder", folder)
    shape = shape_of(load_model_config(base), config.lora.targets)
    work, libraries = Work(ROW - 1, ROW - 1, 1.0), psutil.Process().memory_info().rss
    chosen = settle(config, shape, way_of(config, form), work, work.load)
    model = attach(load_base(base, form), config.lora, 0)
    loaded = time.perf_counter()
    at_load = peak_memory(form.device)
    checkpoint.set_layers(model, chosen.recomputed)
    (row,) = dense_rows(1, ROW, shape.vocabulary)
    source = Source(lambda _: [(0,)], lambda _, limits: plan_step([(0, row)], limits))
    limits = MicroLimits(1, chosen.tokens)
    state = prepare_state(TokenLoss(model), OptimizerSettings(2e-4), limits, 0)
    peaks = []
    for _ in range(steps):
        gradient = step_gradient(state, source, (0,), 1.0)
        apply_gradient(state, 1.0)
        peaks.append(peak_memory(form.device))
    figures = {
        "parameters": shape.parameters,
        "recomputed": chosen.recomputed,
        "layers": shape.blocks,
        "loss": gradient.loss,
        "libraries": libraries,
        "planned": chosen.peak,
        "loading": at_load,
        "peaks": peaks,
        "load_seconds": loaded - began,
        "step_seconds": (time.perf_counter() - loaded) / steps,
    }
    print(json.dumps(figures))


def main() -> int:
    """Write, measure in a process of its own, remove; 1 if the peak is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--limit", type=float, default=LIMIT * 0.97)
    options = parser.parse_args()
    if options.train:
        train(options.train, int(options.limit), options.steps)
        return 0
    target = Path(tempfile.mkdtemp(prefix="mistral-shaped-", dir=options.folder))
    try:
        size = write_model(target, options.layers)
        print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(len(os.sched_getaffinity(0)))}")
        print(f"{size / 1e9:.1f} GB of bf16 weights written", flush=True)
        words = [sys.executable, __file__, "--train", str(target), "--limit", str(options.limit)]
        words += ["--steps", str(options.steps)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        shutil.rmtree(target)
    found = json.loads(done.stdout.splitlines()[-1])
    peaks = " ".join(f"{one / 1e9:.2f}" for one in found["peaks"])
    print(
        f"{found['parameters'] / 1e9:.2f} billion parameters, {found['recomputed']} of "
        f"{found['layers']} layers recomputed, loss {found['loss']:.2f}\n"
        f"peak RSS {peaks} GB (planned {found['planned'] / 1e9:.2f}; libraries "
        f"{found['libraries'] / 1e9:.2f}; while loading {found['loading'] / 1e9:.2f})\n"
        f"loading and quantizing {found['load_seconds']:.0f} s, the step "
        f"{found['step_seconds']:.0f} s"
    )
    return int(found["peaks"][-1] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
