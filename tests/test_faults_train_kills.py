"""Faults 1 and 2: killed while saving, at random and at every named point; and two processes.

The killing is done by a program that forks (fault_driver.py): torch is loaded once, and a child
has no worker threads. `python bench/kill_saves.py` does the same 300 times.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("fault_driver.py")


MEMORY = Path("/dev/shm")  # a kill leaves there what it leaves on a disk, but nothing waits


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        command = [sys.executable, str(DRIVER), folder, "--kills", "20", "--points", "some"]
        done = subprocess.run(
            [*command, "--processes"], capture_output=True, text=True, check=False, timeout=280
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_kill_at_a_random_moment_loses_nothing_that_was_acknowledged(
    facts: dict[str, Any],
) -> None:
    kills = facts["kills"]
    assert kills["kills"] == 20
    assert kills["mid_save"] > 0, "no kill hit a save: the test shows nothing"
    assert (kills["failed"], kills["lost"], kills["damaged"]) == (0, 0, 0)


def test_after_random_kills_the_run_ends_as_if_never_killed(facts: dict[str, Any]) -> None:
    kills = facts["kills"]
    assert kills["temporaries_left"] == 0
    assert kills["steps_once"]
    assert kills["same_bytes"]


def test_a_kill_at_each_point_of_a_save_leaves_a_whole_checkpoint(facts: dict[str, Any]) -> None:
    points = facts["points"]
    assert {"save.weights.safetensors#3", "save.manifest.json#3", "folder.renamed#3"} <= {
        one["point"] for one in points
    }
    for one in points:
        assert one["killed"], one
        assert not one["lost"], one
        assert not one["damaged"], one
        assert one["found"] >= 2, one


def test_after_a_kill_at_each_point_the_run_ends_as_if_never_killed(facts: dict[str, Any]) -> None:
    for one in facts["points"]:
        assert not one["failed"], one
        assert one["temporaries_left"] == 0, one
        assert one["steps_once"], one
        assert one["same_bytes"], one


def test_two_processes_take_the_steps_of_one(facts: dict[str, Any]) -> None:
    pair = facts["processes"]
    assert pair["ends"] == [0, 0]
    alone, first, second = pair["losses"]
    assert len(alone) == 9
    assert first == second
    assert first == pytest.approx(alone, abs=1e-5)
    assert pair["largest_weight_difference"] < 1e-5
    assert pair["checkpoints_of_second"] == 0
