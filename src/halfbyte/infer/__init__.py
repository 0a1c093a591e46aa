"""Generation: the only sampler, and the engine that chat, evaluation and serving share."""

from halfbyte.infer.engine import Engine, Limits
from halfbyte.infer.records import (
    NUMBERS,
    PRESETS,
    Completion,
    Constraint,
    Request,
    Sampling,
    TokenLogprob,
    Update,
)

__all__ = [
    "NUMBERS",
    "PRESETS",
    "Completion",
    "Constraint",
    "Engine",
    "Limits",
    "Request",
    "Sampling",
    "TokenLogprob",
    "Update",
]
