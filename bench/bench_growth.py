"""How time and memory of a step grow with length, rank, depth and width.

    python bench/bench_growth.py                 # everything
    python bench/bench_growth.py length rank     # some of it

Each point is a process of its own: QLoRA on dense rows (nothing shared, all trained), random ids.
Length and rank are taken on the embedded base, depth and width on models of its shape with random
weights. A point takes `--tokens` tokens a step, all at once, or one row where a row is longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import begin_as_train, machine_words

SMALL = "smollm2-135m"
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
RANKS = (4, 8, 16, 32, 64)
LAYERS = (8, 15, 30, 60)
WIDTHS = (192, 384, 576, 960)
HEAD = 64  # SmolLM2's head width; a third of its heads are keys and values
HEADER = ("tokens a step", "parameters, M", "seconds a step", "tokens/s", "peak RSS, MB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["length", "rank", "depth", "width"])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def points(what: str, tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Name and description of each point of one table."""
    usual = {"base": SMALL, "length": min(256, tokens), "rank": 16, "tokens": tokens}
    if what == "length":
        return [(f"{n:,}", {**usual, "length": n, "tokens": max(n, tokens)}) for n in LENGTHS]
    if what == "rank":
        return [(str(rank), {**usual, "rank": rank}) for rank in RANKS]
    if what == "depth":
        return [(f"{n} layers", {**usual, "layers": n, "width": 576}) for n in LAYERS]
    return [(f"width {n}", {**usual, "layers": 15, "width": n}) for n in WIDTHS]


def random_base(folder: Path, layers: int, width: int) -> Path:
    """A model of SmolLM2's shape, deeper or wider, with random weights in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from halfbyte.model import bases

    small = bases.resolve(SMALL).folder
    config = AutoConfig.from_pretrained(small, local_files_only=True)
    heads = width // HEAD
    config.update(
        {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": width * 8 // 3,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3,
            "head_dim": HEAD,
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((small / name).read_bytes())
    return folder


def one(point: dict[str, Any], repeats: int) -> None:
    """Take one point here and print its figures as JSON."""
    begin_as_train()
    from steps import make_ready

    words = ["method=qlora", f"model.base={point['base']}", f"lora.rank={point['rank']}"]
    count = point["tokens"] // point["length"]
    ready = make_ready(words, count, point["length"], point["tokens"])
    times = [ready.step() for _ in range(repeats + 1)][1:]
    figures = {
        "seconds": statistics.median(times),
        "tokens": count * point["length"],
        "memory": ready.memory,
        "parameters": parameters(ready.model),
    }
    print(json.dumps(figures))


def parameters(model: Any) -> int:
    """All parameters, 4-bit ones counted as two a byte."""
    total = 0
    for parameter in model.parameters():
        packed = parameter.dtype.itemsize == 1 and not parameter.requires_grad
        total += parameter.numel() * (2 if packed else 1)
    return total


def take(point: dict[str, Any], given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One point in a process of its own."""
    point = dict(point)
    if "layers" in point:
        layers, width = point.pop("layers"), point.pop("width")
        base = folder / f"{layers}x{width}"
        point["base"] = str(base if base.exists() else random_base(base, layers, width))
    command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(point)]
    command += ["--repeats", str(given.repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    given = arguments()
    if given.one is not None:
        one(json.loads(given.one), given.repeats)
        return
    kind = "processor seconds" if os.environ.get("BENCH_BY_CPU") == "1" else "seconds on the clock"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(given.threads)}, {kind}")
    with tempfile.TemporaryDirectory() as folder:
        for what in given.what:
            print(f"\n| {what} | " + " | ".join(HEADER) + " |")
            print("|" + "---|" * (len(HEADER) + 1))
            for name, point in points(what, given.tokens):
                found = take(point, given, Path(folder))
                print(
                    f"| {name} | {found['tokens']:,} | {found['parameters'] / 1e6:,.1f} "
                    f"| {found['seconds']:.2f} | {found['tokens'] / found['seconds']:,.0f} "
                    f"| {found['memory'] / 1e6:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
