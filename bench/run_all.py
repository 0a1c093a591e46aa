"""`make bench`: every figure that needs nothing but halfbyte itself, one script after the other.

`bench_export.py` is not among them: it needs a trained adapter, and a llama.cpp to ask. Nor is
`bench_peers.py`, which needs the peers (bench/peers/README.md).
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
    ("bench_roofline.py",),
    ("bench_growth.py",),
    ("kill_saves.py", "300"),
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
