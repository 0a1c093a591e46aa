"""What a training is at a moment: everything a checkpoint keeps, and what the loop works on."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils.dataclasses import DistributedDataParallelKwargs, DistributedType
from accelerate.utils.operations import gather_object
from torch import nn

from halfbyte.config import TrainSettings
from halfbyte.data.batches import MicroLimits
from halfbyte.errors import InputError
from halfbyte.model.fast.narrow import Narrow
from halfbyte.train.optimizers import OptimizerSettings, build_optimizer
from halfbyte.train.schedules import Schedule, every, total_steps, warmup_steps
from halfbyte.train.seeds import seed_all

_LAUNCHES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class MicroBatch(Protocol):
    """What the loop asks of a micro-batch; `data.Batch` is one."""

    @property
    def weight(self) -> torch.Tensor:
        """Float32 [N]: how many rows share each target; its sum is the trained tokens."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Data-set indices of its rows."""

    @property
    def tokens(self) -> int:
        """Real tokens of its rows."""

    def to(self, device: torch.device | str) -> Any:
        """The same on a device."""


class Source:
    """The rows of a training: `order(epoch)` gives its steps as tuples of row indices, and
    `plan(rows, limits)` the micro-batches of the rows of one step."""

    def __init__(
        self,
        order: Callable[[int], Sequence[tuple[int, ...]]],
        plan: Callable[[Sequence[int], MicroLimits], Sequence[MicroBatch]],
    ) -> None:
        self.plan = plan
        self._order = order
        self._epoch: tuple[int, Sequence[tuple[int, ...]]] | None = None

    def steps(self, epoch: int) -> Sequence[tuple[int, ...]]:
        """The steps of an epoch; the last one asked for is remembered."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1]


@dataclass(slots=True)
class Progress:
    """Counters, all of which a checkpoint keeps.

    `step`: completed steps; `position`: those of them in `epoch`. `tokens`, `seconds`: of all
    steps. `skipped_in_row`: steps skipped since the last good one. `evaluated_at`: the step of the
    last evaluation. `without_better`: evaluations since the best. `loss_scale`: for fp16 compute,
    else 1; `scale_age`: steps since it changed.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    evaluated_at: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    without_better: int = 0
    loss_scale: float = 1.0
    scale_age: int = 0

    def advance(self, steps_in_epoch: int, tokens: int, seconds: float, *, skipped: bool) -> None:
        """Count one more step; a skipped one has used up its rows too."""
        self.step += 1
        self.position += 1
        if self.position >= steps_in_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        self.tokens += 0 if skipped else tokens
        self.seconds += seconds
        self.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0


@dataclass(frozen=True, slots=True)
class Update:
    """How the loop steps, and when it evaluates, saves and ends (in steps)."""

    schedule: Schedule
    max_grad_norm: float = 1.0
    eval_every: int = 0
    save_every: int = 0
    patience: int | None = None
    keep_best: bool = True
    max_skips: int = 3

    @property
    def steps(self) -> int:
        """All steps of the training."""
        return self.schedule.steps

    def evaluates(self, progress: Progress) -> bool:
        """Whether an evaluation is due: before the first step, every so often, and in the end."""
        due = self.done(progress) or (self.eval_every and progress.step % self.eval_every == 0)
        return bool(due) and progress.evaluated_at != progress.step

    def saves(self, progress: Progress) -> bool:
        """Whether a checkpoint is due: every so often, and where the held-out loss was the best."""
        best = self.keep_best and progress.best_step == progress.step
        every_so_often = self.save_every and progress.step % self.save_every == 0
        return progress.step > 0 and bool(best or every_so_often)

    def done(self, progress: Progress) -> bool:
        """Whether all steps are taken, or patience has ended."""
        impatient = self.patience is not None and progress.without_better >= self.patience
        return progress.step >= self.steps or impatient

    def judge(self, progress: Progress, loss: float) -> bool:
        """Book a held-out loss; whether it is the best of the steps so far.

        The base's own (step 0) is no candidate: a run's model is one that was trained.
        """
        progress.evaluated_at = progress.step
        if progress.step == 0:
            return False
        best = math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
        progress.without_better = 0 if best else progress.without_better + 1
        return best

    @classmethod
    def of(cls, train: TrainSettings, steps_per_epoch: int) -> Update:
        """From the settings, once the number of steps in an epoch is known."""
        steps = total_steps(train.epochs, steps_per_epoch, train.max_steps)
        return cls(
            Schedule(train.schedule, steps, warmup_steps(train.warmup, steps)),
            train.max_grad_norm,
            every(train.eval_every, steps_per_epoch),
            every(train.save_every, steps_per_epoch),
            train.patience,
            train.keep_best,
        )


@dataclass(slots=True)
class State:
    """The parts the loop changes. `module(micro_batch)` returns the summed weighted loss.

    `scaled`: float16 is in play, so the loss is scaled. `saved_at`: the step of the newest whole
    checkpoint; `last_good`: its path, for messages.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    limits: MicroLimits
    seed: int
    progress: Progress = field(default_factory=Progress)
    scaled: bool = False
    saved_at: int | None = None
    last_good: str = ""
    _modules: list[nn.Module] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._modules = list(self.module.modules())

    def training(self) -> None:
        """Every module in training mode. Asking 2,500 modules takes 0.4 ms, setting them 11."""
        if not all(module.training for module in self._modules):
            self.module.train()

    @property
    def bare(self) -> nn.Module:
        """The module without what the launcher wrapped around it."""
        bare: nn.Module = self.accelerator.unwrap_model(self.module)
        return bare

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in the module's order."""
        return {name: one for name, one in self.bare.named_parameters() if one.requires_grad}

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all processes; every process must ask at the same place."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        summed: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return summed.tolist()

    def agreed(self, number: int) -> int:
        """The signal that stops all processes: this one's, SIGTERM for another's, 0 for none."""
        (any_signal,) = self.total(number)
        return number or (signal.SIGTERM if any_signal else 0)

    def union(self, rows: Sequence[int]) -> tuple[int, ...]:
        """The rows of all processes; every process must ask at the same place."""
        if self.accelerator.num_processes == 1:
            return tuple(rows)
        return tuple(sorted(set(gather_object(list(rows)))))

    def set_rate(self, factor: float) -> float:
        """Set every group's rate to its peak times `factor`; returns the first group's."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's part of a step's rows; neighbours, as they may share prefixes."""
        count, process = self.accelerator.num_processes, self.accelerator.process_index
        return rows[len(rows) * process // count : len(rows) * (process + 1) // count]


def make_accelerator(cpu: bool = False) -> Accelerator:
    """One Accelerator, as the launcher's environment says; `cpu` keeps off a GPU.

    Raises:
        InputError: a launch mode whose checkpoints we cannot write.
    """
    # Only gradients travel between processes: our modules have no buffers that training changes.
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="no", gradient_accumulation_steps=1, kwargs_handlers=[handler]
    )
    if accelerator.distributed_type not in _LAUNCHES:
        raise InputError(
            f"accelerate launched this as {accelerator.distributed_type.value}: its sharded state "
            "cannot be saved and resumed exactly yet",
            "Launch with --multi_gpu or --multi_cpu (one whole copy in each process).",
        )
    return accelerator


def prepare_state(
    module: nn.Module,
    settings: OptimizerSettings,
    limits: MicroLimits,
    seed: int,
    accelerator: Accelerator | None = None,
) -> State:
    """The state before the first step. The module's weights are kept, moved to the device.

    Generators are seeded here, so that a caller's own draws do not matter; the loss scale is 2^16
    where the module computes with float16 weights, else 1.
    """
    accelerator = accelerator or make_accelerator()
    seed_all(seed, accelerator.device)
    computing = (each for each in module.modules() if not isinstance(each, Narrow))
    weights = (one for each in computing for one in each.parameters(recurse=False))
    halves = any(one.dtype == torch.float16 for one in weights)
    optimizer = build_optimizer(module, settings, accelerator.device)
    with warnings.catch_warnings():
        # torch 2.13 renames the argument; accelerate and torch 2.8 know only the old name
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        module, optimizer = accelerator.prepare(module, optimizer)
    progress = Progress(loss_scale=2.0**16 if halves else 1.0)
    return State(module, optimizer, accelerator, limits, seed, progress, scaled=halves)
