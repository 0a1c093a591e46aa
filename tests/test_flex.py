"""FlexAttention's side of the fast path, as far as a CPU can show it: the mask, the values and
gradients of the uncompiled operator, and that nothing is used that fails its trial."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.model.fast import flex, layout, parts
from halfbyte.model.loss import TokenLoss
from tests.test_eval_runner import encoded_rows
from tests.test_fast_path import tree_batch
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Trials are remembered for a process: each test makes its own."""
    flex.fault.cache_clear()
    yield
    flex.fault.cache_clear()


def test_the_block_mask_is_the_trees() -> None:
    """Every pair of places is allowed in blocks exactly where it is allowed in the dense mask."""
    batch = tree_batch()
    mask = flex.block_mask(batch)
    rows, length = batch.input_ids.shape
    r, q, k = torch.meshgrid(
        torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij"
    )
    assert torch.equal(mask.mask_mod(r, torch.zeros_like(r), q, k), layout.allowed(batch))


def test_losses_through_flex_are_those_through_segments() -> None:
    """Every token's loss is the same by either route, with shared beginnings and grouped queries.
    Gradients are compared on the card, in the trial: torch has no backward pass on a CPU."""
    rows = encoded_rows(5, seed=2)
    (batch,) = plan_step(list(enumerate([*rows, rows[0]])), MicroLimits(8, 4096))
    found = []
    for route in ("segments", "flex"):
        loss = TokenLoss(tiny_model("llama").requires_grad_(False))
        loss.route = route
        found.append(loss.token_nll(batch)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_it_proves_itself_or_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial passes on what is right, and names what is wrong or fails."""
    assert flex.fault("cpu", torch.float32, 16) is None
    flex.fault.cache_clear()
    right = flex.attend
    monkeypatch.setattr(flex, "attend", lambda *given: right(*given) * 1.2)
    assert "is off by" in str(flex.fault("cpu", torch.float32, 16))
    flex.fault.cache_clear()

    def broken(*_given: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nfor this card")

    monkeypatch.setattr(flex, "attend", broken)
    assert flex.fault("cpu", torch.float32, 16) == "FlexAttention failed its trial: no kernel image"


def test_the_route_on_a_card_follows_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA FlexAttention is taken after its trial; otherwise a mask, with the reason."""
    model = tiny_model("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    route, reason = parts.route_of(model, "cuda")
    assert route == "mask"
    assert "there is none here" in reason
    monkeypatch.setattr(parts, "flex", SimpleNamespace(fault=lambda *_: None))
    assert parts.route_of(model, "cuda")[0] == "flex"
    assert parts.route_of(model, "cpu")[0] == "segments"
