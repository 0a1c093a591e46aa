"""Scores of longer text: overlap with the reference, through sacrebleu and rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores import pools
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.text import words

_GROUP = "longer text"


class _Words:
    """rouge-score's tokenizer keeps only a-z and 0-9; this one splits words the same way in every
    script."""

    def tokenize(self, text: str) -> list[str]:
        return [part for word in words(text) for part in word.replace("’", "'").split("'") if part]


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # nltk and scipy's statistics: 0.4 s

    return RougeScorer(["rougeL"], tokenizer=_Words())


@lru_cache(maxsize=2)
def _bleu(*, effective_order: bool) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=effective_order)


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _longer(row: Row) -> bool:
    return not row.labels and len(words(row.reference)) >= 4


def _written(row: Row) -> bool:
    return not row.labels and bool(row.reference.strip())


def _statistics(metric: Any, answer: Answer, row: Row) -> Sequence[float]:
    """sacrebleu's own sums for one row: what its corpus score is computed from."""
    # the corpus entry point takes one list per reference position
    references = [[reference] for reference in row.references]
    return [float(x) for x in metric._extract_corpus_statistics([answer.text], references)[0]]  # noqa: SLF001 - sacrebleu shows its sums nowhere else


def _bleu_sums(answer: Answer, row: Row) -> Sequence[float]:
    return _statistics(_bleu(effective_order=False), answer, row)


def _chrf_sums(answer: Answer, row: Row) -> Sequence[float]:
    return _statistics(_chrf(), answer, row)


@score(Kind(_GROUP), applies=_longer)
def rouge_l(answer: Answer, row: Row) -> float:
    """F1 of the longest common subsequence of words, best over the references; 0 to 1. For
    references of four words or more. Lin 2004, rouge-score's computation, words split in every
    script."""
    return float(_rouge().score_multi(list(row.references), answer.text)["rougeL"].fmeasure)


@score(Kind(_GROUP, unit="points", pool="chrf"), applies=_written, statistics=_chrf_sums)
def chrf(answer: Answer, row: Row) -> float:
    """Character n-gram F2 of orders 1 to 6, 0 to 100; over all rows the corpus score of sacrebleu
    (chrF2). Popović 2015, W15-3049. The measure for mixed and richly inflected languages."""
    return float(pools.chrf(np.array(_chrf_sums(answer, row))))


@score(Kind(_GROUP, unit="points", pool="bleu"), applies=_longer, statistics=_bleu_sums)
def bleu(answer: Answer, row: Row) -> float:
    """BLEU of word orders 1 to 4, 0 to 100; over all rows the corpus score of sacrebleu (13a
    tokens, exponential smoothing), per row its sentence score. For references of four words or
    more. Papineni et al. 2002; Post 2018, arXiv:1804.08771."""
    metric = _bleu(effective_order=True)
    return float(metric.sentence_score(answer.text, list(row.references)).score)
