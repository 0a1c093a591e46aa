"""The engine: its answers are transformers' own, whatever shares the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

import halfbyte.infer.engine as engine_module
from halfbyte.errors import InputError
from halfbyte.infer import Completion, Engine, Limits, Request, Sampling
from tests.tiny import ARCHS, tiny_model, tiny_tokenizer

NEW = 10


def with_adapters(
    model: PreTrainedModel, names: Sequence[str] = ("one", "two"), **settings: Any
) -> PeftModel:
    """The model with adapters of random weights (B is not zero)."""
    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    peft_model = get_peft_model(model, LoraConfig(**given), adapter_name=names[0])
    for name in names[1:]:
        peft_model.add_adapter(name, LoraConfig(**given))
    shake(peft_model, 1)
    return peft_model.eval()


def shake(model: torch.nn.Module, seed: int, part: str = "lora_") -> None:
    """Give adapter weights random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def reference(
    model: Any, ids: Sequence[int], adapter: str | None = None, new: int = NEW
) -> tuple[int, ...]:
    """transformers' greedy answer for one prompt, alone."""
    if adapter is not None:
        model.set_adapter(adapter)
    base = isinstance(model, PeftModel) and adapter is None
    with model.disable_adapter() if base else nullcontext():
        out = model.generate(
            input_ids=torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
    return tuple(out[0, len(ids) :].tolist())


def prompts(count: int = 7, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of different lengths, two of three with a common beginning of 30 tokens."""
    rng = random.Random(seed)
    common = [rng.randrange(256) for _ in range(30)]
    rows = [[rng.randrange(256) for _ in range(rng.randint(1, 40))] for _ in range(count)]
    return [tuple(common + row if i % 3 else row) for i, row in enumerate(rows)]


def greedy(new: int = NEW, **more: Any) -> Sampling:
    return Sampling(max_new_tokens=new, stop_ids=(), **more)


def agree(model: Any, answers: Sequence[Completion], requests: Sequence[Request]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        assert answer.ids == reference(model, request.ids, request.adapter)


@pytest.fixture(params=["compact", "transformers"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs through the compact pass and through transformers' own."""
    if request.param == "transformers":
        monkeypatch.setattr(engine_module, "unsupported", lambda _: "asked for")
    return str(request.param)


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_answers_are_those_of_transformers(arch: str, path: str) -> None:
    """Base and two adapters in one batch of ragged prompts answer as transformers does alone."""
    model = with_adapters(tiny_model(arch))
    engine = Engine(model, tiny_tokenizer(), Limits(max_batch=4, prefill_tokens=64))
    assert ("compact" in engine.backend.description) == (path == "compact" and arch != "gpt2")
    names = (None, "one", "two")
    requests = [Request(ids, greedy(), names[i % 3]) for i, ids in enumerate(prompts())]
    answers = engine.generate(requests)
    agree(model, answers, requests)
    assert {(a.finish, a.stop) for a in answers} == {("length", None)}


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        {
            "rank_pattern": {"k_proj": 2, "up_proj": 7},
            "target_modules": ["lm_head", "k_proj", "up_proj"],
        },
    ],
    ids=["dora", "rslora", "ranks-and-head"],
)
def test_every_kind_of_lora_answers_as_in_peft(settings: dict[str, Any]) -> None:
    """Magnitudes, scales, ranks that differ and an adapted head are all in the compact pass."""
    model = with_adapters(tiny_model("qwen2", tie_word_embeddings=False), **settings)
    engine = Engine(model, tiny_tokenizer())
    assert "compact" in engine.backend.description
    requests = [Request(ids, greedy(), (None, "one", "two")[i]) for i, ids in enumerate(prompts(3))]
    agree(model, engine.generate(requests), requests)


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("mistral", {"sliding_window": 12}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        ("qwen3", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
    ],
    ids=["window", "some-windows", "qwen3", "biases", "llama3-rope"],
)
def test_variants_of_a_shape_answer_as_transformers(
    arch: str, overrides: dict[str, Any], path: str
) -> None:
    """Windows, norms of heads, biases and scaled positions change nothing but speed."""
    model = tiny_model(arch, **overrides)
    requests = [Request(ids, greedy()) for ids in prompts(4)]
    engine = Engine(model, tiny_tokenizer(), Limits(prefill_tokens=32))
    agree(model, engine.generate(requests), requests)


def test_fp16_holds_a_bf16_base_exactly() -> None:
    """A base whose weights fit in fp16 is held so, and still answers as in float32."""
    model = tiny_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # so small that only a power of two brings it into fp16's range
            scale = 1e-6 if "down_proj" in name else 1
            parameter.copy_((parameter * scale).bfloat16().float())
    model = with_adapters(model)
    engine = Engine(model, tiny_tokenizer())
    assert engine.backend.description == "compact decoder in float32 (products: 8 half)"
    requests = [Request(ids, greedy(), (None, "one")[i % 2]) for i, ids in enumerate(prompts(4))]
    agree(model, engine.generate(requests), requests)


def test_one_row_and_a_batch_answer_alike(path: str) -> None:
    """A greedy answer does not depend on what shares the batch."""
    model = with_adapters(tiny_model("llama"))
    requests = [Request(ids, greedy(16), (None, "one")[i % 2]) for i, ids in enumerate(prompts())]
    together = Engine(model, tiny_tokenizer()).generate(requests)
    alone = [Engine(model, tiny_tokenizer()).generate([request])[0] for request in requests]
    assert [a.ids for a in together] == [a.ids for a in alone]


def test_the_model_is_left_as_it_was(path: str) -> None:
    """Active adapter, gradients wanted and training mode survive a generation."""
    model = with_adapters(tiny_model("gpt2"))
    model.set_adapter("two")
    model.train()
    before = [(n, p.requires_grad) for n, p in model.named_parameters()]
    Engine(model, tiny_tokenizer()).generate([Request((1, 2, 3), greedy(2), "one")])
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == before
    assert model.active_adapter == "two"
    assert all(module.training for module in model.modules())
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert (layer.active_adapters, layer.disable_adapters) == (["two"], False)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "target_modules": ["v_proj", "down_proj", "c_proj"]},
        {"rank_pattern": {"q_proj": 2, "c_fc": 2}, "alpha_pattern": {"gate_proj": 32, "c_fc": 32}},
        {"use_dora": True},
    ],
    ids=["plain", "rslora, some layers", "patterns", "dora"],
)
def test_an_adapter_loaded_by_the_engine_answers_as_with_peft(
    arch: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """From its folder, beside an adapter the model holds; after `unload` its name is free again."""
    peft_model = with_adapters(tiny_model(arch), ["one"], task_type="CAUSAL_LM", **settings)
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    requests = [Request(tuple(range(n)), greedy(), "two") for n in (3, 9)]
    expected = [reference(peft_model, request.ids, "one") for request in requests]
    made = Engine(with_adapters(tiny_model(arch), ["mine"]), tiny_tokenizer())
    for _ in range(2):
        made.load("two", tmp_path / "one")
        assert [answer.ids for answer in made.generate(requests)] == expected
        with pytest.raises(InputError, match="loaded already"):
            made.load("two", tmp_path / "one")
        made.unload("two")
    with pytest.raises(InputError, match="the model holds mine"):
        made.submit(requests[0])
    own = made.generate([Request((1, 2, 3), greedy(), "mine")])[0].ids
    assert own == reference(with_adapters(tiny_model(arch), ["mine"]), (1, 2, 3), "mine")
