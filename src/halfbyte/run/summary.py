"""What one line about a run says: read from its own files, never from memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import yaml

from halfbyte.errors import IntegrityError
from halfbyte.run.files import folder_bytes
from halfbyte.run.folder import RunFolder
from halfbyte.run.metrics import Record, read_metrics
from halfbyte.run.receipt import Receipt

Status = Literal["new", "running", "finished", "interrupted", "stopped"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run at a glance.

    `status`: `new` before the first step, `running` while a process holds it, `finished`,
    `interrupted` by a signal (resume goes on), `stopped` by a failure or a kill. `loss`: of the
    last step; `held_out`: the best held-out loss (both in nats a trained token), None where the
    weights that had it are lost. `bytes`: on disk.
    """

    name: str
    path: str
    status: Status
    method: str
    base: str
    created: str
    step: int
    steps: int | None
    loss: float | None
    held_out: float | None
    best_step: int | None
    bytes: int


def summarize(run: RunFolder) -> RunSummary:
    """Read a run's config and metrics."""
    facts = _facts(read_metrics(run.metrics))
    tree = yaml.safe_load(run.config.read_text(encoding="utf-8")) or {}
    model = tree.get("model") or {}
    return RunSummary(
        name=run.name,
        path=str(run.path),
        status="running" if run.user() else facts["status"],
        method=str(tree.get("method", "qlora")),
        base=str(model.get("base", "")),
        created=_created(run),
        step=facts["step"],
        steps=facts["steps"],
        loss=facts["loss"],
        held_out=facts["held_out"],
        best_step=facts["best_step"],
        bytes=folder_bytes(run.path),
    )


def _created(run: RunFolder) -> str:
    try:
        return Receipt.read(run.receipt).created
    except IntegrityError:  # stopped before the training began: the folder's age must do
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(run.config.stat().st_mtime))


def _facts(records: Iterable[Record]) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(("steps", "loss", "held_out", "best_step"))
    facts |= {"status": "new", "step": 0}
    for record in records:
        facts["step"] = record.get("step", facts["step"])
        match record.get("event"):
            case "started":
                facts |= {"steps": record.get("steps"), "status": "stopped"}
            case "stepped":
                facts |= {"loss": record.get("loss"), "status": "stopped"}
            case "skipped":
                facts["loss"] = None  # the step has no loss: an older one would be stale
            case "evaluated" if record.get("best"):
                facts |= {"held_out": record.get("loss"), "best_step": record.get("step")}
            case "dropped":  # the best weights are lost: the result is not theirs
                facts |= {"held_out": None, "best_step": None}
            case "stopped":
                facts["status"] = "interrupted"
            case "finished":
                facts["status"] = "finished"
    return facts


@dataclass(frozen=True, slots=True)
class RunDetails:
    """One run in full, as `halfbyte runs show` tells it; all fields are plain JSON values.

    `evaluations`, `skipped`: those records of metrics.jsonl. `checkpoints`: step, path, bytes,
    best. `contents`: what else the folder holds, name to bytes. `receipt`: None before it exists.
    """

    summary: RunSummary
    evaluations: list[Record]
    skipped: list[Record]
    checkpoints: list[Record]
    contents: dict[str, int]
    receipt: Record | None


def describe(run: RunFolder) -> RunDetails:
    """Read everything about a run that people ask for."""
    summary = summarize(run)
    records = list(read_metrics(run.metrics))
    try:
        receipt = asdict(Receipt.read(run.receipt))
    except IntegrityError:
        receipt = None
    return RunDetails(
        summary=summary,
        evaluations=[one for one in records if one.get("event") == "evaluated"],
        skipped=[one for one in records if one.get("event") == "skipped"],
        checkpoints=[
            {
                "step": step,
                "path": str(path),
                "bytes": folder_bytes(path),
                "best": step == summary.best_step,
            }
            for step, path in run.checkpoint_steps()
        ],
        contents={
            path.name + ("/" if path.is_dir() else ""): folder_bytes(path)
            if path.is_dir()
            else path.stat().st_size
            for path in sorted(run.path.iterdir())
            if path != run.checkpoints
        },
        receipt=receipt,
    )
