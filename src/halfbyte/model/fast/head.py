"""Vocabulary projection and cross-entropy in one function that never holds all logits.

A vocabulary of 50,000 makes one float32 logit row 200 kB: the logits of a few thousand tokens
would be the largest thing in memory. Here a chunk of rows is projected, turned into its losses and
its gradient in place, and overwritten by the next chunk. The backward pass then only scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from halfbyte.model.fast.narrow import product, slices

__all__ = ["Head", "chunk_rows", "nll_sum", "nll_values"]

# One chunk of logits in the type of the products. Smaller ones make the products thin: 384 rows of
# 49,152 float32 logits took 1.43, 1.08, 0.85, 0.71 and 0.82 s with 4, 8, 16, 32 and 64 MiB (one
# thread, AVX2); 1,020 bf16 rows 0.45 and 0.36 s with 16 and 32 MiB (two threads, AVX512-BF16).
CHUNK_BYTES = 32 << 20
# On a CPU the softmax takes a few rows of a chunk at a time, which stay in the cache.
_SLICE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The output projection: logits = softcap(scale * (hidden @ weight.T + bias)).

    `weight` [V, H], in the type of the hidden states or a narrower one; `bias` [V] or None;
    `softcap(z)` is cap * tanh(z / cap), or nothing with None (Gemma-2, arXiv:2408.00118); `scale`
    is Cohere's logit_scale or Granite's 1 / logits_scaling.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def project(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write hidden @ weight.T + bias [n, V] into `out`, in the type of `hidden`."""
        if self.weight.dtype != hidden.dtype:
            product(hidden, self.weight, out)
            if self.bias is not None:
                out.add_(self.bias)
        elif self.bias is None:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.T, out=out)

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """In place: projected scores into logits."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def to_hidden(self, gradient: torch.Tensor, out: torch.Tensor) -> None:
        """Write gradient @ weight [n, H] into `out`; `gradient` [n, V] is by the product."""
        if self.weight.dtype == gradient.dtype:
            torch.mm(gradient, self.weight, out=out)
            return
        out.zero_()
        for part, weight in slices(self.weight, gradient.dtype):
            out.addmm_(gradient[:, part], weight)

    def pull_back(self, gradient: torch.Tensor, logits: torch.Tensor | None) -> None:
        """In place: the gradient by the logits into that by hidden @ weight.T + bias."""
        if self.softcap is not None and logits is not None:
            gradient.mul_(1 - (logits / self.softcap).square_())
        if self.scale != 1.0:
            gradient.mul_(self.scale)


def chunk_rows(count: int, row_bytes: int) -> int:
    """How many of `count` rows of logits are computed at once: CHUNK_BYTES in even parts, or an
    eighth more, because a few rows left over would read the whole head again.
    """
    usual = max(16, CHUNK_BYTES // row_bytes)
    return -(-count // max(1, math.ceil(count / usual - 1 / 8)))


def nll_sum(
    head: Head, hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """sum(weight * nll) as a float32 scalar, differentiable by hidden, head weight and bias.

    Shapes: hidden [N, H], target int64 [N], weight float32 [N].
    """
    if torch.is_grad_enabled():
        total: torch.Tensor = _NllSum.apply(hidden, head.weight, head.bias, (target, weight), head)
        return total
    nll, _ = nll_values(head, hidden, target)
    return (nll * weight).sum()


@torch.no_grad()
def nll_values(
    head: Head, hidden: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of N targets: nll in nats (float32) and whether it is the most likely token."""
    nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
    correct = torch.empty(len(target), dtype=torch.bool, device=hidden.device)
    work = _Work(head, hidden)
    for part in work.chunks():
        head.project(hidden[part], scores := work.scores(part))
        for rows in work.slices(part):
            logits = head.finish(work.widened(scores, rows, part.start))
            chosen = logits.gather(1, target[rows, None])[:, 0]
            correct[rows] = logits.argmax(dim=1) == target[rows]
            nll[rows] = logits.logsumexp(dim=1) - chosen
    return nll, correct


class _Work:
    """The memory in which the scores of N hidden states are computed, chunk by chunk."""

    def __init__(self, head: Head, hidden: torch.Tensor) -> None:
        self._count, vocabulary = len(hidden), head.weight.shape[0]
        self._chunk = chunk_rows(self._count, vocabulary * hidden.dtype.itemsize)
        few = max(1, _SLICE_BYTES // (torch.float32.itemsize * vocabulary))
        self._slice = min(self._chunk, few if hidden.device.type == "cpu" else self._chunk)
        self._scores = hidden.new_empty(self._chunk, vocabulary)
        self._wide = None  # the scores themselves serve where they are float32
        if hidden.dtype != torch.float32:
            self._wide = hidden.new_empty(self._slice, vocabulary, dtype=torch.float32)

    def chunks(self) -> Iterator[slice]:
        """Places projected at once."""
        for start in range(0, self._count, self._chunk):
            yield slice(start, min(start + self._chunk, self._count))

    def slices(self, chunk: slice) -> Iterator[slice]:
        """Places of a chunk whose softmax is computed at once."""
        for start in range(chunk.start, chunk.stop, self._slice):
            yield slice(start, min(start + self._slice, chunk.stop))

    def scores(self, chunk: slice) -> torch.Tensor:
        """[n, V] for a chunk; the next chunk overwrites it."""
        return self._scores[: chunk.stop - chunk.start]

    def widened(self, scores: torch.Tensor, rows: slice, start: int) -> torch.Tensor:
        """The float32 scores of some places of the chunk that begins at `start`."""
        part = scores[rows.start - start : rows.stop - start]
        return part if self._wide is None else self._wide[: len(part)].copy_(part)


class _NllSum(torch.autograd.Function):
    """The gradients are made in the forward pass: they are linear in the one number that backward
    gets, and so the logits need not be computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head_weight: torch.Tensor,
        head_bias: torch.Tensor | None,
        goal: tuple[torch.Tensor, torch.Tensor],
        head: Head,
    ) -> torch.Tensor:
        target, weight = goal
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        head = Head(head_weight.detach(), head_bias, head.scale, head.softcap)
        to_hidden = torch.empty_like(hidden) if by_hidden else None
        to_weight = torch.zeros_like(head_weight, dtype=torch.float32) if by_weight else None
        to_bias = (
            torch.zeros_like(head_bias, dtype=torch.float32)
            if head_bias is not None and by_bias
            else None
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        work = _Work(head, hidden)
        for part in work.chunks():
            head.project(hidden[part], gradient := work.scores(part))
            for rows in work.slices(part):
                wide = work.widened(gradient, rows, part.start)
                total += (_turn(head, wide, target[rows]) * weight[rows]).sum()
                if to_bias is not None:
                    to_bias += weight[rows] @ wide
                if wide.dtype != gradient.dtype:
                    gradient[rows.start - part.start : rows.stop - part.start].copy_(wide)
            scale = weight[part, None]
            if to_hidden is not None:
                head.to_hidden(gradient, to_hidden[part])
                to_hidden[part].mul_(scale)
            if to_weight is not None:
                to_weight += gradient.T @ (hidden[part] * scale).to(gradient.dtype)
        ctx.gradients = to_hidden, to_weight, to_bias
        ctx.dtypes = head_weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        to_hidden, to_weight, to_bias = ctx.gradients
        ctx.gradients = None  # a second backward would scale them twice
        scale = outputs[0]
        return (
            None if to_hidden is None else to_hidden.mul_(scale),
            None if to_weight is None else to_weight.mul_(scale).to(ctx.dtypes),
            None if to_bias is None else to_bias.mul_(scale).to(ctx.dtypes),
            None,
            None,
        )


def _turn(head: Head, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scores [n, V] in place into the gradients of each place's loss by them; these losses [n]."""
    logits = head.finish(scores)
    kept = logits.clone() if head.softcap is not None else None
    places = target[:, None]
    # log sum exp from the likeliest token's probability, which cannot underflow: log_softmax and
    # its exponential would go through all logits once more
    top, chosen = logits.amax(dim=1), logits.gather(1, places)[:, 0]
    gradient = torch.softmax(logits, dim=1, out=logits)
    loss = top - gradient.amax(dim=1).log_() - chosen
    gradient.scatter_add_(1, places, gradient.new_full(places.shape, -1.0))
    head.pull_back(gradient, kept)
    return loss
