"""Faults 3 to 12: signals, full disks, damaged checkpoints, changed inputs, bad numbers, memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halfbyte.errors import (
    InputError,
    IntegrityError,
    Interrupted,
    ResourceError,
    TrainingError,
)
from halfbyte.run import RunFolder, failpoints, read_metrics
from halfbyte.train import (
    Event,
    Hooks,
    Saved,
    Saver,
    Shrunk,
    Skipped,
    State,
    Stepped,
    Stop,
    fault,
    fit,
    newest_verified,
    resume,
)
from tests.toy import (
    ToyBatch,
    moment_bytes,
    toy_evaluate,
    toy_run,
    toy_source,
    toy_state,
    toy_update,
    train,
    weight_bytes,
)

STEPS = 9  # an epoch has 6


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A training that nothing disturbed."""
    return train(toy_run(tmp_path_factory.mktemp("unbroken")))


def stop_at(step: int, number: int = signal.SIGTERM) -> Any:
    def on_event(event: Event, stop: Stop) -> None:
        if isinstance(event, Stepped) and event.step == step:
            stop.request(number)

    return on_event


def steps_of(run: RunFolder) -> list[int]:
    return [one["step"] for one in read_metrics(run.metrics) if one["event"] == "stepped"]


# 3: signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_mid_step_finishes_the_step_and_saves(
    tmp_path: Path, number: int, code: int
) -> None:
    run, state = toy_run(tmp_path), toy_state()
    calls: list[int] = []

    def before(batch: ToyBatch) -> None:
        if state.progress.step == 3 and not calls:
            calls.append(1)
            os.kill(os.getpid(), number)

    state.bare.before = before
    former = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        train(run, state)
    assert caught.value.exit_code == code
    assert caught.value.hint == f"resume {run.path}"
    assert "step 4" in caught.value.message
    found = newest_verified(run)
    assert found.step == 4
    assert steps_of(run) == [1, 2, 3, 4]
    assert signal.getsignal(number) == former


def test_a_second_ctrl_c_stops_at_once_but_a_forwarded_one_does_not() -> None:
    now = [0.0]
    with Stop(lambda: now[0]) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 0.2  # a launcher forwards the terminal's signal to us, who had it already
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        now[0] = 5.0
        os.kill(os.getpid(), signal.SIGTERM)  # only impatience of a person counts
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_evaluating_saves_and_evaluates_again_after_the_resume(
    tmp_path: Path, unbroken: State
) -> None:
    run, state, stop = toy_run(tmp_path), toy_state(), Stop()
    inner, calls = toy_evaluate(state, stop), []

    def evaluate() -> float | None:
        calls.append(state.progress.step)
        if state.progress.step == 4:
            stop.request(signal.SIGINT)
        return inner()

    hooks = Hooks(evaluate, Saver(run), stop)
    with pytest.raises(Interrupted):
        list(fit(state, toy_source(), toy_update(), hooks))
    assert calls == [0, 4]
    resumed = train(run)
    evaluated = [one["step"] for one in read_metrics(run.metrics) if one["event"] == "evaluated"]
    assert evaluated == [4, 8, 9]
    assert weight_bytes(resumed) == weight_bytes(unbroken)


# 4: the disk fills up


def test_whatever_write_of_a_save_fails_the_old_checkpoint_stays_and_no_temp_file(
    tmp_path: Path,
) -> None:
    run, saver = toy_run(tmp_path), Saver(toy_run(tmp_path, "saved"))
    state = train(run, update=toy_update(1))  # the optimizer has moments now
    saver(state)
    old = saver.run.checkpoint(1)
    state.progress.step = 2
    failures: list[ResourceError] = []
    for point in ("write", "sync"):
        while True:
            failpoints.arm(f"{point}#{len(failures) + 1}=enospc")
            failure = failure_of(saver, state)
            if failure is None:
                break
            failures.append(failure)
            assert fault(old) == ""
            assert not list(saver.run.path.rglob(".tmp-*"))
        assert fault(saver.run.checkpoint(2)) == ""
        if point == "write":
            assert len(failures) > 30, "the injection reached no write"
            assert all(one.exit_code == 3 for one in failures)
            assert all("bytes are needed" in one.message for one in failures)
            failures.clear()
    assert len(failures) > 5, "the injection reached no sync"


def failure_of(saver: Saver, state: State) -> ResourceError | None:
    try:
        saver(state)
    except ResourceError as error:
        return error
    return None


def test_a_limit_of_the_operating_system_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    run, state = toy_run(tmp_path), toy_state()
    saver = Saver(run)
    saver(state)
    state.progress.step = 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError, match=r"1,0\d\d,\d{3} bytes are needed") as caught:
            saver(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 3
    assert newest_verified(run).step == 0
    assert not list(run.path.rglob(".tmp-*"))


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, state = toy_run(tmp_path), toy_state()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"needs 1,\d{3},\d{3} bytes, the disk has 1,000 free"):
        Saver(run)(state)
    assert list(run.checkpoints.iterdir()) == []


# 6: damaged checkpoints


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, unbroken: State, name: str, damage: str
) -> None:
    run = toy_run(tmp_path)
    with pytest.raises(Interrupted):
        train(run, on_event=stop_at(6))
    _best, (_, older), (_, newest) = run.checkpoint_steps()
    file = newest / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
        file.write_bytes(flipped if damage == "flip" else content[:middle])
    found = newest_verified(run)
    assert found.path == older
    ((path, reason),) = found.damaged
    assert path == newest
    assert name in reason
    state = train(run)
    assert weight_bytes(state) == weight_bytes(unbroken)
    assert steps_of(run) == list(range(1, STEPS + 1))
    (resumed,) = (one for one in read_metrics(run.metrics) if one["event"] == "resumed")
    assert str(newest) in resumed["damaged"][0]
    assert (run.checkpoints / f"damaged-{newest.name}").is_dir()


def test_without_any_checkpoint_that_verifies_the_resume_is_refused(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    with pytest.raises(Interrupted):
        train(run, on_event=stop_at(6))
    for _, path in run.checkpoint_steps():
        (path / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(IntegrityError, match="no checkpoint verifies") as caught:
        resume(toy_state(), run)
    assert len(caught.value.faults) == 3


def test_a_checkpoint_of_another_model_is_refused_with_the_first_mismatches(
    tmp_path: Path,
) -> None:
    run, other = toy_run(tmp_path), toy_state()
    Saver(run)(toy_state())
    other.bare.first = torch.nn.Linear(8, 12)
    before = weight_bytes(other)
    with pytest.raises(IntegrityError, match="2 tensors do not fit") as caught:
        resume(other, run)
    assert "first.bias: saved ((16,)" in caught.value.faults[0]
    assert weight_bytes(other) == before


# 8 and 9: the same again, and resumed


def test_the_same_run_twice_gives_the_same_bytes_and_another_seed_does_not(
    tmp_path: Path, unbroken: State
) -> None:
    again = train(toy_run(tmp_path, "again"))
    other = train(toy_run(tmp_path, "other"), toy_state(seed=4))
    assert weight_bytes(again) == weight_bytes(unbroken)
    assert weight_bytes(other) != weight_bytes(unbroken)


@pytest.mark.parametrize("step", range(STEPS))
def test_interrupted_at_any_step_and_resumed_gives_the_bytes_of_an_unbroken_run(
    tmp_path: Path, unbroken: State, step: int
) -> None:
    """With dropout and accumulation, mid-epoch, weights and moments."""
    run = toy_run(tmp_path)
    if step:
        with pytest.raises(Interrupted):
            train(run, on_event=stop_at(step))
    else:
        stop = Stop()
        stop.request()
        with pytest.raises(Interrupted):
            list(fit(toy_state(), toy_source(), toy_update(), Hooks(None, Saver(run), stop)))
    assert newest_verified(run).step == step
    torch.rand(100)  # whatever the process did in between must not matter
    state = train(run)
    assert weight_bytes(state) == weight_bytes(unbroken)
    assert moment_bytes(state) == moment_bytes(unbroken)
    expected = unbroken.progress
    assert (state.progress.best_step, state.progress.best_loss, state.progress.tokens) == (
        expected.best_step,
        expected.best_loss,
        expected.tokens,
    )
    assert steps_of(run) == list(range(1, STEPS + 1))


# 10: numbers that are none


def events_of(state: State, **given: Any) -> list[Event]:
    found: list[Event] = []
    try:
        for event in fit(state, toy_source(), toy_update(eval_every=0, **given), Hooks()):
            found.append(event)  # noqa: PERF402 - what came before an error counts
    except TrainingError as error:
        found.append(error)  # type: ignore[arg-type]  # the test looks at it
    return found


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_number_skips_the_step_and_changes_nothing(where: str) -> None:
    state, rows = toy_state(), toy_source().steps(0)[4]
    snapshots: dict[int, tuple[bytes, bytes]] = {}

    def after(batch: ToyBatch, loss: torch.Tensor) -> torch.Tensor:
        step = state.progress.step
        if step in {4, 5} and step not in snapshots:
            snapshots[step] = (weight_bytes(state), moment_bytes(state))
        if step == 4 and where == "loss":
            return loss * float("nan") if batch.rows == rows[2:] else loss
        if step == 4:
            loss.register_hook(lambda grad: grad * float("inf"))
        return loss

    state.bare.after = after
    events = events_of(state)
    (skipped,) = (one for one in events if isinstance(one, Skipped))
    assert skipped.step == 5
    assert skipped.rows == (rows[2:] if where == "loss" else rows)
    assert skipped.reason in {"loss is nan", "gradient norm is nan", "gradient norm is inf"}
    assert skipped.reason.startswith(where)
    assert snapshots[4] == snapshots[5]
    assert [one.step for one in events if isinstance(one, Stepped)] == [
        step for step in range(1, STEPS + 1) if step != 5
    ]


def test_three_bad_steps_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    run, state = toy_run(tmp_path), toy_state()
    bad = (2, 3, 5, 6, 7)  # two, then three in a row
    state.bare.after = lambda _, loss: loss * (float("nan") if state.progress.step in bad else 1)
    with pytest.raises(TrainingError, match="3 steps in a row") as caught:
        train(run, state)
    assert caught.value.exit_code == 5
    assert str(run.checkpoint(5)) in caught.value.hint
    records = list(read_metrics(run.metrics))
    assert [one["step"] for one in records if one["event"] == "skipped"] == [3, 4, 6, 7, 8]
    assert all("loss" not in one for one in records if one["event"] == "skipped")


# 11: memory


def out_of_memory(state: State, most: int, error: Exception) -> list[int]:
    sizes: list[int] = []

    def before(batch: ToyBatch) -> None:
        sizes.append(len(batch.rows))
        if len(batch.rows) > most:
            raise error

    state.bare.before = before
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_without_memory_the_micro_batch_halves_and_the_step_stays(error: Exception) -> None:
    """The step's loss, gradient and rows are those of a run that began with the small size."""
    short, small = toy_state(micro=4, dropout=0.0), toy_state(micro=1, dropout=0.0)
    sizes = out_of_memory(short, 1, error)
    events, expected = events_of(short), events_of(small)
    assert sizes[:3] == [4, 2, 1]
    shrunk = [one for one in events if isinstance(one, Shrunk)]
    assert [(one.step, one.micro_batches, one.rows) for one in shrunk] == [(1, 2, 2), (1, 4, 1)]
    assert short.limits.rows == 1
    losses = [one.loss for one in events if isinstance(one, Stepped)]
    assert losses == [one.loss for one in expected if isinstance(one, Stepped)]
    assert weight_bytes(short) == weight_bytes(small)


def test_memory_that_does_not_hold_one_row_ends_the_run_with_a_next_move() -> None:
    state = toy_state(micro=4)
    out_of_memory(state, 0, MemoryError())
    with pytest.raises(ResourceError, match="One row alone") as caught:
        list(fit(state, toy_source(), toy_update(), Hooks()))
    assert caught.value.exit_code == 3
    assert "data.max_length" in caught.value.hint


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    state = toy_state(micro=4)
    out_of_memory(state, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(fit(state, toy_source(), toy_update(), Hooks()))


# 12: two runs in one folder


def test_a_folder_in_use_is_refused_with_the_pid(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    with run.lock(), pytest.raises(InputError, match=f"process {os.getpid()} ") as caught:
        train(run)
    assert f"kill -INT {os.getpid()}" in caught.value.hint
    train(run, update=toy_update(1))  # the lock was given back


def test_the_lock_of_a_dead_process_is_taken_over_and_its_temporaries_go(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    program = (
        "import os, signal, sys, time\n"
        "from halfbyte.run import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert run.user() is not None
        with pytest.raises(InputError, match=f"process {process.pid} "):
            train(run)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while run.user() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    (run.checkpoints / ".tmp-step-000001-1-abc").mkdir(parents=True)
    (run.path / ".tmp-metrics.jsonl-1-abc").write_text("half")
    with run.lock() as before:
        assert before is not None
        assert before.pid == process.pid
        assert not list(run.path.rglob(".tmp-*"))
    assert run.user() is None


def test_a_saved_event_comes_only_once_the_checkpoint_verifies(tmp_path: Path) -> None:
    seen: list[str] = []

    def on_event(event: Event, stop: Stop) -> None:
        if isinstance(event, Saved):
            seen.append(fault(Path(event.path)))

    train(toy_run(tmp_path), on_event=on_event)
    assert len(seen) > 3
    assert not any(seen)
