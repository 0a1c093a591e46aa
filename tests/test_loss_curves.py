"""A whole training, arranged in each way there is: the same losses, step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from halfbyte.config import LoraSettings
from halfbyte.data.batches import MicroLimits, epoch_order, plan_step, prefix_groups
from halfbyte.data.encoded import Block, EncodedSet, EncodedWriter
from halfbyte.data.records import Example, Message
from halfbyte.data.templates import Template
from halfbyte.model.adapters import attach
from halfbyte.model.loss import TokenLoss
from halfbyte.train import (
    Hooks,
    OptimizerSettings,
    Schedule,
    Source,
    Stepped,
    Update,
    fit,
    prepare_state,
)
from tests.tiny import tiny_model, tiny_tokenizer

STEPS, BATCH = 8, 6
PASSAGES = (
    "The library opens at nine and closes at six.",
    "Our boat left the harbour in the rain; it came back on Sunday.",
    "Tea is kept in the blue tin, coffee in the red one.",
)
QUESTIONS = ("Where?", "When was that?", "What is the passage about?", "Who says so?", "Why?")
ARRANGEMENTS = {
    "row by row": MicroLimits(1, 10_000, pack=False, share=False),
    "padded": MicroLimits(3, 10_000, pack=False, share=False),
    "packed": MicroLimits(BATCH, 400, share=False),
    "shared": MicroLimits(BATCH, 400),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> EncodedSet:
    """Questions on passages, passage first, under a chat template with one token a byte."""
    template = Template.load("tokenizer", tiny_tokenizer())
    folder = tmp_path_factory.mktemp("curves") / "rows"
    with EncodedWriter(folder) as writer:
        for number, (passage, question) in enumerate(
            (one, other) for one in PASSAGES for other in QUESTIONS
        ):
            asked = Message("user", f"{passage}\n{question}")
            answered = Message("assistant", passage.split()[number % 5])
            row = template.encode(Example((asked, answered)))
            writer.extend(Block.of([row]), [b"{}"], [number], [number])
    return EncodedSet(folder)


def losses(rows: EncodedSet, arrangement: str) -> tuple[list[float], int]:
    """The loss of each step, and the tokens that were computed for them."""
    limits = ARRANGEMENTS[arrangement]
    model = attach(tiny_model("llama"), LoraSettings(rank=4, alpha=8), seed=1)
    state = prepare_state(TokenLoss(model), OptimizerSettings(5e-3), limits, seed=3)
    groups = prefix_groups(rows)  # for all: the arrangement must not decide who meets in a step
    computed = 0

    def plan(some: object, limits: MicroLimits) -> list:
        nonlocal computed
        batches = plan_step([(one, rows[one]) for one in some], limits)
        computed += sum(batch.input_ids.numel() for batch in batches)
        return batches

    source = Source(lambda epoch: epoch_order(rows.lengths, 3, epoch, BATCH, groups), plan)
    update = Update(Schedule("cosine", STEPS))
    events = list(fit(state, source, update, Hooks()))
    return [one.loss for one in events if isinstance(one, Stepped)], computed


def test_every_arrangement_gives_the_same_loss_curve(rows: EncodedSet) -> None:
    """Row by row, padded, packed or with shared prefixes: float32 losses agree at each of eight
    steps to 1e-4, while they fall; and each arrangement computes fewer tokens than padding.
    """
    found = {name: losses(rows, name) for name in ARRANGEMENTS}
    wanted, _ = found["row by row"]
    assert len(wanted) == STEPS
    assert wanted[-1] < wanted[0] - 0.1
    assert all(a != b for a, b in pairwise(wanted))
    for name, (curve, _) in found.items():
        torch.testing.assert_close(
            torch.tensor(curve), torch.tensor(wanted), rtol=1e-4, atol=0, msg=name
        )
    computed = {name: tokens for name, (_, tokens) in found.items()}
    assert computed["shared"] < 0.7 * computed["packed"]
    assert computed["packed"] == computed["row by row"] < computed["padded"]
