"""lm-eval's tasks on a run, or on its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.api.evaluating import Asked, subjects
from halfbyte.api.opening import open_run
from halfbyte.evaluate.tasks import run_tasks
from halfbyte.run import write_atomic


def evaluate_tasks(
    run: str | Path,
    tasks: Sequence[str],
    asked: Asked | None = None,
    runs: str | Path = "runs",
    *,
    base: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Run lm-eval's tasks (names, or .yaml files) on a run or, with `base`, on its base; returns
    lm-eval's results and the file they were written to. `asked.rows` limits each task's rows.

    Raises:
        InputError, MissingError: as `evaluate.tasks.run_tasks`.
    """
    asked = asked or Asked()
    opened = open_run(run, runs, asked.step)
    assert opened.run is not None
    subject = subjects(opened)[0 if base else 1]
    found = run_tasks(subject, opened.tokenizer, opened.template, tasks, asked.rows, asked.progress)
    path = opened.run.eval / f"tasks-{'base' if base else 'tuned'}.json"
    write_atomic(path, json.dumps(found, indent=1, default=str) + "\n")
    return found, path
