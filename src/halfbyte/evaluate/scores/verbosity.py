"""Verbosity and over-generation: as long as needed, stopped by itself, nothing after the answer."""

from __future__ import annotations

from math import log

from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, always, score
from halfbyte.evaluate.text import after_first_final, final_answer, words

_GROUP = "verbosity"


def _has_words(row: Row) -> bool:
    return bool(words(row.reference))


def _length_ratio(answer: Answer, row: Row) -> float:
    return len(words(answer.text)) / len(words(row.reference))


@score(Kind(_GROUP, better="neither", unit="ratio"), applies=_has_words)
def length_ratio(answer: Answer, row: Row) -> float:
    """Words in the answer over words in the reference; 1 is as long, from 0."""
    return _length_ratio(answer, row)


@score(Kind(_GROUP, better="lower", unit="plain"), applies=_has_words)
def length_error(answer: Answer, row: Row) -> float:
    """How far the length is from the reference's: |ln((words + 1) / (reference words + 1))|, so
    that twice and half as long are equally far (0.69); from 0, lower is better."""
    return abs(log((len(words(answer.text)) + 1) / (len(words(row.reference)) + 1)))


@score(Kind(_GROUP, binary=True), applies=always)
def stopped(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """1 if the answer ended by itself, 0 if the limit of new tokens cut it off."""
    return float(answer.stopped)


def _one_line(row: Row) -> bool:
    return bool(row.reference.strip()) and "\n" not in row.reference.strip()


@score(
    Kind(_GROUP, better="lower"),
    applies=lambda row: final_answer(row.reference) is not None or _one_line(row),
)
def overrun(answer: Answer, row: Row) -> float:
    """Share of the answer's words after the point where it was complete: after its first final
    answer line where the reference has one, after its first line where the reference is a single
    line; 0 to 1, lower is better. An answer that never completes has 0."""
    total = len(words(answer.text))
    if not total:
        return 0.0
    if final_answer(row.reference) is not None:
        rest = after_first_final(answer.text) or ""
    else:
        rest = answer.text.strip().partition("\n")[2]
    return len(words(rest)) / total


@score(Kind(_GROUP, better="lower"))
def repetition(answer: Answer, row: Row) -> float:  # noqa: ARG001 - every score takes the row
    """Share of repeated word 4-grams: 1 - distinct / all, 0 for fewer than four words; 0 to 1,
    lower is better. seq-rep-4, Welleck et al. 2020, arXiv:1908.04319."""
    text = words(answer.text)
    grams = [tuple(text[start : start + 4]) for start in range(len(text) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
