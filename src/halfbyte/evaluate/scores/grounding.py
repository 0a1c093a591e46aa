"""Hallucination control: does the answer state what nobody told it?"""

from __future__ import annotations

from functools import lru_cache

from halfbyte.evaluate.lexicon import ENGLISH, HINGLISH
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.spans import Source, Span, quoted, stated
from halfbyte.evaluate.text import words

_GROUP = "grounding"


@lru_cache(maxsize=4096)
def _source(text: str) -> Source:
    return Source.of(text)


@lru_cache(maxsize=64)
def _claims(answer: str, told: str) -> tuple[tuple[Span, bool], ...]:
    """What the answer states, each with whether `told` supports it."""
    source = _source(told)
    return tuple((span, source.has(span)) for span in (*stated(answer, told), *quoted(answer)))


def _told(row: Row) -> str:
    return "\n".join([row.prompt, row.context or "", *row.references])


def unsupported_spans(answer: Answer, row: Row) -> list[Span]:
    """The numbers, dates, names and quoted spans of the answer that stand in neither prompt nor
    context nor any reference."""
    return [span for span, supported in _claims(answer.text, _told(row)) if not supported]


@score(Kind(_GROUP, better="lower"))
def unsupported(answer: Answer, row: Row) -> float:
    """Share of the answer's numbers, dates, names and quoted spans that stand in neither prompt,
    context nor reference; 0 (also for an answer that states none) to 1, lower is better. A right
    intermediate result counts as unsupported: compare models, do not read it alone. Entity-level
    precision, Nan et al. 2021, arXiv:2102.09130."""
    claims = _claims(answer.text, _told(row))
    return len(unsupported_spans(answer, row)) / len(claims) if claims else 0.0


@score(Kind(_GROUP, better="lower", unit="plain"))
def unsupported_count(answer: Answer, row: Row) -> float:
    """How many numbers, dates, names and quoted spans of the answer stand in neither prompt,
    context nor reference; from 0, lower is better."""
    return float(len(unsupported_spans(answer, row)))


@score(Kind(_GROUP), applies=lambda row: bool((row.context or "").strip()))
def context_support(answer: Answer, row: Row) -> float:
    """Share of the answer's content words (function words left out) that occur in the context; 0 to
    1, 0 for an empty answer. Only rows with a context. K-Precision, Adlakha et al. 2023,
    arXiv:2307.16877."""
    given = frozenset(_source(row.context or "").words)
    content = [word for word in words(answer.text) if word not in ENGLISH | HINGLISH]
    return sum(word in given for word in content) / len(content) if content else 0.0
