"""Adapters side by side in one product give what they give one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.infer import mixing
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


def backend(**more: dict[str, Any]) -> DecoderBackend:
    """A tiny model with the three adapters above, and more."""
    given = {**ADAPTERS, **more}
    first, *others = given
    model = get_peft_model(
        tiny_model("qwen2", tie_word_embeddings=False),
        LoraConfig(**{**PLAIN, **given[first]}),
        adapter_name=first,
    )
    for name in others:
        model.add_adapter(name, LoraConfig(**{**PLAIN, **given[name]}))
    shake(model, 1)
    made = DecoderBackend(model.eval())
    made.cache.reshape(8, 64, [])
    return made


def spans(made: DecoderBackend, *names: str | None, tokens: int = 3) -> list[Span]:
    """A prompt of so many tokens for each of the adapters."""
    return [
        Span(
            slot,
            0,
            tuple(range(slot, slot + tokens)),
            adapter=None if name is None else made.adapter(name),
        )
        for slot, name in enumerate(names)
    ]


def kept(made: DecoderBackend) -> tuple[str, ...] | None:
    """Names of the adapters that stand side by side."""
    stack = made._mixer._stack
    return None if stack is None else tuple(adapter.name for adapter in stack.adapters)


@torch.inference_mode()
def test_side_by_side_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and layers that differ, an adapted head, rows of the base between them."""
    made = backend()
    rows = spans(made, "some", None, "all", "head", "some", None)
    together = made.forward(rows)
    assert set(kept(made) or ()) == set(ADAPTERS)
    monkeypatch.setattr(mixing, "_ROWS", 0)
    torch.testing.assert_close(together, made.forward(rows), rtol=1e-5, atol=1e-5)
    alone = [made.forward([Span(row.slot, 0, row.ids, adapter=row.adapter)]) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    base = made.forward(spans(made, *[None] * 6))
    changed = (together - base).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, False, True, True, True, False]


@torch.inference_mode()
def test_what_stands_side_by_side_is_kept_while_it_serves() -> None:
    """Fewer of the same adapters need no new copies, others do; an unloaded one is let go."""
    made = backend()
    made.forward(spans(made, "all", None))
    assert kept(made) is None  # one adapter needs no other beside it
    made.forward(spans(made, "all", "some", "head"))
    first = made._mixer._stack
    assert first is not None
    made.forward(spans(made, "head", "some"))
    assert made._mixer._stack is first
    made.unload("some")
    assert kept(made) is None
    made.forward(spans(made, "all", "head"))
    made.forward(spans(made, "all", "some"))
    assert set(kept(made) or ()) == {"all", "some"}


@torch.inference_mode()
def test_what_is_quicker_one_by_one_stays_so() -> None:
    """Many rows, and DoRA, which changes what the base gave, too."""
    made = backend(dora={"target_modules": ["q_proj"], "use_dora": True})
    made.forward(spans(made, "all", "dora"))
    assert kept(made) is None
    made.forward(spans(made, "all", "some", tokens=40))
    # prompts of 80 tokens go one by one; their two last places in the head do not
    rows = made._mixer.mix(spans(made, "all", "some", tokens=40), [40, 40])
    assert rows.stack is None
    assert len(rows.lora(0).starts) == 2


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
