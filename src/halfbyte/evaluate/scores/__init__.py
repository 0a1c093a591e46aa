"""Scores: each a function of one answer and its row, all in one registry."""

from halfbyte.evaluate.scores import short  # noqa: F401 - importing enters the scores
from halfbyte.evaluate.scores.registry import (
    REGISTRY,
    Score,
    likelihood_columns,
    pool_of,
    pooled,
    score_answers,
)

__all__ = ["REGISTRY", "Score", "likelihood_columns", "pool_of", "pooled", "score_answers"]
