"""How long commands take that do next to nothing: what is loaded before, and what is left to end.

    python bench/bench_start.py

Each command is a process of its own, run in turn with the others; seconds are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime

from machine import machine_words

COMMANDS = (
    ("--help",),
    ("recipes",),
    ("doctor",),
    ("plan", "demo", "--no-calibrate"),
    ("generate", "smollm2-135m", "Hi", "--max-new-tokens", "4"),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    taken: dict[tuple[str, ...], list[float]] = {words: [] for words in COMMANDS}
    for turn in range(repeats + 1):
        for words in COMMANDS:
            began = time.perf_counter()
            line = [sys.executable, "-m", "halfbyte", *words]
            subprocess.run(line, check=True, capture_output=True)
            if turn:  # the first one fills the caches of the disk
                taken[words].append(time.perf_counter() - began)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(len(os.sched_getaffinity(0)))}\n")
    print("| command | seconds, median | least |\n|---|---|---|")
    for words, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"| `halfbyte {' '.join(words)}` | {middle:.1f} | {min(seconds):.1f} |")


if __name__ == "__main__":
    main()
