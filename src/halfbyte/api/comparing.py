"""Comparing runs with their base on the same rows: the same weights, the adapter off and on."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from halfbyte.api import evidence
from halfbyte.api.evaluating import Asked, Progress, Rows, base_of, general, held_out, subject_of
from halfbyte.api.evidence import Compared
from halfbyte.api.opening import Opened, open_any, open_run
from halfbyte.errors import InputError
from halfbyte.evaluate.compare import compare
from halfbyte.evaluate.gate import Requirement, check, enforce, parse_requirement
from halfbyte.evaluate.judge import Judge, judge
from halfbyte.evaluate.records import Evaluation
from halfbyte.evaluate.runner import Subject
from halfbyte.run import RunFolder

JUDGE_KEY: Final = "HALFBYTE_JUDGE_KEY"  # a key does not belong in a recipe
Found = tuple[Evaluation, Evaluation | None]


def compare_run(
    run: str | Path,
    asked: Asked | None = None,
    runs: str | Path = "runs",
    *,
    against: str | None = None,
    require: Sequence[str] = (),
) -> Compared:
    """`compare_runs` for one run."""
    return next(compare_runs([run], asked, runs, against=against, require=require))


def compare_runs(
    names: Sequence[str | Path],
    asked: Asked | None = None,
    runs: str | Path = "runs",
    *,
    against: str | None = None,
    require: Sequence[str] = (),
) -> Iterator[Compared]:
    """Each run against its base, all on the held-out rows of the first (or `asked.data`).

    A base in one form is asked once, however many runs stand on it. `against`: another run, a
    checkpoint (`RUN@STEP`), or a base in another form (`NAME@nf4`), in place of the runs' own base.
    `require`: conditions like `exact_match > base`; what they came to is in `findings`, and
    `api.require` raises for those that do not hold.

    Raises:
        InputError, DataError, MissingError: runs, rows or conditions cannot be used; one run was
            trained on rows that another held out.
    """
    asked = asked or Asked()
    wanted = [parse_requirement(text) for text in require]
    known: dict[Hashable, Found] = {}
    first: RunFolder | None = None
    for name in names:
        opened = open_run(name, runs, asked.step)
        assert opened.run is not None
        first = first or opened.run
        if asked.data is None:
            _require_held_out(first, opened.run)
        rows = held_out(opened, asked, first.held_out)
        pair = rows, general(opened, rows.examples, asked)
        tuned = subject_of(opened)
        key = _key(opened, against)
        if key not in known:
            other = None if against is None else subject_of(open_any(against, runs))
            known[key] = _ask(other or base_of(opened, tuned), pair, asked.progress)
        after = _ask(tuned, pair, asked.progress)
        done = _compared(opened, known[key], after, asked, wanted)
        # greedy, with stops that are the template's own
        tokens = rows.plan.sampling.max_new_tokens
        done = replace(done, decoding={"temperature": 0, "max_new_tokens": tokens})
        evidence.keep(done)
        yield done


def require(done: Compared) -> None:
    """Pass if every condition of a comparison holds.

    Raises:
        GateError: with the evidence for each that does not.
    """
    enforce(done.findings)


def _ask(subject: Subject, rows: tuple[Rows, Rows | None], progress: Progress) -> Found:
    special, common = rows
    found = special.ask(subject, _named(progress, subject.name))
    if common is None:
        return found, None
    return found, common.ask(subject, _named(progress, f"{subject.name}, general"))


def _compared(
    opened: Opened, before: Found, after: Found, asked: Asked, wanted: Sequence[Requirement]
) -> Compared:
    assert opened.run is not None
    base, tuned = before[0], after[0]
    judging = opened.config.eval
    if judging.judge and judging.judge_model:
        one = Judge(judging.judge, judging.judge_model, os.environ.get(JUDGE_KEY))
        base, tuned = judge(one, base, tuned, asked.progress)
    retained = None
    if before[1] is not None and after[1] is not None:
        retained = before[1], after[1]
    comparison = compare(base, tuned, retained)
    findings = tuple(check(wanted, base, tuned, retained)) if wanted else ()
    place = evidence.folder(opened.run, asked.data)
    return Compared(comparison, base, tuned, retained, findings, place)


def _key(opened: Opened, against: str | None) -> Hashable:
    """What a base's answers depend on, beside the rows, which are the same for all."""
    if against is not None:
        whose: Hashable = against
    else:
        whose = opened.base.name, *sorted(opened.base.hashes().items())
    data, judged = opened.config.data, opened.config.eval
    how = opened.form, opened.template.hash, data.max_length, data.too_long, data.system
    return whose, how, judged.max_new_tokens, judged.rows, judged.scores, judged.retention


def _require_held_out(first: RunFolder, run: RunFolder) -> None:
    """Refuse to ask a run about rows that only another one held out: it may know them."""
    if first.path == run.path:
        return
    own = set(run.held_out.read_bytes().splitlines())
    strange = [one for one in first.held_out.read_bytes().splitlines() if one not in own]
    if strange:
        raise InputError(
            f"{run.name} did not hold out {len(strange)} of the rows that {first.name} held out, "
            "so it may have been trained on them",
            "Compare both on rows that neither has seen: `--data FILE`.",
        )


def _named(progress: Progress, name: str) -> Progress:
    return lambda what, done, total: progress(f"{name}: {what}", done, total)
