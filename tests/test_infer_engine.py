"""The engine: its answers are transformers' own, whatever shares the batch."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.infer import Engine, Limits, Request, Sampling
from tests.tiny import ARCHS, tiny_model, tiny_tokenizer

NEW = 12


def with_adapters(arch: str, names=("one", "two"), **settings):
    """A tiny model with adapters of random weights (B is not zero)."""
    model = tiny_model(arch)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings)
    peft_model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        peft_model.add_adapter(name, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in peft_model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return peft_model.eval()


def reference(model, ids, adapter=None, new=NEW, stop=None):
    """transformers' greedy answer for one prompt."""
    if adapter is not None:
        model.set_adapter(adapter)
    context = model.disable_adapter() if adapter is None and hasattr(model, "peft_config") else None
    if context:
        context.__enter__()
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=stop if stop is not None else -1,
        pad_token_id=0,
    )
    if context:
        context.__exit__(None, None, None)
    return tuple(out[0, len(ids) :].tolist())


def prompts(count=9, seed=0):
    """Prompts of different lengths, some with a common beginning."""
    rng = random.Random(seed)
    common = [rng.randrange(256) for _ in range(30)]
    rows = [[rng.randrange(256) for _ in range(rng.randint(1, 40))] for _ in range(count)]
    return [tuple(common + row if i % 3 else row) for i, row in enumerate(rows)]


def greedy(new=NEW, **more):
    return Sampling(max_new_tokens=new, stop_ids=(), **more)


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_answers_are_those_of_transformers(arch):
    """Base and two adapters in one batch of ragged prompts answer as transformers does alone."""
    model = with_adapters(arch)
    engine = Engine(model, tiny_tokenizer(), Limits(max_batch=4, prefill_tokens=64))
    names = (None, "one", "two")
    requests = [Request(ids, greedy(), names[i % 3]) for i, ids in enumerate(prompts())]
    answers = engine.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.ids == reference(model, request.ids, request.adapter)
        assert answer.finish == "length"
        assert answer.stop is None
    assert any(answer.cached_tokens for answer in answers)
