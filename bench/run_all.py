"""`make bench`: every figure that needs nothing but halfbyte itself, one script after the other.

Where BENCH_TRL or BENCH_LLAMAFACTORY names a peer's Python (bench/peers/README.md), the comparison
with it too.

Not among them: `bench_export.py`, which needs a trained adapter, and a llama.cpp to ask;
`bench_7b.py`, which needs 15 GB of disk; `bench_pair.py`, which needs another checkout.
"""

from __future__ import annotations

import os
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
)
PEERS = ("BENCH_TRL", "BENCH_LLAMAFACTORY")


def main() -> int:
    """Run them all; the exit code is that of the worst."""
    worst = 0
    peers = [name for name in PEERS if os.environ.get(name)]
    if not peers:
        print(f"bench_peers.py is left out: neither {' nor '.join(PEERS)} is set")
    for script, *arguments in SCRIPTS + ((("bench_peers.py",),) if peers else ()):
        print(f"\n== {script} {' '.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / script), *arguments], check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
