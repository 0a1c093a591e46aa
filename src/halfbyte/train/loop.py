"""The training loop, on one screen: yields events, never prints, knows no model and no file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from halfbyte.errors import Interrupted, TrainingError
from halfbyte.train import events
from halfbyte.train.events import Event
from halfbyte.train.signals import Stop
from halfbyte.train.state import Source, State, Update
from halfbyte.train.step import apply_gradient, peak_memory, step_gradient


@dataclass(frozen=True, slots=True)
class Hooks:
    """What happens around the steps.

    `evaluate` returns the held-out loss in nats a trained token, or None when asked to stop midway.
    `save` writes a checkpoint. `resume`: the command that goes on after an interruption.
    """

    evaluate: Callable[[], float | None] | None = None
    save: Callable[[State], events.Saved] | None = None
    stop: Stop = field(default_factory=Stop)
    resume: str = "halfbyte resume RUN"


def fit(state: State, source: Source, update: Update, hooks: Hooks) -> Iterator[Event]:
    """Train until all steps are taken or patience ends; what is due at a step but was not done
    before an interruption (evaluating, saving) is done first.

    Raises:
        Interrupted: SIGINT or SIGTERM, after the step was finished and saved.
        TrainingError: several steps in a row had no finite gradient.
        ResourceError: a row alone, or a checkpoint, does not fit.
    """
    progress = state.progress
    with hooks.stop as stop:
        yield events.Started(progress.step, update.steps, state.accelerator.num_processes)
        while True:
            signal = state.agreed(stop.signal)
            if hooks.evaluate and not signal and update.evaluates(progress):
                yield from _evaluate(state, update, hooks.evaluate)
                signal = state.agreed(stop.signal)
            done = update.done(progress)
            due = bool(signal) or done or update.saves(progress)
            if hooks.save and due and state.saved_at != progress.step:
                yield hooks.save(state)
            if signal:
                yield events.Stopped(progress.step, signal)
                raise Interrupted(f"Stopped after step {progress.step}", hooks.resume, signal)
            if done:
                break
            yield from take_step(state, source, update)
    yield events.Finished(
        progress.step,
        "steps" if progress.step >= update.steps else "patience",
        progress.best_step,
        progress.best_loss,
        progress.tokens,
        progress.seconds,
    )


def take_step(state: State, source: Source, update: Update) -> Iterator[Event]:
    """One optimizer update over the next rows, or a skipped one; the counters move on either way.

    Raises:
        TrainingError: too many steps in a row were skipped.
    """
    progress, began = state.progress, time.perf_counter()
    steps = source.steps(progress.epoch)
    if progress.position >= len(steps):  # a forced resume with fewer steps in an epoch than before
        progress.epoch, progress.position = progress.epoch + 1, 0
        steps = source.steps(progress.epoch)
    rows = steps[progress.position]
    gradient = step_gradient(state, source, rows, update.max_grad_norm)
    yield from gradient.shrunk
    factor = update.schedule.factor(progress.step)
    lr = 0.0 if gradient.reason else apply_gradient(state, factor)
    state.optimizer.zero_grad()
    seconds = time.perf_counter() - began
    epoch = progress.epoch + (progress.position + 1) / len(steps)
    progress.advance(len(steps), gradient.tokens, seconds, skipped=bool(gradient.reason))
    if gradient.reason:
        bad = state.union(gradient.bad_rows) or tuple(rows)
        yield events.Skipped(progress.step, epoch, bad, gradient.reason)
        if progress.skipped_in_row >= update.max_skips:
            raise _hopeless(state, gradient.reason)
        return
    yield events.Stepped(
        step=progress.step,
        epoch=epoch,
        loss=gradient.loss,
        rows=len(rows),
        trained=gradient.trained,
        tokens=gradient.tokens,
        micro_batches=gradient.micro_batches,
        lr=lr,
        grad_norm=gradient.norm,
        seconds=seconds,
        memory=peak_memory(state.accelerator.device),
    )


def _evaluate(
    state: State, update: Update, evaluate: Callable[[], float | None]
) -> Iterator[Event]:
    progress, began = state.progress, time.perf_counter()
    loss = evaluate()
    if loss is None:  # asked to stop midway; done again after the resume
        return
    best = update.judge(progress, loss)
    yield events.Evaluated(progress.step, loss, best, time.perf_counter() - began)


def _hopeless(state: State, reason: str) -> TrainingError:
    count = state.progress.skipped_in_row
    return TrainingError(
        f"{count} steps in a row, the last of them step {state.progress.step}, "
        f"had no usable gradient: {reason}",
        f"The last good checkpoint is {state.last_good or 'none: nothing was saved yet'}. "
        "Look at the skipped rows in metrics.jsonl; lower train.learning_rate, "
        "or use model.compute=bf16 or fp32.",
    )
