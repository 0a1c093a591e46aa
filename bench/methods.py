"""Full, LoRA and QLoRA on the same rows: memory, trainable share and held-out loss, as a table.

Each method runs in a process of its own, so that its peak memory is its own:

    python bench/methods.py                    # the table of docs/methods.md
    python bench/methods.py train.max_steps=5  # any override
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from machine import begin_as_train

METHODS = ("full", "lora", "qlora")
HEADER = ("method", "trainable", "share", "weights, MB", "result, MB", "peak RSS, MB", "seconds")


def one(method: str, overrides: list[str]) -> None:
    """Train one method here, as `halfbyte train` does, and print its figures as a line of JSON."""
    begin_as_train()
    from halfbyte import api
    from halfbyte.config import load_config
    from halfbyte.config.recipes import find
    from halfbyte.run import folder_bytes

    training = api.prepare_training(load_config(find(f"methods/{method}"), overrides))
    losses: list[float] = []
    memory, seconds = 0, 0.0
    for event in training.events():
        if event.kind == "evaluated":
            losses.append(event.loss)
        if event.kind == "stepped":
            memory, seconds = event.memory, seconds + event.seconds
    model = training.summary.model
    result = training.run.model if method == "full" else training.run.adapter
    figures = {
        "method": method,
        "trainable": model.trainable,
        "share": model.trainable / model.parameters,
        "weights": model.base_bytes,
        "result": folder_bytes(result),
        "memory": memory,
        "seconds": seconds,
        "losses": losses,
    }
    print(json.dumps(figures))


def main() -> None:
    """Run every method in turn and print the table."""
    overrides = sys.argv[1:]
    if overrides[:1] == ["--one"]:
        one(overrides[1], overrides[2:])
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}")
    print("| " + " | ".join((*HEADER, "held-out loss, base → tuned")) + " |")
    print("|" + "---|" * (len(HEADER) + 1))
    with tempfile.TemporaryDirectory() as runs:
        for method in METHODS:
            command = [sys.executable, str(Path(__file__)), "--one", method, f"runs={runs}"]
            done = subprocess.run([*command, *overrides], stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            losses = found["losses"]
            print(
                f"| {method} | {found['trainable']:,} | {found['share']:.2%} "
                f"| {found['weights'] / 1e6:,.0f} | {found['result'] / 1e6:,.1f} "
                f"| {found['memory'] / 1e6:,.0f} | {found['seconds']:,.0f} "
                f"| {losses[0]:.3f} → {min(losses[1:]):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
