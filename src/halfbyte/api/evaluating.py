"""Evaluating: who is asked, and on which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.api import evidence
from halfbyte.api.generating import sampling, with_template
from halfbyte.api.opening import Opened, open_base, open_run
from halfbyte.config import Config
from halfbyte.data import Encoded, Example
from halfbyte.data.fit import fit
from halfbyte.data.prepare import prepare_rows
from halfbyte.evaluate.records import Evaluation
from halfbyte.evaluate.retention import MAX_NEW_TOKENS, retention_examples, retention_scores
from halfbyte.evaluate.rows import rows_from
from halfbyte.evaluate.runner import Plan, Subject, evaluate_model
from halfbyte.evaluate.scores import REGISTRY, Score, load_own
from halfbyte.infer import Engine
from halfbyte.model.bases import cache_dir

Progress = Callable[[str, int, int], None]


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
class Rows:
    """Rows as they are asked: examples, their ids, and what is asked about them."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    plan: Plan

    def ask(self, subject: Subject, progress: Progress) -> Evaluation:
        """What a model makes of them."""
        return evaluate_model(subject, rows_from(self.examples), self.encoded, self.plan, progress)


def evaluate_run(
    run: str | Path, asked: Asked | None = None, runs: str | Path = "runs", *, base: bool = False
) -> Evaluation:
    """Score one run (or, with `base`, its base) on held-out rows.

    Raises:
        InputError, DataError, MissingError: run or rows cannot be used.
    """
    asked = asked or Asked()
    opened = open_run(run, runs, asked.step)
    assert opened.run is not None
    subject = subjects(opened)[0 if base else 1]
    found = held_out(opened, asked).ask(subject, asked.progress)
    place = evidence.folder(opened.run, asked.data)
    evidence.write(place / f"{'base' if base else 'tuned'}.json", found.to_json())
    return found


def subjects(opened: Opened) -> tuple[Subject, Subject]:
    """A run's base and its tuned model, ready to be asked."""
    tuned = subject_of(opened)
    return base_of(opened, tuned), tuned


def base_of(opened: Opened, tuned: Subject) -> Subject:
    """The base of a run: the same weights with the adapter off; for full training, it is loaded."""
    if opened.adapter is not None:
        return Subject(opened.base.name, opened.model, tuned.engine, None)
    return subject_of(open_base(opened.base.name, _form_words(opened.config)))


def subject_of(opened: Opened) -> Subject:
    """An opened model with the adapter it was opened with, ready to be asked."""
    engine = Engine(opened.model, opened.tokenizer)
    return Subject(opened.name, opened.model, engine, opened.adapter)


def _form_words(config: Config) -> tuple[str, ...]:
    return (f"model.compute={config.model.compute}", f"method={config.method}")


def held_out(opened: Opened, asked: Asked, own: Path | None = None) -> Rows:
    """The held-out rows: read, checked and encoded exactly as in training. `own` is a run's file
    of them, in our own format (None: that of the opened run)."""
    assert opened.run is not None
    given = opened.config.data
    path = asked.data or str(own or opened.run.held_out)
    changes: dict[str, Any] = {"limit": None}
    if asked.data is None:
        changes |= {"format": "auto", "columns": {}}
    found = prepare_rows(path, given.model_copy(update=changes), opened.tokenizer, cache_dir()).rows
    indices = range(len(found))
    examples, encoded = [found.example(i) for i in indices], [found[i] for i in indices]
    return Rows(examples, encoded, _plan(opened, asked))


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


def general(opened: Opened, seen: Sequence[Example], asked: Asked) -> Rows | None:
    """The general rows of the retention scores, without those `seen`; None where they are off."""
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
    limit = with_template(opened, sampling(max_new_tokens=MAX_NEW_TOKENS))
    plan = Plan(limit, len(pairs), scores=retention_scores())
    return Rows([example for example, _ in pairs], [row for _, row in pairs], plan)
