"""Rows with different adapters in one step, and steps that want no logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.infer import decoder, stack
from halfbyte.infer.backend import Span
from halfbyte.infer.decoder import DecoderBackend
from halfbyte.infer.stack import Stack, Stacks
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


@torch.inference_mode()
def test_adapters_that_answer_together_are_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some steps their factors lie side by side; rows get what they get alone, also when
    only some of the adapters answer, and an adapter that is gone takes the stack with it.
    """
    used: list[Stack | None] = []
    of = Stacks.of

    def watched(self: Stacks, *given: Any) -> Stack | None:
        used.append(of(self, *given))
        return used[-1]

    monkeypatch.setattr(Stacks, "of", watched)
    made = backend()
    rows = spans(made, "some", None, "all", "head", "some", None)
    alone = torch.cat([made.forward([row]) for row in rows])
    assert not any(used)
    for _ in range(8):
        together = made.forward(rows)
    assert [found is not None for found in used[-8:]] == [False] * 7 + [True]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.forward(rows[2:4]), alone[2:4], rtol=1e-5, atol=1e-5)
    assert used[-1] is used[-2]
    made.unload("all")
    made.forward(spans(made, "some", "head"))
    assert used[-1] is None


@torch.inference_mode()
def test_adapters_that_come_and_go_are_not_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack is a copy: only adapters that stay are worth one, and that are small."""
    made, stacks = backend(), Stacks()
    some, every, head = (made.adapter(name) for name in ("some", "all", "head"))
    for pair in ((some, every), (every, head)) * 20:
        assert stacks.of(pair, 2) is None
    assert stacks.of((some, every), 33) is None
    monkeypatch.setattr(stack, "_BYTES", 0)
    assert [stacks.of((some, every), 2) for _ in range(20)] == [None] * 20
    assert [stacks.of((some,), 1) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize("count", range(1, 9))
@torch.inference_mode()
def test_any_number_of_rows_gets_its_adapter(count: int) -> None:
    """Products of 2 and 3 rows are filled up to 4, of 6 and 7 to 8, by neighbours or by nothing."""
    made = backend()
    names = ["all"] * count
    together = made.forward(spans(made, *names))
    alone = torch.cat([made.forward([row]) for row in spans(made, *names)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    single = [replace(row, ids=row.ids[:1]) for row in spans(made, *names)]
    alone = torch.cat([made.forward([row]) for row in single])
    torch.testing.assert_close(made.forward(single), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("able", "halves", "share", "dtype"),
    [
        (True, True, 0.4, "float32"),
        (False, False, 0.4, "float32"),
        (True, True, 0.0, "bfloat16"),
        (True, False, 0.4, "bfloat16"),
    ],
)
def test_16_bit_models_compute_in_float32_where_their_weights_are_copied(
    able: bool, halves: bool, share: float, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is quicker even where it has bf16; layers that are not copied keep it there,
    and all do where no product takes 16-bit weights with float32.
    """
    monkeypatch.setattr(decoder, "halves_work", lambda: halves)
    monkeypatch.setattr(decoder, "has_cpu_bf16", lambda: able)
    monkeypatch.setattr(decoder, "_has_amx", lambda: False)
    monkeypatch.setattr(decoder, "_COPY_SHARE", share)
    made = DecoderBackend(tiny_model("llama").to(torch.bfloat16))
    assert f"in {dtype} " in made.description


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
