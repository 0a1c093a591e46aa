"""Kills trainings and looks at what is left. Run as a program: it forks, so it loads torch once.

    python tests/fault_driver.py FOLDER --kills 20 --points some --processes

prints one JSON object: the facts that the tests (and bench/kill_saves.py) judge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from halfbyte.run import RunFolder, failpoints, read_metrics
from halfbyte.train import Event, Saved, Stepped, Stop, Update, load_weights, newest_verified
from toy import toy_run, toy_state, toy_update, train, weight_bytes

EVERY_STEP = {"eval_every": 0, "save_every": 1, "keep_best": False}


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child and return its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it was, the child must end here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def final_weights(run: RunFolder) -> bytes:
    """The weights of the newest checkpoint."""
    found = newest_verified(run)
    assert found.path is not None
    state = toy_state()
    load_weights(state.bare, found.path)
    return weight_bytes(state)


def train_once(run: RunFolder, update: Update, acknowledge: int | None = None) -> None:
    """One life of a training; each checkpoint is acknowledged on a pipe once it is reported."""

    def on_event(event: Event, stop: Stop) -> None:
        if acknowledge is not None and isinstance(event, Saved):
            os.write(acknowledge, f"{event.step}\n".encode())

    train(run, update=update, on_event=on_event)


def life(
    run: RunFolder, update: Update, saves: int | None = None, share: float = 0.0, points: str = ""
) -> dict[str, Any]:
    """One life of a training. It ends by itself, at a failpoint, or by SIGKILL: after `saves`
    acknowledged saves and a `share` of the time that one more takes (whatever the machine's load).
    """
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        failpoints.arm(points)
        train_once(run, update, writing)

    pid = forked(work)
    os.close(writing)
    steps: list[int] = []
    with os.fdopen(reading) as pipe:
        began = time.monotonic()
        while saves is not None and len(steps) < saves and (line := pipe.readline()):
            steps.append(int(line))
        if saves is not None:
            time.sleep(share * (time.monotonic() - began) / max(1, saves))
            os.kill(pid, signal.SIGKILL)
        steps += [int(line) for line in pipe.read().splitlines()]
    _, status = os.waitpid(pid, 0)
    found = newest_verified(run)
    return {
        "killed": os.WIFSIGNALED(status),
        "failed": os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0,
        "acknowledged": steps[-1] if steps else 0,
        "found": found.step or 0,
        "damaged": len(found.damaged),
        "temporaries": len(list(run.path.rglob(".tmp-*"))),
    }


def steps_seen(run: RunFolder) -> list[int]:
    """The steps in metrics.jsonl, in order."""
    return [one["step"] for one in read_metrics(run.metrics) if one["event"] == Stepped.kind]


def random_kills(folder: Path, kills: int) -> dict[str, Any]:
    """Kill at random moments, again and again; then finish, and compare with a run never killed."""
    steps = kills * 12  # lives take one to three; more where the one who kills has to wait
    update = toy_update(steps, **EVERY_STEP)
    run = toy_run(folder, "killed")
    chance = random.Random(5)
    lives = [life(run, update, chance.choice((1, 1, 2)), chance.random()) for _ in range(kills)]
    last = life(run, update)
    whole = toy_run(folder, "whole")
    train(whole, update=toy_update(steps, **(EVERY_STEP | {"save_every": 0})))
    return {
        "kills": sum(one["killed"] for one in lives),
        "failed": sum(one["failed"] for one in [*lives, last]),
        "lost": sum(one["found"] < one["acknowledged"] for one in lives),
        "damaged": sum(one["damaged"] for one in lives),
        "mid_save": sum(one["temporaries"] > 0 for one in lives),
        "temporaries_left": last["temporaries"],
        "steps_once": steps_seen(run) == list(range(1, steps + 1)),
        "steps": steps,
        "same_bytes": final_weights(run) == final_weights(whole),
    }


def point_kills(folder: Path, everywhere: bool) -> list[dict[str, Any]]:
    """Kill at the points that a save visits, one life each; the third save is the victim.

    Of points visited often (each write, each sync), only every tenth visit unless `everywhere`.
    """
    update = toy_update(5, **EVERY_STEP)
    whole = toy_run(folder, "whole")
    visits: list[dict[str, int]] = []
    failpoints.arm("none=kill")  # armed, so that visits are counted

    def on_event(event: Event, stop: Stop) -> None:
        if isinstance(event, Saved):
            visits.append(dict(failpoints.visits()))

    train(whole, update=update, on_event=on_event)
    failpoints.arm("")
    before, after = visits[1], visits[2]
    expected = final_weights(whole)
    facts = []
    for name in sorted(after):
        for visit in range(before.get(name, 0) + 1, after[name] + 1, 1 if everywhere else 10):
            run = toy_run(folder, f"{name}-{visit}")
            killed = life(run, update, points=f"{name}#{visit}=kill")
            last = life(run, update)
            facts.append(
                {
                    "point": f"{name}#{visit}",
                    "killed": killed["killed"],
                    "failed": last["failed"],
                    "lost": killed["found"] < killed["acknowledged"],
                    "found": killed["found"],
                    "damaged": killed["damaged"],
                    "temporaries_left": last["temporaries"],
                    "steps_once": steps_seen(run) == [1, 2, 3, 4, 5],
                    "same_bytes": final_weights(run) == expected,
                }
            )
    return facts


def two_processes(folder: Path) -> dict[str, Any]:
    """The same training in one process and in two (gloo): losses and weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def losses(run: RunFolder) -> list[float]:
        return [one["loss"] for one in read_metrics(run.metrics) if one["event"] == "stepped"]

    def process(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        # each process has a folder; only the first one's Saver writes checkpoints
        train(toy_run(folder, f"process-{rank}"), toy_state(dropout=0.0, micro=1))

    children = [forked(lambda rank=rank: process(rank)) for rank in (0, 1)]
    ends = [os.waitpid(pid, 0)[1] for pid in children]
    alone = toy_run(folder, "alone")
    state = train(alone, toy_state(dropout=0.0, micro=1))
    pair = RunFolder(folder / "process-0")
    both = toy_state(dropout=0.0)
    found = newest_verified(pair)
    if found.path is not None:
        load_weights(both.bare, found.path)
    return {
        "ends": ends,
        "losses": [losses(alone), losses(pair), losses(RunFolder(folder / "process-1"))],
        "checkpoints_of_second": len(RunFolder(folder / "process-1").checkpoint_steps()),
        "largest_weight_difference": max(
            float((a - b).abs().max().detach())
            for a, b in zip(state.trainable().values(), both.trainable().values(), strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--points", choices=["some", "all"])
    parser.add_argument("--processes", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no worker threads
    facts: dict[str, Any] = {}
    if arguments.processes:  # first: it needs a process that has no Accelerator yet
        facts["processes"] = two_processes(arguments.folder / "processes")
    if arguments.kills:
        facts["kills"] = random_kills(arguments.folder / "random", arguments.kills)
    if arguments.points:
        facts["points"] = point_kills(arguments.folder / "points", arguments.points == "all")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
