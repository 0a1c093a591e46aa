"""Rows with different adapters in one step, and steps that want no logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.infer import decoder
from halfbyte.infer.backend import Span
from halfbyte.infer.decoder import DecoderBackend
from halfbyte.infer.pool import Adapter, Group, Pools, grouped
from halfbyte.infer.projection import Factor
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


def alike(count: int, **settings: Any) -> DecoderBackend:
    """A tiny model with so many adapters of one shape, their names numbers."""
    config = LoraConfig(**{**PLAIN, "target_modules": "all-linear", **settings})
    model = get_peft_model(tiny_model("qwen2"), config, adapter_name="0")
    for number in range(1, count):
        model.add_adapter(str(number), config)
    shake(model, 1)
    made = DecoderBackend(model.eval())
    made.cache.reshape(8, 64, [])
    return made


def slots_taken(groups: list[Group]) -> list[int]:
    """How many slots each group has."""
    downs = [group.layers[0][0].down for group in groups]
    return [1 if down.dim() == 2 else len(down) for down in downs]


@pytest.mark.parametrize("dora", [False, True])
@torch.inference_mode()
def test_adapters_of_one_shape_are_taken_together(dora: bool) -> None:
    """In one batched product, with rows of the base between them and a slot that has none; not
    DoRA's, whose products are scaled afterwards. Each row gets what it gets alone.
    """
    made = alike(4, use_dora=dora)
    handles = [made.adapter(str(number)) for number in range(4)]
    names = ("3", None, "0", "1", "0", "3")
    rows = spans(made, *names)
    for several in (rows, [replace(row, ids=row.ids[:1]) for row in rows]):
        together = made.forward(several)
        alone = torch.cat([made.forward([row]) for row in several])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    owners = [None if name is None else handles[int(name)] for name in names]
    assert slots_taken(grouped(owners)) == ([1, 1, 1] if dora else [4])


@torch.inference_mode()
def test_a_long_prompt_does_not_widen_the_others() -> None:
    """A batch has as many rows for every slot as for the one with most."""
    made = alike(3)
    one, two, three = (made.adapter(str(number)) for number in range(3))
    groups = grouped([one] * 40 + [two] * 2 + [three] * 3)
    assert slots_taken(groups) == [1, 2]
    assert [len(group.rows) for group in groups] == [40, 8]
    assert [group.places.tolist() for group in groups] == [[*range(40)], [*range(40, 45)]]
    (whole,) = grouped([one] * 40)
    assert not len(whole.rows)
    assert not len(whole.places)


@torch.inference_mode()
def test_an_adapter_keeps_its_weights_while_others_come_and_go() -> None:
    """Slots double when they are full, are taken again once nobody holds their adapter, and are
    given back when most of them are free.
    """
    pools = Pools()

    def made(value: float) -> Adapter:
        factor = Factor(torch.full((3, 2), value), [torch.full((2, 5), value)], torch.empty(0))
        return pools.add(str(value), [(factor,)])

    def held(adapter: Adapter) -> tuple[float, ...]:
        pool, slot = adapter.pool, adapter.slot
        factor = pool.slots(slot, slot + 1)[0][0]
        every = torch.cat([factor.down.flatten(), *(up.flatten() for up in factor.up)])
        return tuple(every.unique().tolist())

    kept = [made(float(number)) for number in range(5)]
    pool = kept[0].pool
    assert pool.size == 8
    assert all(adapter.pool is pool for adapter in kept)
    assert [held(adapter) for adapter in kept] == [(float(n),) for n in range(5)]
    del kept[1]
    kept.append(made(7.0))
    assert [adapter.slot for adapter in kept] == [0, 2, 3, 4, 1]
    assert [held(adapter)[0] for adapter in kept] == [0.0, 2.0, 3.0, 4.0, 7.0]
    del kept[1:4]
    pools.tidy()
    assert pool.size == 2
    assert [held(adapter)[0] for adapter in kept] == [0.0, 7.0]
    kept.clear()
    pools.tidy()
    assert made(1.0).pool is not pool


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
