"""Rows with different adapters in one step, and steps that want no logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.infer.backend import Span
from halfbyte.infer.decoder import DecoderBackend
from tests.test_infer_engine import shake
from tests.tiny import tiny_model

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": "all-linear"},
    "some": {"target_modules": ["v_proj", "up_proj"], "r": 3},
    "head": {
        "target_modules": ["q_proj", "k_proj", "lm_head"],
        "rank_pattern": {"k_proj": 2},
        "use_rslora": True,
    },
}


def backend() -> DecoderBackend:
    """A tiny model with the three adapters above."""
    first, *others = ADAPTERS
    model = get_peft_model(
        tiny_model("qwen2", tie_word_embeddings=False),
        LoraConfig(**{**PLAIN, **ADAPTERS[first]}),
        adapter_name=first,
    )
    for name in others:
        model.add_adapter(name, LoraConfig(**{**PLAIN, **ADAPTERS[name]}))
    shake(model, 1)
    made = DecoderBackend(model.eval())
    made.cache.reshape(8, 64, [])
    return made


def spans(made: DecoderBackend, *names: str | None) -> list[Span]:
    """A prompt of three tokens for each of the adapters."""
    return [
        Span(
            slot,
            0,
            tuple(range(slot, slot + 3)),
            adapter=None if name is None else made.adapter(name),
        )
        for slot, name in enumerate(names)
    ]


@torch.inference_mode()
def test_adapters_that_differ_share_a_step() -> None:
    """Ranks and layers that differ, an adapted head, rows of the base between them: each row gets
    what it gets alone.
    """
    made = backend()
    rows = spans(made, "some", None, "all", "head", "some", None)
    together = made.forward(rows)
    alone = [made.forward([row]) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    base = made.forward(spans(made, *[None] * 6))
    changed = (together - base).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, False, True, True, True, False]


@pytest.mark.parametrize("threads", [1, 2])
@torch.inference_mode()
def test_a_step_of_prompts_alone_has_no_logits(threads: int) -> None:
    """A prompt longer than a step's share wants nothing yet: no row enters the head."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = backend()
        (row,) = spans(made, "head")
        assert made.forward([replace(row, want=0)]).shape == (0, made.vocabulary)
    finally:
        torch.set_num_threads(before)
