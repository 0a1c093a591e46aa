"""What `halfbyte plan` says a training takes against what it takes: settings on the CPU.

Each setting trains the embedded model in a process of its own, with held-out evaluation and
checkpoint: eight steps on generated rows, and for one an epoch of the demo's. The plan is made
before, by the command, in another process.

    python bench/bench_plan.py            # all of them
    python bench/bench_plan.py full       # one of them
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import begin_as_train, machine_words
from rows import write_rows

COMMON = ("train.max_steps=8", "train.batch_size=8", "data.valid_size=4", "train.tensorboard=false")
# name: (median words of a row, settings); None: the demo as it is
SETTINGS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "qlora, short rows": (40, ()),
    "qlora, long rows": (300, ("data.max_length=2048", "train.batch_size=2")),
    "qlora, recomputed": (90, ("train.checkpointing=on",)),
    "lora": (90, ("method=lora",)),
    "full": (90, ("method=full",)),
    "qlora with dora": (90, ("lora.dora=true",)),
    "qlora of the last layer": (90, ("lora.targets=[layers.29.mlp.up_proj]",)),
    "qlora, 4,096 tokens at once": (200, ("data.max_length=1024", "train.micro_tokens=4096")),
    "the demo, an epoch": (None, ("train.epochs=1", "train.learning_rate=1e-3")),
}


def train(words: list[str]) -> None:
    """Train here as `halfbyte train` does, and print this process's peak as JSON."""
    begin_as_train()
    from halfbyte import api
    from halfbyte.config import load_config
    from halfbyte.train.step import peak_memory

    training = api.prepare_training(load_config(None, words))
    for _ in training.events():
        pass
    print(json.dumps({"memory": peak_memory(training.state.accelerator.device)}))


def asked(command: list[str]) -> dict[str, Any]:
    """The JSON a command prints."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def main() -> int:
    """The table; 1 if a ratio is more than 10 % off."""
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", nargs="*", choices=[*SETTINGS, []], help="(default: all)")
    wanted = parser.parse_args().setting or list(SETTINGS)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(len(os.sched_getaffinity(0)))}\n")
    print("| setting | tokens at once | measured peak RSS, MB | planned, MB | planned / measured |")
    print("|---|---|---|---|---|")
    worst = 0.0
    for name in wanted:
        median, settings = SETTINGS[name]
        with tempfile.TemporaryDirectory() as folder:
            words = [f"runs={folder}/runs", *settings]
            if median is not None:
                data = write_rows(Path(folder) / "rows.jsonl", 64, median)
                words = [f"data.train={data}", *COMMON, *words]
            plan = asked(["-m", "halfbyte", "plan", *words, "--no-calibrate", "--json"])
            real = asked([__file__, "--train", *words])
        ratio = plan["peak"] / real["memory"]
        worst = max(worst, abs(ratio - 1))
        print(
            f"| {name} | {plan['tokens_at_once']:,} | {real['memory'] / 1e6:,.0f} | "
            f"{plan['peak'] / 1e6:,.0f} | {ratio:.2f} |",
            flush=True,
        )
    print(f"largest difference: {worst:.0%}")
    return int(worst > 0.1)


if __name__ == "__main__":
    sys.exit(main())
