"""The evidence of a comparison on disk, and the report made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfbyte.api.opening import find_run, run_config
from halfbyte.config import Config
from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.compare import Comparison
from halfbyte.evaluate.gate import Finding, parse_requirement
from halfbyte.evaluate.records import Evaluation
from halfbyte.evaluate.report.view import ReportInput, losses
from halfbyte.evaluate.report.write import write_report
from halfbyte.run import RunFolder, read_metrics, write_atomic


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A comparison with all it rests on; `folder` is where it was written, `decoding` how the
    answers were made."""

    comparison: Comparison
    base: Evaluation
    tuned: Evaluation
    retention: tuple[Evaluation, Evaluation] | None
    findings: tuple[Finding, ...]
    folder: Path
    decoding: Mapping[str, Any] = field(default_factory=dict)


def report_run(run: str | Path, runs: str | Path = "runs", data: str | None = None) -> list[Path]:
    """Write the report of a run's last comparison; returns its files, the page first.

    Raises:
        MissingError: the run was not compared yet.
    """
    found = find_run(run, runs)
    done = _kept(found, folder(found, data))
    train, held_out = losses(read_metrics(found.metrics))
    receipt = json.loads(found.receipt.read_text(encoding="utf-8"))
    config = run_config(found)
    given = ReportInput(
        name=found.name,
        comparison=done.comparison,
        base=done.base,
        tuned=done.tuned,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        retention=done.retention,
        train_loss=train,
        held_out_loss=held_out,
        data=_data_card(found, config),
        settings=config.model_dump(mode="json"),
        receipt={key: value for key, value in receipt.items() if key != "config"},
        decoding=done.decoding,
        findings=done.findings,
    )
    return write_report(found.report if data is None else found.report / Path(data).stem, given)


def folder(run: RunFolder, data: str | None) -> Path:
    """Where the evidence lies: one folder for the run's own rows, one for each other file."""
    return run.eval if data is None else run.eval / Path(data).stem


def keep(done: Compared) -> None:
    """All that `report` needs, as JSON."""
    trees = {"base": done.base.to_json(), "tuned": done.tuned.to_json()}
    if done.retention is not None:
        trees["retention_base"] = done.retention[0].to_json()
        trees["retention_tuned"] = done.retention[1].to_json()
    for name, tree in trees.items():
        write(done.folder / f"{name}.json", tree)
    tree = done.comparison.to_json()
    tree |= {"findings": [_finding(one) for one in done.findings], "decoding": dict(done.decoding)}
    # last: a comparison that is there has all it rests on beside it
    write(done.folder / "comparison.json", tree)


def _finding(one: Finding) -> dict[str, Any]:
    return {"text": one.requirement.text, "holds": one.holds, "evidence": one.evidence}


def write(path: Path, tree: Any) -> None:
    """A JSON file, whole or not at all."""
    write_atomic(path, json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")


def _kept(run: RunFolder, place: Path) -> Compared:
    try:
        tree = json.loads((place / "comparison.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"{run.path}: this run was not compared with its base yet",
            f"halfbyte compare {run.path}",
        ) from None
    except ValueError as error:
        raise InputError(
            f"{place}/comparison.json: damaged: {error}", f"halfbyte compare {run.path}"
        ) from None
    findings = tuple(
        Finding(parse_requirement(one["text"]), one["holds"], one["evidence"])
        for one in tree.pop("findings", ())
    )
    decoding = tree.pop("decoding", {})
    read = dict(_evaluations(place))
    retained = None
    if "retention_base" in read:
        retained = read["retention_base"], read["retention_tuned"]
    comparison = Comparison.from_json(tree)
    return Compared(comparison, read["base"], read["tuned"], retained, findings, place, decoding)


def _evaluations(place: Path) -> Iterator[tuple[str, Evaluation]]:
    for name in ("base", "tuned", "retention_base", "retention_tuned"):
        path = place / f"{name}.json"
        if path.is_file():
            yield name, Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))


def _data_card(run: RunFolder, config: Config) -> dict[str, Any]:
    card: dict[str, Any] = {"source": config.data.train}
    if run.data_report.is_file():
        card |= json.loads(run.data_report.read_text(encoding="utf-8"))
    return card
