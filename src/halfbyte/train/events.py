"""What the loop says: frozen records, consumed by console, metrics.jsonl, TensorBoard and plots."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Started:
    """The loop begins (again): at `step` of `steps`, over `processes` processes."""

    kind: ClassVar[str] = "started"
    step: int
    steps: int
    processes: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The state is that of the checkpoint at `path`. `damaged`: newer ones that did not verify,
    each with its reason; `notes`: what differs from the first start without mattering."""

    kind: ClassVar[str] = "resumed"
    step: int
    path: str
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer update.

    `loss`: nats a trained token, over the whole step. `epoch`: passes over the rows so far.
    `trained`, `tokens`: trained and all real tokens of the step. `lr`: rate of the first group.
    `grad_norm`: before clipping. `seconds`: wall time since the previous step's end, evaluation
    and saving left out. `memory`: peak bytes of the process (on CUDA: of the device) so far.
    """

    kind: ClassVar[str] = "stepped"
    step: int
    epoch: float
    loss: float
    rows: int
    trained: int
    tokens: int
    micro_batches: int
    lr: float
    grad_norm: float
    seconds: float
    memory: int

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step whose loss or gradient was not finite: nothing was updated. It has no loss.

    `rows`: the data-set indices of the micro-batches to blame (of all, if only the gradient tells).
    """

    kind: ClassVar[str] = "skipped"
    step: int
    epoch: float
    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Memory did not suffice: the step was computed again in `micro_batches` smaller parts."""

    kind: ClassVar[str] = "shrunk"
    step: int
    micro_batches: int
    rows: int
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The held-out rows: `loss` in nats a trained token; `best`: none was lower before."""

    kind: ClassVar[str] = "evaluated"
    step: int
    loss: float
    best: bool
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss): infinite rather than an overflow."""
        return math.inf if self.loss > 700 else math.exp(self.loss)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is on the disk, whole and verified by its manifest."""

    kind: ClassVar[str] = "saved"
    step: int
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """A signal asked to stop, and everything is saved; `Interrupted` is raised next."""

    kind: ClassVar[str] = "stopped"
    step: int
    signal: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The training is over: `reason` is `steps` (all taken) or `patience` (no better for long)."""

    kind: ClassVar[str] = "finished"
    step: int
    reason: str
    best_step: int | None
    best_loss: float | None
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """The checkpoint of the best step does not verify and was set aside: the result has the weights
    of `step` instead."""

    kind: ClassVar[str] = "dropped"
    step: int
    best_step: int
    reason: str


Event = (
    Started
    | Resumed
    | Stepped
    | Skipped
    | Shrunk
    | Evaluated
    | Saved
    | Stopped
    | Finished
    | Dropped
)


def to_record(event: Event) -> dict[str, Any]:
    """The event as one line of metrics.jsonl: its kind, its fields, and what follows from them."""
    record = {"event": event.kind, **asdict(event)}
    if isinstance(event, Evaluated):
        record["perplexity"] = event.perplexity
    if isinstance(event, Stepped):
        record["tokens_per_second"] = round(event.tokens_per_second, 3)
    return record
