"""`make bench`: every figure that needs nothing but halfbyte itself, one script after the other.

The last one compares with the peers whose Python BENCH_TRL and BENCH_LLAMAFACTORY name
(bench/peers/README.md).

Not among them: `bench_export.py`, which needs a trained adapter, and a llama.cpp to ask;
`bench_7b.py`, which needs 15 GB of disk; `bench_pair.py`, which needs another checkout.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    ("methods.py", "train.max_steps=12", "data.limit=240", "train.tensorboard=false"),
    ("bench_generation.py",),
    ("optimizers.py",),
    ("bench_start.py",),
    ("bench_roofline.py",),
    ("bench_roofline.py", "--rows", "16", "--without-plain"),
    ("bench_growth.py",),
    ("bench_plan.py",),
    ("bench_rows.py",),
    ("bench_serve.py",),
    ("kill_saves.py", "300"),
    ("bench_peers.py",),
)


def main() -> int:
    """Run them all; the exit code is that of the worst."""
    worst = 0
    for script, *arguments in SCRIPTS:
        print(f"\n== {script} {' '.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / script), *arguments], check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
