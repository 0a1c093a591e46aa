"""Evaluating: who is asked, on which rows, and where the evidence is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from halfbyte.api.generating import sampling, with_template
from halfbyte.api.opening import Opened, find_run, open_base, open_run, run_config
from halfbyte.config import Config
from halfbyte.data import Encoded, Example
from halfbyte.data.fit import fit
from halfbyte.data.prepare import prepare_rows
from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.compare import Comparison, compare
from halfbyte.evaluate.gate import Finding, check, enforce, parse_requirement
from halfbyte.evaluate.judge import Judge, judge
from halfbyte.evaluate.records import Evaluation
from halfbyte.evaluate.report.view import ReportInput, losses
from halfbyte.evaluate.report.write import write_report
from halfbyte.evaluate.retention import MAX_NEW_TOKENS, retention_examples, retention_scores
from halfbyte.evaluate.rows import rows_from
from halfbyte.evaluate.runner import Plan, Subject, evaluate_model
from halfbyte.evaluate.scores import REGISTRY, Score, load_own
from halfbyte.infer import Engine
from halfbyte.model.bases import cache_dir
from halfbyte.run import RunFolder, read_metrics, write_atomic

Progress = Callable[[str, int, int], None]
JUDGE_KEY: Final = "HALFBYTE_JUDGE_KEY"  # a key does not belong in a recipe


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Asked:
    """What an evaluation is about; what is None comes from the run's own settings.

    `data`: a file with held-out rows (None: the run's own held-out rows). `rows`: how many are
    answered. `step`: a checkpoint of the run instead of its result. `progress(what, done, total)`.
    """

    data: str | None = None
    rows: int | None = None
    max_new_tokens: int | None = None
    retention: bool | None = None
    step: int | None = None
    progress: Progress = field(default=_silent, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A comparison with all it rests on; `folder` is where it was written."""

    comparison: Comparison
    base: Evaluation
    tuned: Evaluation
    retention: tuple[Evaluation, Evaluation] | None
    findings: tuple[Finding, ...]
    folder: Path


def evaluate_run(
    run: str | Path, asked: Asked | None = None, runs: str | Path = "runs", *, base: bool = False
) -> Evaluation:
    """Score one run (or, with `base`, its base) on held-out rows.

    Raises:
        InputError, DataError, MissingError: run or rows cannot be used.
    """
    asked = asked or Asked()
    opened = open_run(run, runs, asked.step)
    subject = _base_of(opened) if base else _subject(opened)
    examples, encoded = _rows(opened, asked)
    plan = _plan(opened, asked)
    found = evaluate_model(subject, rows_from(examples), encoded, plan, asked.progress)
    _write(_folder(opened, asked) / f"{'base' if base else 'tuned'}.json", found.to_json())
    return found


def compare_run(
    run: str | Path,
    asked: Asked | None = None,
    runs: str | Path = "runs",
    *,
    against: str | None = None,
    require: Sequence[str] = (),
) -> Compared:
    """Base and tuned on the same rows: the same weights, the adapter off and on.

    `against`: another run, or a base in another form (`NAME@nf4`), in place of the run's own base.
    `require`: conditions like `exact_match > base`; what they came to is in `findings`, and
    `enforce` raises for those that do not hold.

    Raises:
        InputError, DataError, MissingError: runs, rows or conditions cannot be used.
    """
    asked = asked or Asked()
    wanted = [parse_requirement(text) for text in require]
    opened = open_run(run, runs, asked.step)
    tuned = _subject(opened)
    base = _base_of(opened) if against is None else _other(against, runs)
    examples, encoded = _rows(opened, asked)
    plan, rows = _plan(opened, asked), rows_from(examples)
    before, after = (
        evaluate_model(one, rows, encoded, plan, _named(asked.progress, one.name))
        for one in (base, tuned)
    )
    judging = opened.config.eval
    if judging.judge and judging.judge_model:
        one = Judge(judging.judge, judging.judge_model, os.environ.get(JUDGE_KEY))
        before, after = judge(one, before, after, asked.progress)
    retained = _retention(opened, (base, tuned), examples, asked)
    comparison = compare(before, after, retained)
    findings = tuple(check(wanted, before, after, retained)) if wanted else ()
    done = Compared(comparison, before, after, retained, findings, _folder(opened, asked))
    _keep(done)
    return done


def report_run(run: str | Path, runs: str | Path = "runs", data: str | None = None) -> list[Path]:
    """Write the report of a run's last comparison; returns its files, the page first.

    Raises:
        MissingError: the run was not compared yet.
    """
    folder = find_run(run, runs)
    done = _kept(folder, _evidence(folder, data))
    train, held_out = losses(read_metrics(folder.metrics))
    receipt = json.loads(folder.receipt.read_text(encoding="utf-8"))
    config = run_config(folder)
    given = ReportInput(
        name=folder.name,
        comparison=done.comparison,
        base=done.base,
        tuned=done.tuned,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        retention=done.retention,
        train_loss=train,
        held_out_loss=held_out,
        data=_data_card(folder, config),
        settings=config.model_dump(mode="json"),
        receipt={key: value for key, value in receipt.items() if key != "config"},
        decoding={"temperature": 0, "max_new_tokens": config.eval.max_new_tokens},
        findings=done.findings,
    )
    return write_report(folder.report if data is None else folder.report / Path(data).stem, given)


def require(done: Compared) -> None:
    """Pass if every condition of a comparison holds.

    Raises:
        GateError: with the evidence for each that does not.
    """
    enforce(done.findings)


def subjects(opened: Opened) -> tuple[Subject, Subject]:
    """A run's base and its tuned model, ready to be asked."""
    return _base_of(opened), _subject(opened)


def _subject(opened: Opened) -> Subject:
    engine = Engine(opened.model, opened.tokenizer)
    return Subject(opened.name, opened.model, engine, opened.adapter)


def _base_of(opened: Opened) -> Subject:
    """The base of a run: the same weights with the adapter off, or, for full training, loaded."""
    if opened.adapter is None:
        return _subject(open_base(opened.base.name, _form_words(opened.config)))
    engine = Engine(opened.model, opened.tokenizer)
    return Subject(opened.base.name, opened.model, engine, None)


def _other(name: str, runs: str | Path) -> Subject:
    """A run, or a base as `NAME` or `NAME@nf4|fp4|int8`."""
    try:
        return _subject(open_run(name, runs))
    except MissingError:
        base, _, form = name.partition("@")
        words = ("method=qlora", f"model.quantization={form}") if form else ()
        opened = open_base(base, words)
        return Subject(name, opened.model, Engine(opened.model, opened.tokenizer), None)


def _form_words(config: Config) -> tuple[str, ...]:
    return (f"model.compute={config.model.compute}", f"method={config.method}")


def _rows(opened: Opened, asked: Asked) -> tuple[list[Example], list[Encoded]]:
    """The held-out rows: read, checked and encoded exactly as in training."""
    assert opened.run is not None
    given = opened.config.data
    path = asked.data or str(opened.run.held_out)
    changes: dict[str, Any] = {"limit": None}
    if asked.data is None:  # the run's own file is in our own format
        changes |= {"format": "auto", "columns": {}}
    found = prepare_rows(path, given.model_copy(update=changes), opened.tokenizer, cache_dir()).rows
    indices = range(len(found))
    return [found.example(i) for i in indices], [found[i] for i in indices]


def _plan(opened: Opened, asked: Asked) -> Plan:
    settings = opened.config.eval
    limit = asked.max_new_tokens or settings.max_new_tokens
    scores: dict[str, Score] = dict(REGISTRY)
    for name in settings.scores:
        own = load_own(name)
        scores[own.info.name] = own
    wanted = with_template(opened, sampling(max_new_tokens=limit))
    rows = settings.rows if asked.rows is None else asked.rows
    return Plan(wanted, rows, scores=scores)


def _retention(
    opened: Opened, subjects: tuple[Subject, Subject], seen: Sequence[Example], asked: Asked
) -> tuple[Evaluation, Evaluation] | None:
    wanted = opened.config.eval.retention if asked.retention is None else asked.retention
    if not wanted:
        return None
    examples = retention_examples(message.content for one in seen for message in one.prompt)
    data, template = opened.config.data, opened.template
    pairs = [
        (example, kept)
        for example, row in zip(examples, template.encode_many(examples), strict=True)
        if isinstance(row, Encoded)
        and (kept := fit(row, data.max_length, "drop", template.tokens.bos)) is not None
    ]
    rows = rows_from([example for example, _ in pairs])
    limit = with_template(opened, sampling(max_new_tokens=MAX_NEW_TOKENS))
    plan = Plan(limit, len(pairs), scores=retention_scores())
    base, tuned = (
        evaluate_model(
            one,
            rows,
            [row for _, row in pairs],
            plan,
            _named(asked.progress, f"{one.name}, general"),
        )
        for one in subjects
    )
    return base, tuned


def _named(progress: Progress, name: str) -> Progress:
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _folder(opened: Opened, asked: Asked) -> Path:
    assert opened.run is not None
    return _evidence(opened.run, asked.data)


def _evidence(run: RunFolder, data: str | None) -> Path:
    return run.eval if data is None else run.eval / Path(data).stem


def _keep(done: Compared) -> None:
    """All that `report` needs, as JSON."""
    trees = {"base": done.base.to_json(), "tuned": done.tuned.to_json()}
    if done.retention is not None:
        trees["retention_base"] = done.retention[0].to_json()
        trees["retention_tuned"] = done.retention[1].to_json()
    for name, tree in trees.items():
        _write(done.folder / f"{name}.json", tree)
    # last: a comparison that is there has all it rests on beside it
    findings = [_finding(one) for one in done.findings]
    _write(done.folder / "comparison.json", {**done.comparison.to_json(), "findings": findings})


def _finding(one: Finding) -> dict[str, Any]:
    return {"text": one.requirement.text, "holds": one.holds, "evidence": one.evidence}


def _write(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")


def _kept(run: RunFolder, folder: Path) -> Compared:
    try:
        tree = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"{run.path}: this run was not compared with its base yet",
            f"halfbyte compare {run.path}",
        ) from None
    except ValueError as error:
        raise InputError(
            f"{folder}/comparison.json: damaged: {error}", f"halfbyte compare {run.path}"
        ) from None
    findings = tuple(
        Finding(parse_requirement(one["text"]), one["holds"], one["evidence"])
        for one in tree.pop("findings", ())
    )
    read = dict(_evaluations(folder))
    retained = None
    if "retention_base" in read:
        retained = read["retention_base"], read["retention_tuned"]
    comparison = Comparison.from_json(tree)
    return Compared(comparison, read["base"], read["tuned"], retained, findings, folder)


def _evaluations(folder: Path) -> Iterator[tuple[str, Evaluation]]:
    for name in ("base", "tuned", "retention_base", "retention_tuned"):
        path = folder / f"{name}.json"
        if path.is_file():
            yield name, Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))


def _data_card(run: RunFolder, config: Config) -> dict[str, Any]:
    card: dict[str, Any] = {"source": config.data.train}
    if run.data_report.is_file():
        card |= json.loads(run.data_report.read_text(encoding="utf-8"))
    return card
