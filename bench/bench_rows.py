"""Preparation and training as rows grow: 1,000, 10,000 and 100,000 generated rows.

Prints rows a second, the peak memory of preparing them (reading, checking, splitting, auditing,
rendering and tokenizing with the embedded base's tokenizer; of the largest of its processes), and
the peak of a few training steps of a tiny model over them. Each line is a process of its own. On a
busy machine, what two cores of their own would do says more: twice the rows by the processor
seconds of all processes.

    python bench/bench_rows.py             # all three sizes
    python bench/bench_rows.py 10000       # one of them
    python bench/bench_rows.py --words 26  # shorter rows: 70 tokens instead of 160
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from machine import begin_as_train, machine_words
from rows import write_rows

COUNTS = (1_000, 10_000, 100_000)
LEAST = 5_000  # rows a second


def prepare_rows(data: Path, cache: Path) -> None:
    """Prepare here; print what that took."""
    import resource

    from halfbyte.config import DataSettings
    from halfbyte.data.prepare import prepare
    from halfbyte.model import bases

    tokenizer = bases.load_tokenizer(bases.resolve("smollm2-135m"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began, busy = time.perf_counter(), time.process_time()
    found = prepare(DataSettings(train=str(data)), tokenizer, cache)
    seconds, used = time.perf_counter() - began, time.process_time() - busy
    helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
    used += helpers.ru_utime + helpers.ru_stime
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, helpers.ru_maxrss) * 1024
    count = len(found.train) + len(found.valid)
    tokens = found.report.train.tokens + found.report.valid.tokens
    figures = {"rows": count, "tokens": tokens, "seconds": seconds, "busy": used}
    print(json.dumps({**figures, "before": before, "peak": peak}))


def train_rows(data: Path, folder: Path) -> None:
    """A few steps of a tiny model with the embedded base's tokenizer; print the peak."""
    begin_as_train()
    from transformers import AutoConfig, AutoModelForCausalLM

    from halfbyte import api
    from halfbyte.config import load_config
    from halfbyte.model import bases

    tiny = folder / "tiny"
    if not tiny.exists():
        tokenizer = bases.load_tokenizer(bases.resolve("smollm2-135m"))
        config = AutoConfig.for_model(
            "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=len(tokenizer),
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(tiny)
        tokenizer.save_pretrained(tiny)
    words = (
        f"model.base={tiny}", f"data.train={data}", f"runs={folder}/runs", "data.valid_size=16",
        "train.max_steps=5", "train.tensorboard=false", "train.eval_every=100000",
    )  # fmt: skip
    training = api.prepare_training(load_config(None, words))
    memory = [event.memory for event in training.events() if event.kind == "stepped"]
    print(json.dumps({"memory": max(memory), "resolved": len(training.summary.data.train)}))


def asked(*words: str) -> dict[str, float]:
    """The JSON of this script in another process."""
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """The table; 1 if the largest set is prepared too slowly."""
    if sys.argv[1:2] == ["--prepare"]:
        prepare_rows(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    if sys.argv[1:2] == ["--train"]:
        train_rows(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--words", type=int, default=60, help="a row's, median")
    options = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(len(os.sched_getaffinity(0)))}\n")
    print(
        "| rows | tokens | rows/s | rows/s of two idle cores | peak RSS, preparing, MB | of it the "
        "rows, MB | peak RSS, training, MB |\n|---|---|---|---|---|---|---|"
    )
    rate = 0.0
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            data = write_rows(Path(folder) / "rows.jsonl", count, options.words)
            made = asked("--prepare", str(data), f"{folder}/cache")
            used = asked("--train", str(data), folder)
        rate = made["rows"] / made["seconds"]
        print(
            f"| {made['rows']:,} | {made['tokens']:,} | {rate:,.0f} | "
            f"{2 * made['rows'] / made['busy']:,.0f} | {made['peak'] / 1e6:,.0f} | "
            f"{(made['peak'] - made['before']) / 1e6:,.0f} | {used['memory'] / 1e6:,.0f} |",
            flush=True,
        )
    return int(rate < LEAST)


if __name__ == "__main__":
    sys.exit(main())
