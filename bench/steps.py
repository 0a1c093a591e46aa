"""A real training step on rows made for it: what bench_roofline.py and bench_growth.py time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halfbyte.config import load_config
from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Encoded
from halfbyte.model import bases
from halfbyte.model.adapters import attach
from halfbyte.model.load import form_of, load_base
from halfbyte.model.loss import TokenLoss
from halfbyte.train import OptimizerSettings, Source, State, prepare_state
from halfbyte.train.step import apply_gradient, peak_memory, step_gradient

# On a machine that others use, BENCH_BY_CPU=1 and one thread count the processor's seconds: they
# are what the clock would show if nobody else were there.
BY_CPU = os.environ.get("BENCH_BY_CPU") == "1"
clock = time.process_time if BY_CPU else time.perf_counter


@dataclass(frozen=True)
class Ready:
    """A model with its optimizer, and rows to train it on."""

    state: State
    source: Source
    rows: range

    @property
    def model(self) -> Any:
        return self.state.bare.model

    def step(self) -> float:
        """One optimizer update; seconds."""
        began = clock()
        gradient = step_gradient(self.state, self.source, self.rows, 1.0)
        assert not gradient.reason, gradient.reason
        apply_gradient(self.state, 1.0)
        self.state.optimizer.zero_grad()
        return clock() - began

    @property
    def memory(self) -> int:
        """Peak resident bytes so far."""
        return peak_memory(self.state.accelerator.device)


def dense_rows(count: int, length: int, vocabulary: int) -> list[Encoded]:
    """Rows of random ids that share nothing, all of them trained (but each first one)."""
    draws = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        trained = np.ones(length, dtype=np.bool_)
        trained[0] = False
        ids = draws.integers(0, vocabulary, length, dtype=np.int32)
        rows.append(Encoded(ids, trained))
    return rows


def make_ready(words: list[str], count: int, length: int, tokens: int) -> Ready:
    """The base and adapter of the settings `words`, on `count` dense rows of `length` tokens, at
    most `tokens` of them at once.
    """
    config = load_config(None, words).config
    base = bases.resolve(config.model.base)
    model: Any = load_base(base, form_of(config))
    model = attach(model, config.lora, config.train.seed)
    rows = dense_rows(count, length, model.config.vocab_size)
    limits = MicroLimits(count, tokens)
    settings = OptimizerSettings(config.learning_rate)
    state = prepare_state(TokenLoss(model), settings, limits, config.train.seed)
    everything = tuple(range(count))
    source = Source(
        lambda _epoch: [everything],
        lambda some, limits: plan_step([(one, rows[one]) for one in some], limits),
    )
    return Ready(state, source, range(count))


def set_threads(count: int | None) -> int:
    """torch's threads, as asked for; returns how many there are."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()
