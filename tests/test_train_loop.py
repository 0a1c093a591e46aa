"""The loop: what a step is, what ends a training, and what its parts compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halfbyte.config import TrainSettings
from halfbyte.errors import InputError, IntegrityError, TrainingError
from halfbyte.run import RunFolder
from halfbyte.run.files import write_durable
from halfbyte.train import (
    Evaluated,
    Event,
    Finished,
    Hooks,
    OptimizerSettings,
    Saver,
    Schedule,
    Shrunk,
    Source,
    State,
    Stepped,
    Update,
    build_optimizer,
    fit,
    held_out_loss,
    load_weights,
)
from halfbyte.train.schedules import every, total_steps, warmup_steps
from halfbyte.train.tensors import read_tensors, write_tensors
from tests.toy import (
    ROWS,
    ToyBatch,
    toy_batch,
    toy_evaluate,
    toy_order,
    toy_plan,
    toy_run,
    toy_source,
    toy_state,
    toy_update,
    train,
    weight_bytes,
)

CPU = torch.device("cpu")


def run_events(state: State, update: Update | None = None, **hooks: Any) -> list[Event]:
    return list(fit(state, toy_source(), update or toy_update(), Hooks(**hooks)))


def stepped(events: list[Event]) -> list[Stepped]:
    return [one for one in events if isinstance(one, Stepped)]


# a step


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_equal_one_batch_in_loss_and_gradient(micro: int) -> None:
    """Rows have 1 to 3 tokens, so means of micro-batch means would differ."""
    whole, split = toy_state(micro=4, dropout=0.0), toy_state(micro=micro, dropout=0.0)
    for a, b in zip(stepped(run_events(whole)), stepped(run_events(split)), strict=True):
        assert b.loss == pytest.approx(a.loss, abs=1e-6)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
        assert (b.trained, b.tokens, b.rows) == (a.trained, a.tokens, a.rows)
    for one, other in zip(whole.bare.parameters(), split.bare.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_loss_of_a_step_is_the_token_mean_and_the_update_is_plain_adamw() -> None:
    state, reference = toy_state(micro=3, dropout=0.0), toy_state(dropout=0.0)
    batch = toy_batch(toy_order(0)[0])
    loss = reference.bare(batch) / batch.weight.sum()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(reference.bare.parameters(), 1.0)
    torch.optim.AdamW(reference.bare.parameters(), 0.05, (0.9, 0.999), weight_decay=0.0).step()
    update = Update(Schedule("constant", 1))
    (event,) = stepped(run_events(state, update))
    assert event.loss == pytest.approx(loss.item(), abs=1e-6)
    assert event.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    for one, other in zip(state.bare.parameters(), reference.bare.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_step_trains_whatever_left_a_module_in_eval_mode() -> None:
    """A loaded model has modules in eval mode below a root that is not: dropout would be off."""
    usual, odd = toy_state(dropout=0.5), toy_state(dropout=0.5)
    for module in list(odd.module.modules())[1:]:
        module.eval()
    run_events(usual)
    run_events(odd)
    assert weight_bytes(odd) == weight_bytes(usual)


def test_a_shared_target_counts_as_often_as_its_weight() -> None:
    class Doubled(ToyBatch):
        pass

    def plan(rows: Any, limits: Any) -> list[ToyBatch]:
        single = toy_plan(rows, limits)
        return [Doubled(b.inputs, b.target, b.weight * 2, b.rows, b.tokens) for b in single]

    single, double = toy_state(dropout=0.0), toy_state(dropout=0.0)
    once = stepped(run_events(single, toy_update(3)))
    twice = stepped(list(fit(double, Source(toy_order, plan), toy_update(3), Hooks())))
    assert [one.loss for one in once] == pytest.approx([one.loss for one in twice])
    assert [2 * one.trained for one in once] == [one.trained for one in twice]


def test_every_row_of_an_epoch_is_trained_once_and_the_epoch_is_counted() -> None:
    state, seen = toy_state(), []
    state.bare.before = lambda batch: seen.extend(batch.rows)
    events = stepped(run_events(state, toy_update(12, eval_every=0)))
    assert sorted(seen[:ROWS]) == sorted(seen[ROWS:]) == list(range(ROWS))
    assert seen[:ROWS] != seen[ROWS:]
    assert [one.epoch for one in events][5::6] == [1.0, 2.0]


def test_evaluating_more_often_does_not_change_the_training() -> None:
    """Dropout masks belong to the step: what happens between steps cannot shift them."""
    rare, often = toy_state(), toy_state()
    run_events(rare, toy_update(eval_every=0))

    def evaluate() -> float:
        torch.rand(17)
        return 1.0

    run_events(often, toy_update(eval_every=1), evaluate=evaluate)
    assert weight_bytes(rare) == weight_bytes(often)


def test_an_out_of_memory_retry_draws_the_masks_of_a_step_anew() -> None:
    """With micro-batches of one row the masks are drawn row by row: the same after the retry."""
    short, small = toy_state(micro=2), toy_state(micro=1)

    def before(batch: ToyBatch) -> None:
        if len(batch.rows) > 1:
            torch.rand(3)
            raise MemoryError

    short.bare.before = before
    events = run_events(short)
    run_events(small)
    assert any(isinstance(one, Shrunk) for one in events)
    assert weight_bytes(short) == weight_bytes(small)


def test_clipping_limits_the_update_and_reports_the_norm_before() -> None:
    state = toy_state(dropout=0.0)
    grads: list[float] = []
    step = state.optimizer.optimizer.step  # type: ignore[attr-defined]  # accelerate's wrapper

    def spy(closure: None = None) -> None:
        parts = [one.grad for one in state.bare.parameters() if one.grad is not None]
        grads.append(float(nn.utils.get_total_norm(parts)))
        step(closure)

    state.optimizer.optimizer.step = spy  # type: ignore[attr-defined]
    events = stepped(run_events(state, toy_update(3, max_grad_norm=0.01)))
    assert all(one.grad_norm > 0.1 for one in events)
    assert grads == pytest.approx([0.01] * 3, rel=1e-3)


def test_fp16_overflow_lowers_the_loss_scale_and_loses_no_step() -> None:
    plain, scaled = toy_state(dropout=0.0), toy_state(dropout=0.0)
    scaled.scaled, scaled.progress.loss_scale = True, 2.0**16

    def after(batch: ToyBatch, loss: torch.Tensor) -> torch.Tensor:
        loss.register_hook(lambda grad: grad * (math.inf if float(grad) > 2.0**11 else 1.0))
        return loss

    scaled.bare.after = after
    found, expected = stepped(run_events(scaled)), stepped(run_events(plain))
    assert [one.loss for one in found] == [one.loss for one in expected]
    assert weight_bytes(scaled) == weight_bytes(plain)
    assert 2.0**11 < scaled.progress.loss_scale < 2.0**16


# what ends it, what is kept


def test_the_best_weights_are_kept_and_can_be_taken_back(tmp_path: Path) -> None:
    run, state = toy_run(tmp_path), toy_state()
    losses = iter([9.0, 3.0, 1.0, 2.0, 2.5, 2.5, 2.6])
    at_best: list[bytes] = []

    def evaluate() -> float:
        if state.progress.step == 4:
            at_best.append(weight_bytes(state))
        return next(losses)

    update = toy_update(12, eval_every=2, save_every=3)
    events = run_events(state, update, evaluate=evaluate, save=Saver(run, keep=1))
    assert [(one.step, one.best) for one in events if isinstance(one, Evaluated)] == [
        (0, False),  # the base's own: no candidate
        (2, True),
        (4, True),
        (6, False),
        (8, False),
        (10, False),
        (12, False),
    ]
    assert [step for step, _ in run.checkpoint_steps()] == [4, 12]
    assert weight_bytes(state) != at_best[0]
    load_weights(state.bare, run.checkpoint(4))
    assert weight_bytes(state) == at_best[0]
    (finished,) = (one for one in events if isinstance(one, Finished))
    assert (finished.best_step, finished.best_loss, finished.reason) == (4, 1.0, "steps")


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path) -> None:
    run, state = toy_run(tmp_path), toy_state()
    losses = iter([9.0, 3.0, 4.0, math.nan, 1.0])
    update = toy_update(100, eval_every=2, save_every=50, patience=2)
    events = run_events(state, update, evaluate=lambda: next(losses), save=Saver(run))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.reason, finished.best_step) == (6, "patience", 2)
    assert run.checkpoint_steps()[-1][0] == 6  # the end is always saved


def test_the_newest_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    train(run, update=toy_update(9, eval_every=0, save_every=1), keep=3)
    assert [step for step, _ in run.checkpoint_steps()] == [7, 8, 9]


def test_a_finished_run_that_is_resumed_ends_at_once(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    first = train(run)
    steps: list[Event] = []
    again = train(run, on_event=lambda event, stop: steps.append(event))
    assert not stepped(steps)
    assert weight_bytes(first) == weight_bytes(again)


def test_weights_of_a_damaged_checkpoint_are_not_taken(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    state = train(run, update=toy_update(2))
    (run.checkpoint(2) / "rng.safetensors").unlink(missing_ok=True)
    (run.checkpoint(2) / "state.json").write_text("{}")
    before = weight_bytes(state)
    with pytest.raises(IntegrityError, match=r"state\.json has 2 bytes"):
        load_weights(state.bare, run.checkpoint(2))
    assert weight_bytes(state) == before


def test_the_held_out_loss_does_not_depend_on_batching_and_leaves_the_module_training() -> None:
    state = toy_state()
    one_by_one = toy_evaluate(state)()
    at_once = held_out_loss(state, lambda rows: [toy_batch(rows)], ROWS)
    assert one_by_one == pytest.approx(at_once, rel=1e-6)
    assert state.bare.training
    assert held_out_loss(state, lambda rows: [toy_batch(rows)], ROWS, lambda: True) is None


# schedules


def test_schedules_rise_and_fall_as_said() -> None:
    linear = Schedule("linear", 12, 2)
    assert [round(linear.factor(step), 3) for step in range(12)] == [
        0.333, 0.667, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1,
    ]  # fmt: skip
    cosine = Schedule("cosine", 12, 2)
    assert cosine.factor(2) == 1.0
    assert cosine.factor(7) == pytest.approx(0.5)
    assert all(cosine.factor(step) > cosine.factor(step + 1) > 0 for step in range(2, 11))
    assert {Schedule("constant", 9, 0).factor(step) for step in range(9)} == {1.0}


def test_warm_up_epochs_and_intervals_become_steps() -> None:
    assert [warmup_steps(0.03, 100), warmup_steps(0.03, 10), warmup_steps(7.0, 100)] == [3, 1, 7]
    assert [warmup_steps(0.0, 100), warmup_steps(500, 100)] == [0, 100]
    assert [total_steps(3, 7), total_steps(0.1, 30), total_steps(2.5, 5), total_steps(3, 7, 4)] == [
        21,
        3,
        13,
        4,
    ]
    assert [every("epoch", 7), every(3, 7)] == [7, 3]
    update = Update.of(TrainSettings(epochs=2, warmup=0.1, patience=3), steps_per_epoch=10)
    assert (update.steps, update.schedule.warmup, update.eval_every, update.save_every) == (
        20,
        2,
        10,
        10,
    )


# optimizers


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_lora_plus_trains_b_faster_and_norms_do_not_decay() -> None:
    module = Adapter()
    settings = OptimizerSettings(1e-4, weight_decay=0.1, plus_ratio=16)
    groups = build_optimizer(module, settings, CPU).param_groups
    found = {
        id(one): (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]
    }
    assert found == {
        id(module.lora_A["default"].weight): (1e-4, 0.1),
        id(module.lora_B["default"].weight): (16e-4, 0.1),
        id(module.norm.weight): (1e-4, 0.0),
        id(module.norm.bias): (1e-4, 0.0),
    }


def test_an_eight_bit_optimizer_without_cuda_is_refused() -> None:
    with pytest.raises(InputError, match="need CUDA") as caught:
        build_optimizer(Adapter(), OptimizerSettings(1e-4, "adamw_8bit"), CPU)
    assert caught.value.hint == "Set train.optimizer=adamw."


def test_a_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="No parameter"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings(1e-4), CPU)


# tensors on disk


def test_tensors_of_every_kind_read_back_bit_for_bit(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
    tensors = {f"t{n}": torch.arange(6).reshape(2, 3).to(kind) for n, kind in enumerate(kinds)}
    tensors |= {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
    }
    path = tmp_path / "t.safetensors"
    write_durable(path, lambda file: write_tensors(file, tensors))
    back = read_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        bits = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(back[name].reshape(-1).view(torch.uint8), bits)
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(IntegrityError, match="cannot be read as safetensors"):
        read_tensors(path)


def test_a_checkpoint_folder_holds_no_pickle(tmp_path: Path) -> None:
    run: RunFolder = toy_run(tmp_path)
    train(run, update=toy_update(1))
    names = {path.suffix for path in run.checkpoint(1).iterdir()}
    assert names == {".safetensors", ".json"}
