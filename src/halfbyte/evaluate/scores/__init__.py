"""Scores: each a function of one answer and its row, all in one registry."""

# importing a module enters its scores into the registry, in the order of the report
from halfbyte.evaluate.scores import (  # noqa: F401, I001 - imported for their entries, in this order
    short,
    labels,
    facts,
    longer,
    mixing,
    follow,
    verbosity,
    grounding,
    teaching,
)
from halfbyte.evaluate.scores.labels import (
    Confusion,
    closed_labels,
    confusion,
    macro_f1_column,
    most_frequent,
)
from halfbyte.evaluate.scores.own import load_own
from halfbyte.evaluate.scores.registry import (
    REGISTRY,
    Score,
    likelihood_columns,
    pool_of,
    pooled,
    score_answers,
)

__all__ = [
    "REGISTRY",
    "Confusion",
    "Score",
    "closed_labels",
    "confusion",
    "likelihood_columns",
    "load_own",
    "macro_f1_column",
    "most_frequent",
    "pool_of",
    "pooled",
    "score_answers",
]
