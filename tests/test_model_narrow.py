"""Embeddings and head in 16 bits: the same numbers as in 32, in half the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from halfbyte.config import LoraSettings
from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.infer import Engine, Request, Sampling
from halfbyte.model import load as loading
from halfbyte.model.adapters import attach
from halfbyte.model.assemble import Form
from halfbyte.model.bases import resolve
from halfbyte.model.compute import Compute
from halfbyte.model.fast import narrow as narrow_module
from halfbyte.model.fast.narrow import Narrow, narrow, working_dtype
from halfbyte.model.loss import TokenLoss
from tests.test_loss import some_rows
from tests.tiny import tiny_model, tiny_tokenizer

FORM = Form(torch.device("cpu"), Compute(torch.float32, "by the test"), torch.float32, "nf4")
IDS = tuple(range(3, 40, 2))


@pytest.fixture(autouse=True)
def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough that a tiny head is widened in several slices."""
    monkeypatch.setattr(narrow_module, "_SLICE", 1000)


def stored(folder: Path, arch: str, dtype: torch.dtype, **more: Any) -> Path:
    """A base whose files hold 16-bit weights."""
    tiny_model(arch, **more).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch, *, wide: bool) -> PreTrainedModel:
    with monkeypatch.context() as patch:
        if wide:
            patch.setattr(loading, "narrow", lambda model: None)
        return loading.load_base(resolve(str(folder)), FORM)


def computed(model: PreTrainedModel) -> tuple[Any, ...]:
    """Loss, gradients, token losses and answers, with an adapter on it."""
    tuned = attach(model, LoraSettings(rank=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    loss = TokenLoss(tuned)
    (batch,) = plan_step(list(enumerate(some_rows())), MicroLimits(99, 9999))
    total = loss(batch)
    total.backward()
    gradients = {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}
    nll, right = loss.token_nll(batch)
    tuned.eval()
    requests = [Request(IDS[:n], Sampling(12, stop_ids=()), "default") for n in (3, 9)]
    answers = [done.ids for done in Engine(tuned, tiny_tokenizer()).generate(requests)]
    logits = tuned(torch.tensor([IDS])).logits.detach()
    return total.detach(), gradients, nll, right, logits, answers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
def test_nothing_changes_but_the_memory(
    arch: str, tied: bool, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients and logits to rounding, answers exactly; both tables in 16 bits."""
    folder = stored(tmp_path, arch, dtype, tie_word_embeddings=tied)
    model = opened(folder, monkeypatch, wide=False)
    held = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert [type(module).__mro__[1] for module in held] == [Narrow, Narrow]
    assert {module.weight.dtype for module in held} == {dtype}
    assert (held[0].weight is held[1].weight) == tied
    assert working_dtype(model) == torch.float32
    wide = opened(folder, monkeypatch, wide=True)
    saved = sum(p.nbytes for p in wide.parameters()) - sum(p.nbytes for p in model.parameters())
    assert saved == sum(p.nbytes for p in {held[0].weight, held[1].weight})
    total, gradients, nll, right, logits, answers = computed(model)
    expected = computed(wide)
    assert answers == expected[-1]
    assert torch.equal(right, expected[3])
    for ours, theirs in ((total, expected[0]), (nll, expected[2]), (logits, expected[4])):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        theirs = expected[1][name]
        assert (gradient - theirs).norm() <= 1e-5 * theirs.norm(), name


def test_what_would_be_rounded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 files; an architecture with an embedding of its own; one table of two that fits."""
    for arch, dtype in (("llama", torch.float32), ("gemma", torch.bfloat16)):
        model = opened(stored(tmp_path / arch, arch, dtype), monkeypatch, wide=False)
        assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    other = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        other.get_output_embeddings().weight.copy_(
            other.get_output_embeddings().weight.bfloat16().float()
        )
    before = other(torch.tensor([IDS])).logits
    narrow(other)
    assert other.get_input_embeddings().weight.dtype == torch.float32
    assert other.get_output_embeddings().weight.dtype == torch.bfloat16
    torch.testing.assert_close(other(torch.tensor([IDS])).logits, before)
