"""Kill trainings while they save, and count what was lost (faults 1 and 2).

    python bench/kill_saves.py [KILLS]

300 random kills by default, then one kill at every write, sync and named point of a save; each
time the training goes on, and in the end its weights are compared with those of a run never killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

DRIVER = Path(__file__).parent.parent / "tests" / "fault_driver.py"


def main() -> None:
    kills = sys.argv[1] if len(sys.argv) > 1 else "300"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(DRIVER), folder, "--kills", kills, "--points", "all"]
        facts = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found, points = facts["kills"], facts["points"]
    print(f"{found['kills']} random kills, {found['mid_save']} of them in the middle of a save")
    print(f"  acknowledged checkpoints lost: {found['lost']}; damaged: {found['damaged']}")
    print(f"  temp files after the next start: {found['temporaries_left']}")
    print(f"  each of {found['steps']} steps exactly once in metrics.jsonl: {found['steps_once']}")
    print(f"  final weights byte-identical to a run never killed: {found['same_bytes']}")
    names = {one["point"].partition("#")[0] for one in points}
    print(f"{len(points)} kills at points of a save ({', '.join(sorted(names))})")
    print(f"  lost: {sum(one['lost'] for one in points)}", end="; ")
    print(f"damaged: {sum(one['damaged'] for one in points)}", end="; ")
    print(f"byte-identical in the end: {sum(one['same_bytes'] for one in points)}")


if __name__ == "__main__":
    main()
