"""A training in miniature, without a language model: rows of vectors, a net with dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfbyte.data.batches import MicroLimits
from halfbyte.run import MetricsLog, RunFolder
from halfbyte.train import (
    Event,
    Hooks,
    OptimizerSettings,
    Saver,
    Schedule,
    Source,
    State,
    Stop,
    Update,
    fit,
    held_out_loss,
    make_accelerator,
    prepare_state,
    resume,
    to_record,
)

ROWS, WIDTH, CLASSES = 21, 8, 5
BATCH = 4  # 6 steps an epoch, the last of a single row: fewer than two processes


@dataclass(frozen=True)
class ToyBatch:
    """Rows of different lengths: row i has 1 + i % 3 targets."""

    inputs: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    rows: tuple[int, ...]
    tokens: int

    def to(self, device: torch.device | str) -> ToyBatch:
        return replace(self, inputs=self.inputs.to(device), target=self.target.to(device))


class ToyLoss(nn.Module):
    """Summed weighted loss of a micro-batch; `before` may spoil it."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(16, CLASSES)
        self.before: Callable[[ToyBatch], None] = lambda batch: None
        self.after: Callable[[ToyBatch, torch.Tensor], torch.Tensor] = lambda batch, loss: loss

    def forward(self, batch: ToyBatch) -> torch.Tensor:
        self.before(batch)
        hidden = self.dropout(self.norm(torch.tanh(self.first(batch.inputs))))
        nll = nn.functional.cross_entropy(self.second(hidden), batch.target, reduction="none")
        return self.after(batch, (nll * batch.weight).sum())


def toy_batch(rows: Sequence[int]) -> ToyBatch:
    maker = torch.Generator().manual_seed(7)
    inputs = torch.randn(ROWS, 3, WIDTH, generator=maker)
    # learnable: the class is where the first inputs are largest
    target = inputs[:, :, :CLASSES].argmax(dim=-1)
    counts = [1 + row % 3 for row in rows]
    return ToyBatch(
        torch.cat([inputs[row, :n] for row, n in zip(rows, counts, strict=True)]),
        torch.cat([target[row, :n] for row, n in zip(rows, counts, strict=True)]),
        torch.ones(sum(counts)),
        tuple(rows),
        sum(counts),
    )


def toy_order(epoch: int) -> list[tuple[int, ...]]:
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
    return [tuple(rows[i : i + BATCH]) for i in range(0, ROWS, BATCH)]


def toy_plan(rows: Sequence[int], limits: MicroLimits) -> list[ToyBatch]:
    return [toy_batch(rows[i : i + limits.rows]) for i in range(0, len(rows), limits.rows)]


def toy_state(
    seed: int = 3, micro: int = 2, dropout: float = 0.3, lr: float = 0.05, **settings: Any
) -> State:
    torch.manual_seed(1)  # the same initial weights whatever the seed of the training
    return prepare_state(
        ToyLoss(dropout),
        OptimizerSettings(lr, **settings),
        MicroLimits(rows=micro, tokens=1000),
        seed,
        make_accelerator(cpu=True),
    )


def toy_source() -> Source:
    return Source(toy_order, toy_plan)


def toy_update(steps: int = 9, **given: Any) -> Update:
    return Update(Schedule("cosine", steps, 2), **({"eval_every": 4, "save_every": 5} | given))


def toy_evaluate(state: State, stop: Stop | None = None) -> Callable[[], float | None]:
    def batches(rows: Sequence[int]) -> Iterator[ToyBatch]:
        return (toy_batch([row]) for row in rows)

    return lambda: held_out_loss(
        state, batches, ROWS, stopping=lambda: bool(stop is not None and stop.signal)
    )


def toy_run(tmp_path: Path, name: str = "toy") -> RunFolder:
    return RunFolder.create(tmp_path, name, "method: full\n")


def train(
    run: RunFolder,
    state: State | None = None,
    update: Update | None = None,
    on_event: Callable[[Event, Stop], None] = lambda event, stop: None,
    keep: int = 2,
) -> State:
    """Train (or go on) in a run folder as the composition root does; returns the final state."""
    state = state or toy_state()
    stop = Stop()
    with run.lock():
        resumed = resume(state, run)
        hooks = Hooks(toy_evaluate(state, stop), Saver(run, keep), stop, f"resume {run.path}")
        with MetricsLog(run.metrics) as log:
            if resumed:
                log.append(to_record(resumed))
            for event in fit(state, toy_source(), update or toy_update(), hooks):
                log.append(to_record(event))
                on_event(event, stop)
    return state


def weight_bytes(state: State) -> bytes:
    return b"".join(one.detach().numpy().tobytes() for one in state.trainable().values())


def moment_bytes(state: State) -> bytes:
    return b"".join(
        value.numpy().tobytes()
        for one in state.trainable().values()
        for _, value in sorted(state.optimizer.state[one].items())
    )
