"""The loss is the same number, with the same gradients, however a step is arranged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Batch, Encoded
from halfbyte.model.fast import head as head_module
from halfbyte.model.fast import parts, status
from halfbyte.model.fast.head import Head, nll_sum
from halfbyte.model.fast.linear import custom_modules
from halfbyte.model.loss import TokenLoss
from tests.tiny import ARCHS, tiny_config, tiny_model

ARRANGEMENTS = {
    "row by row": MicroLimits(1, 9999, pack=False, share=False),
    "padded": MicroLimits(4, 9999, pack=False, share=False),
    "packed": MicroLimits(99, 64, share=False),
    "shared": MicroLimits(99, 9999),
    "shared, cut": MicroLimits(99, 40),
}
Gradients = dict[str, torch.Tensor]


def some_rows() -> list[Encoded]:
    """Three beginnings of three rows each, one row twice, and one that begins another."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(3):
        beginning = np.concatenate([np.arange(5), random.integers(1, 250, random.integers(6, 14))])
        for _ in range(3):
            ids = np.concatenate([beginning, random.integers(0, 250, random.integers(2, 9))])
            trained = random.random(len(ids)) < 0.5
            trained[0], trained[-1] = False, True
            rows.append(Encoded(ids.astype(np.int32), trained))
    shorter = rows[1].ids[:-2]
    return [*rows, rows[0], Encoded(shorter, np.arange(len(shorter)) > 0)]


def by_transformers(model: nn.Module, rows: list[Encoded]) -> torch.Tensor:
    """The sum of token losses through the model's own forward pass, one row at a time."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor(row.ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        nll = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + nll[torch.tensor(row.trained[1:])].sum()
    return total


def loss_and_gradients(
    model: nn.Module, compute: Callable[..., Any], *given: Any
) -> tuple[float, Gradients]:
    model.zero_grad()
    loss = compute(*given)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


def assert_same(got: tuple[float, Gradients], wanted: tuple[float, Gradients]) -> None:
    assert got[0] == pytest.approx(wanted[0], rel=1e-5)
    assert got[1].keys() == wanted[1].keys()
    scale = max(float(gradient.norm()) for gradient in wanted[1].values())
    for name, gradient in wanted[1].items():
        error = float((got[1][name] - gradient).norm())
        assert error <= 1e-5 * max(float(gradient.norm()), 1e-3 * scale), name


def step_sum(loss: TokenLoss, rows: list[Encoded], limits: MicroLimits) -> Any:
    return sum(loss(batch) for batch in plan_step(list(enumerate(rows)), limits))


def with_lora(model: Any, fast: bool, **options: Any) -> Any:
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", **options)
    if fast:
        config._register_custom_module(custom_modules())
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arrangement_gives_the_loss_and_gradients_of_single_rows(arch: str) -> None:
    """Packed, padded, shared and cut steps agree with transformers row by row."""
    rows = some_rows()
    model = tiny_model(arch).train()
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    loss = TokenLoss(model)
    for limits in ARRANGEMENTS.values():
        assert_same(loss_and_gradients(model, step_sum, loss, rows, limits), wanted)


@pytest.mark.parametrize("arch", ARCHS)
def test_an_adapter_trains_as_with_peft(arch: str) -> None:
    """Our layers, attention and loss give PEFT's and transformers' gradients, shared or not."""
    rows = some_rows()
    theirs = with_lora(tiny_model(arch), fast=False).train()
    wanted = loss_and_gradients(theirs, by_transformers, theirs, rows)
    ours = with_lora(tiny_model(arch), fast=True).train()
    loss = TokenLoss(ours)
    for name in ("packed", "shared"):
        got = loss_and_gradients(ours, step_sum, loss, rows, ARRANGEMENTS[name])
        assert_same(got, wanted)


def test_biases_of_the_base_that_are_trained_get_their_gradients() -> None:
    """PEFT's `bias="all"`: such layers are left to PEFT."""
    rows = some_rows()
    theirs, ours = (with_lora(tiny_model("qwen2"), fast, bias="all") for fast in (False, True))
    wanted = loss_and_gradients(theirs, by_transformers, theirs, rows)
    assert any("base_layer.bias" in name for name in wanted[1])
    loss = TokenLoss(ours)
    assert_same(loss_and_gradients(ours, step_sum, loss, rows, ARRANGEMENTS["shared"]), wanted)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("phi3", {"pad_token_id": 0}),
        ("nemotron", {}),
    ],
)
def test_other_heads_and_attentions(kind: str, options: dict[str, Any]) -> None:
    """Soft caps, scaled logits and fused projections are right, on the fast path or off it."""
    rows = some_rows()
    model = tiny_model(kind, **options).train()
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    loss = TokenLoss(model)
    got = loss_and_gradients(model, step_sum, loss, rows, ARRANGEMENTS["shared"])
    assert_same(got, wanted)


@pytest.mark.parametrize("kind", sorted(parts._PLAIN_HEADS - {"gpt2"}))
def test_heads_that_are_computed_in_chunks_give_the_models_scores(kind: str) -> None:
    """With factors and caps other than 1, where the architecture has any."""
    config = tiny_config(kind, pad_token_id=0)
    factors = {"logit_scale": 0.3, "logits_scaling": 3.0, "final_logit_softcapping": 2.0}
    for name, value in factors.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    head = TokenLoss(model)._head()
    assert head is not None
    ids = torch.randint(3, 250, (1, 9))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        head.project(hidden, scores := torch.empty(9, config.vocab_size))
        wanted = model(input_ids=ids, use_cache=False).logits[0]
    assert torch.allclose(head.finish(scores), wanted, atol=1e-5)


def test_a_head_that_nobody_read_is_said_to_be_computed_at_once() -> None:
    """And its scores come from the model itself."""
    model = tiny_model("hyperclovax", logits_scaling=3.0)
    part = next(one for one in parts.status(model) if one.name == "vocabulary in chunks")
    assert not part.active
    assert "hyperclovax" in part.reason
    rows = some_rows()
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    got = loss_and_gradients(model, step_sum, TokenLoss(model), rows, ARRANGEMENTS["shared"])
    assert_same(got, wanted)


@pytest.mark.parametrize("arch", ["mistral", "gemma2"])
def test_a_window_shorter_than_the_rows(arch: str) -> None:
    """Sliding-window attention counts positions in each row, not places in the pack."""
    rows = some_rows()
    model = tiny_model(arch, sliding_window=8, attn_implementation="eager").train()
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    loss = TokenLoss(model)
    for name in ("padded", "shared"):
        got = loss_and_gradients(model, step_sum, loss, rows, ARRANGEMENTS[name])
        assert_same(got, wanted)


def tiny_other(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=260, hidden_size=32, **options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize(
    "kind_options",
    [
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("mamba", {"num_hidden_layers": 2, "state_size": 4}),
    ],
    ids=["bloom", "mamba"],
)
def test_models_that_would_mix_rows_are_padded_or_refuse(
    kind_options: tuple[str, dict[str, Any]],
) -> None:
    """Without packing the sums are right; a packed batch is an error that says what to set."""
    rows = some_rows()
    model = tiny_other(kind_options[0], **kind_options[1]).train()
    loss = TokenLoss(model)
    assert loss.route == "rows"
    reasons = {part.name: part for part in status(model)}
    assert not reasons["packing"].active
    assert reasons["packing"].reason
    with pytest.raises(ValueError, match=r"train\.pack=false"):
        step_sum(loss, rows, ARRANGEMENTS["packed"])
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    got = loss_and_gradients(model, step_sum, loss, rows, ARRANGEMENTS["padded"])
    assert_same(got, wanted)


def test_a_model_that_drops_the_layout_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that never reaches the attention is an error rather than a wrong number."""
    model = tiny_model("llama")
    loss = TokenLoss(model)
    forward = type(model.model).forward
    monkeypatch.setattr(
        type(model.model),
        "forward",
        lambda self, layout=None, **given: forward(self, **given),
    )
    with pytest.raises(RuntimeError, match="layout"):
        step_sum(loss, some_rows(), ARRANGEMENTS["packed"])


def test_token_nll_is_cross_entropy_and_tells_hits() -> None:
    """Per target: nll as cross_entropy gives it, and whether the target is the argmax."""
    model = tiny_model("qwen2")
    (batch,) = plan_step(list(enumerate(some_rows())), ARRANGEMENTS["shared"])
    nll, correct = TokenLoss(model).token_nll(batch)
    loss = TokenLoss(model)(batch).detach()
    assert float((nll * batch.weight).sum()) == pytest.approx(float(loss), rel=1e-6)
    guesses = Batch(
        batch.input_ids,
        batch.position_ids,
        batch.segments,
        batch.predict,
        _likeliest(model, batch),
        batch.weight,
        batch.rows,
        batch.tokens,
    )
    assert TokenLoss(model).token_nll(guesses)[1].all()
    assert torch.equal(correct, guesses.target == batch.target)
    assert not nll.requires_grad


def _likeliest(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        hidden = TokenLoss(model)._hidden(batch)
        return model.lm_head(hidden).argmax(dim=1)


def test_a_head_with_an_adapter_goes_through_the_model() -> None:
    """LoRA on the head is not a plain product: the model's own logits are used, and agree."""
    rows = some_rows()
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"])
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    wanted = loss_and_gradients(model, by_transformers, model, rows)
    loss = TokenLoss(model)
    for name in ("padded", "shared"):
        got = loss_and_gradients(model, step_sum, loss, rows, ARRANGEMENTS[name])
        assert_same(got, wanted)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sixteen rows of logits at once, the least there is."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 1)
    return


@pytest.mark.parametrize(
    ("count", "chunk"),
    [(0, 0), (1, 1), (341, 341), (380, 380), (384, 192), (1024, 342), (1100, 275)],
)
def test_chunks_of_the_head_are_even(count: int, chunk: int) -> None:
    """A row left over would read the whole head for itself; 341 rows of 98,304 bytes are usual."""
    assert head_module.chunk_rows(count, 98_304) == chunk


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_head_is_cross_entropy(cap: float | None, bias: bool) -> None:
    """Over several chunks, with soft cap, scale, bias and weights: loss and all gradients are those
    of the plain formula.
    """
    torch.manual_seed(0)
    n, width, vocabulary = 37, 12, 50
    leaves = [torch.randn(n, width), torch.randn(vocabulary, width)]
    leaves += [torch.randn(vocabulary)] if bias else []
    target, weight = torch.randint(vocabulary, (n,)), torch.randint(1, 4, (n,)).float()
    results = []
    for ours in (True, False):
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        shift = given[2] if bias else None
        if ours:
            loss = nll_sum(Head(given[1], shift, 0.7, cap), given[0], target, weight)
        else:
            logits = 0.7 * nn.functional.linear(given[0], given[1], shift)
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            loss = (nn.functional.cross_entropy(logits, target, reduction="none") * weight).sum()
        (loss * 0.1).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in given)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_certain_targets_have_a_finite_loss() -> None:
    """Where the target's probability underflows float32 the nll is still right."""
    hidden = torch.tensor([[400.0, 0.0]], requires_grad=True)
    head = Head(torch.eye(2))
    loss = nll_sum(head, hidden, torch.tensor([1]), torch.ones(1))
    assert float(loss.detach()) == pytest.approx(400.0)
    loss.backward()
    assert hidden.grad.tolist() == [[1.0, -1.0]]
