"""The gradient of one step: micro-batches summed, over all processes, whatever memory allows.

The step's loss is sum(weight * nll) over all its micro-batches and processes, divided by the sum
of the weights. Each micro-batch contributes its sum times one common factor, so that the split
changes nothing but rounding.
"""

from __future__ import annotations

import math
import re
import resource
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from halfbyte.errors import ResourceError
from halfbyte.train import seeds
from halfbyte.train.events import Shrunk
from halfbyte.train.state import MicroBatch, Source, State

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "alloc_failed")
_SCALE_GROWS_AFTER = 2000  # steps, as in torch's own gradient scaler
_HIGHEST_SCALE = 2.0**24


@dataclass(frozen=True, slots=True)
class Gradient:
    """A step's gradient is in the parameters (clipped); this is what is known of it.

    `loss`: nats a trained token; `norm`: before clipping; `bad_rows`: rows of this process's
    micro-batches whose loss is not finite; `shrunk`: how the micro-batches had to become smaller.
    """

    loss: float
    norm: float
    trained: int
    tokens: int
    micro_batches: int
    bad_rows: tuple[int, ...]
    shrunk: tuple[Shrunk, ...]

    @property
    def reason(self) -> str:
        """Why the step may not be taken; empty if it may."""
        if self.trained < 1:
            return "no trained token"
        if not math.isfinite(self.loss):
            return f"loss is {self.loss}"
        return "" if math.isfinite(self.norm) else f"gradient norm is {self.norm}"


def step_gradient(state: State, source: Source, rows: Sequence[int], max_norm: float) -> Gradient:
    """Put the gradient of the step over `rows` into the parameters, clipped to `max_norm`.

    Raises:
        ResourceError: one row alone is more than memory holds.
    """
    mine = state.share(rows)
    own = bool(mine)  # without rows, a process computes another's times zero: all must exchange
    mine = mine or rows[:1]
    # a training's first micro-batch is as full as any will be: what does not fit fails at once
    batches = source.plan(mine, replace(state.limits, even=state.progress.step > 0))
    weight, real = sum(float(one.weight.sum()) for one in batches), sum(b.tokens for b in batches)
    trained, tokens = state.total(weight * own, real * own)
    factor = own * state.accelerator.num_processes / max(trained, 1.0)
    shrunk: list[Shrunk] = []
    while True:
        losses = _backward(state, batches, factor)
        if isinstance(losses, str):
            batches = _smaller(state, source, mine, len(batches), losses)
            shrunk.append(_shrunk(state, batches, losses))
            continue
        (summed,) = state.total(float(losses.sum()) * own)
        norm = _clipped(state, max_norm)
        if not _overflowed(state, math.isfinite(summed) and math.isfinite(norm)):
            break
    bad = [b.rows for b, fine in zip(batches, losses.isfinite().tolist(), strict=True) if not fine]
    return Gradient(
        loss=summed / max(trained, 1.0),
        norm=norm,
        trained=round(trained),
        tokens=round(tokens),
        micro_batches=len(batches),
        bad_rows=tuple(row for some in bad for row in some),
        shrunk=tuple(shrunk),
    )


def _backward(state: State, batches: Sequence[MicroBatch], factor: float) -> torch.Tensor | str:
    """Accumulate the gradient; the micro-batches' summed losses (float64), or, where memory did
    not suffice, what the device said."""
    accelerator, last = state.accelerator, len(batches) - 1
    state.optimizer.zero_grad()
    state.training()
    progress = state.progress
    seed = seeds.step_seed(state.seed, progress.step, accelerator.process_index)
    seeds.seed_all(seed, accelerator.device)
    losses = []
    exchanging = False
    try:
        for number, batch in enumerate(batches):
            wait = nullcontext() if number == last else accelerator.no_sync(state.module)
            with wait:
                loss = state.module(batch.to(accelerator.device))
                exchanging = number == last and accelerator.num_processes > 1
                accelerator.backward(loss * (factor * progress.loss_scale))
            losses.append(loss.detach())
    except (RuntimeError, MemoryError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        if exchanging:
            raise ResourceError(
                f"Memory ran out while processes exchanged gradients: {reason}",
                "Lower train.micro_tokens or train.micro_batch; the step cannot be redone here.",
            ) from None
    else:
        return torch.stack(losses).double().cpu()
    state.optimizer.zero_grad()  # outside the except: the failed step's tensors are free by now
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return reason


def apply_gradient(state: State, factor: float) -> float:
    """Update the weights at the peak rate times `factor`; returns the rate of the first group.

    Raises:
        ResourceError: the optimizer's own state does not fit (it is made in the first step).
    """
    rate = state.set_rate(factor)
    try:
        state.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise ResourceError(
            f"Memory does not hold the optimizer's state: {reason}",
            "Use method=lora or qlora, a smaller lora.rank, or train.optimizer=adamw_8bit on CUDA.",
        ) from None
    return rate


def out_of_memory(error: BaseException) -> str | None:
    """The first line of an error that means memory did not suffice; None for any other error."""
    text = str(error).strip()
    words = text.lower()
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if known or any(word in words for word in _MEMORY_WORDS):
        return text.split("\n", 1)[0][:200] or type(error).__name__
    return None


def _smaller(
    state: State, source: Source, rows: Sequence[int], count: int, reason: str
) -> Sequence[MicroBatch]:
    """The same rows in more than `count` micro-batches; the halved limits stay for later steps."""
    limits = state.limits.halved()
    while limits is not None:
        batches = source.plan(rows, limits)
        if len(batches) > count:
            state.limits = limits
            return batches
        limits = limits.halved()
    raise ResourceError(
        f"One row alone is more than memory holds: {reason}",
        "Lower data.max_length, set train.checkpointing=on, or use method qlora.",
    )


def _shrunk(state: State, batches: Sequence[MicroBatch], reason: str) -> Shrunk:
    rows = max(len(batch.rows) for batch in batches)
    tokens = max(batch.tokens for batch in batches)
    return Shrunk(state.progress.step + 1, len(batches), rows, tokens, reason)


def _clipped(state: State, max_norm: float) -> float:
    """Undo the loss scale, clip, and return the norm before clipping."""
    parameters = [one for group in state.optimizer.param_groups for one in group["params"]]
    if state.progress.loss_scale != 1.0:
        grads = [one.grad for one in parameters if one.grad is not None]
        torch._foreach_mul_(grads, 1.0 / state.progress.loss_scale)
    return float(state.accelerator.clip_grad_norm_(parameters, max_norm))


def _overflowed(state: State, finite: bool) -> bool:
    """Adapt the loss scale of fp16 compute; true if the step must be computed again with it.

    Halving until 1 before a step is given up loses no rows to overflow, as skipping would.
    """
    progress = state.progress
    if not state.scaled:
        return False
    if not finite and progress.loss_scale > 1.0:
        progress.loss_scale /= 2.0
        progress.scale_age = 0
        return True
    progress.scale_age += 1
    if finite and progress.scale_age >= _SCALE_GROWS_AFTER:
        progress.loss_scale = min(progress.loss_scale * 2.0, _HIGHEST_SCALE)
        progress.scale_age = 0
    return False


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: of the device's allocator on CUDA, else of the process (resident)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        # getrusage's is at least what the program held that started this one
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
