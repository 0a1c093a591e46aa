"""Scores of short answers: is it the expected one?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import isclose

from halfbyte.evaluate.quantities import single_quantity
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.text import contains_words, final_answer, squad_normal, words

_GROUP = "short answers"


def _has_reference(row: Row) -> bool:
    return bool(row.reference.strip())


def _ends_with_final(row: Row) -> bool:
    return bool(final_answer(row.reference))


def _best(answer: str, row: Row, compare: Callable[[str, str], float]) -> float:
    return max(compare(answer, reference) for reference in row.references)


@score(Kind(_GROUP, binary=True), applies=_has_reference)
def exact_match_raw(answer: Answer, row: Row) -> float:
    """1 if the answer is an accepted reference character by character (but for white space around
    it), else 0. Exact match as in most leaderboards' strict form."""
    return _best(answer.text, row, lambda given, wanted: float(given.strip() == wanted.strip()))


@score(Kind(_GROUP, binary=True), applies=_has_reference)
def exact_match(answer: Answer, row: Row) -> float:
    """1 if answer and an accepted reference have the same SQuAD normal form (lower case, no
    punctuation, no articles), else 0. Rajpurkar et al. 2016, arXiv:1606.05250."""
    return _best(
        answer.text, row, lambda given, wanted: float(squad_normal(given) == squad_normal(wanted))
    )


@score(Kind(_GROUP, binary=True), applies=_ends_with_final)
def final_answer_match(answer: Answer, row: Row) -> float:
    """1 if the text after the answer's last `Answer:` or `####` equals the reference's, else 0;
    numbers are equal by value (1,000 = 1000.0; currency and percent signs and a unit's long name
    do not matter, another unit does). No such line, no credit. Only rows whose reference has one.
    GSM8K's rule, Cobbe et al. 2021, arXiv:2110.14168."""
    given = final_answer(answer.text)
    if not given:
        return 0.0
    wanted = [final_answer(reference) for reference in row.references]
    return float(any(same_answer(given, text) for text in wanted if text))


def same_answer(given: str, wanted: str) -> bool:
    """Equal in normal form, or the same single quantity."""
    if squad_normal(given) == squad_normal(wanted) and squad_normal(wanted):
        return not _differ_in_value(given, wanted)
    left, right = single_quantity(given), single_quantity(wanted)
    if left is None or right is None:
        return given.strip() == wanted.strip()
    money = {"dollar", "euro", "rupee"}
    units = {left.unit, right.unit}
    same_unit = len(units) == 1 or (units - {""} <= money and "" in units)
    return same_unit and isclose(left.value, right.value, rel_tol=1e-12, abs_tol=1e-12)


def _differ_in_value(given: str, wanted: str) -> bool:
    """Normal forms drop points and signs: 1.5 and 15, -3 and 3 would be the same."""
    left, right = single_quantity(given), single_quantity(wanted)
    if left is None or right is None:
        return False
    return not isclose(left.value, right.value, rel_tol=1e-12, abs_tol=1e-12)


@score(Kind(_GROUP), applies=_has_reference)
def f1(answer: Answer, row: Row) -> float:
    """Harmonic mean of precision and recall over the words of both SQuAD normal forms, the best
    over the accepted references; 0 to 1. Rajpurkar et al. 2016, arXiv:1606.05250."""
    return _best(answer.text, row, token_f1)


def token_f1(given: str, wanted: str) -> float:
    """SQuAD's token F1; two empty texts agree, one empty text does not."""
    left, right = squad_normal(given).split(), squad_normal(wanted).split()
    common = sum((Counter(left) & Counter(right)).values())
    if not left or not right:
        return float(left == right)
    return 2 * common / (len(left) + len(right))


@score(Kind(_GROUP, binary=True), applies=_has_reference)
def contains(answer: Answer, row: Row) -> float:
    """1 if an accepted reference's words stand in the answer one after another (in lower case,
    without punctuation), else 0. Kind to long answers: read it beside the length ratio."""
    given = words(answer.text)
    return _best(answer.text, row, lambda _, wanted: float(contains_words(words(wanted), given)))
