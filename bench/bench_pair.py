"""Training steps of two checkouts in turn: what a change gives where single runs differ by more.

    git worktree add /tmp/before HEAD~1
    python bench/bench_pair.py /tmp/before

Each checkout has a process of its own (dense rows, as in bench_roofline.py); a pair is one step of
each. Prints the medians, and this checkout's seconds over the other's: median and quartiles of the
pairs. On a machine that others use a step is 20 % longer now and then, but mostly both of a pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
WARM = 3  # steps before the first that counts: optimizer state, caches, kernels


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps-when-told", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.steps_when_told:
        step_when_told(given)
        return
    processes = [started(root) for root in (given.other.resolve(), HERE)]
    try:
        for process in processes:
            for _ in range(WARM):
                seconds(process)
        pairs = [tuple(seconds(process) for process in processes) for _ in range(given.pairs)]
    finally:
        for process in processes:
            process.terminate()
    report(given, pairs)


def started(root: Path) -> subprocess.Popen[str]:
    """This program with the package and the steps of another checkout."""
    line = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--steps-when-told"]
    paths = os.pathsep.join((str(root / "src"), str(root / "bench")))
    environment = {**os.environ, "PYTHONPATH": paths}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(line, text=True, env=environment, **pipes)


def seconds(process: subprocess.Popen[str]) -> float:
    """Of one step of that process."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    print("step", file=stdin, flush=True)
    for line in stdout:
        if _is_number(line):
            return float(line)
    raise SystemExit(f"a step failed: exit code {process.wait()}, see above")


def _is_number(line: str) -> bool:
    return line.strip().replace(".", "", 1).isdigit()


def step_when_told(given: argparse.Namespace) -> None:
    """A step for each line that comes in; its seconds go out."""
    sys.path.remove(str(HERE / "bench"))  # where Python found this file: PYTHONPATH has the other's
    from halfbyte.model.fast import alloc

    alloc.restart()
    alloc.set_up()
    from steps import make_ready

    words = ["method=qlora", f"model.base={given.base}", f"lora.rank={given.rank}"]
    ready = make_ready(words, given.rows, given.length, given.rows * given.length)
    for _ in sys.stdin:
        print(f"{ready.step():.4f}", flush=True)


def report(given: argparse.Namespace, pairs: list[tuple[float, ...]]) -> None:
    from machine import machine_words
    from steps import set_threads

    medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
    low, middle, high = statistics.quantiles([here / other for other, here in pairs], n=4)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(set_threads(None))}")
    print(f"{given.base}, rank {given.rank}, {given.rows} × {given.length} dense tokens a step")
    print(f"{len(pairs)} pairs; medians: other {medians[0]:.3f} s, here {medians[1]:.3f} s")
    print(f"here / other: {middle:.3f} (quartiles {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    main()
