"""Key facts: are the numbers, dates, names and units that matter in the answer?"""

from __future__ import annotations

from functools import lru_cache

from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.spans import Source, Span, read_fact, stated

_GROUP = "key facts"


def facts_of(row: Row) -> tuple[Span, ...]:
    """The row's own facts; where it lists none, what its reference states. A row with a closed
    set of labels has none: its label is scored as such."""
    if row.facts:
        return tuple(read_fact(fact) for fact in row.facts if fact.strip())
    return () if row.labels else _of_reference(row.reference, f"{row.prompt}\n{row.context or ''}")


@lru_cache(maxsize=4096)
def _of_reference(reference: str, also: str) -> tuple[Span, ...]:
    return tuple(stated(reference, also))


@score(Kind(_GROUP), applies=lambda row: bool(facts_of(row)))
def key_facts(answer: Answer, row: Row) -> float:
    """Share of the row's key facts found in the answer, 0 to 1. Facts are those the row lists, else
    the numbers with units, dates and names in its reference. Numbers agree by value (1,234 =
    1234.0, 12k, twelve), units by their common name, dates in any order of parts, names and words
    in lower case one after another. Fact recall as in FactScore's spirit (Min et al. 2023,
    arXiv:2305.14251), by rule instead of by model."""
    facts = facts_of(row)
    source = Source.of(answer.text)
    return sum(source.has(fact) for fact in facts) / len(facts)
