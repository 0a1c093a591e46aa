"""Vocabulary projection and cross-entropy in one function that never holds all logits.

A vocabulary of 50,000 makes one float32 logit row 200 kB: the logits of a few thousand tokens
would be the largest thing in memory. Here a chunk of rows is projected, turned into its losses and
its gradient at once, and overwritten by the next chunk. The backward pass then only scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from halfbyte.model.fast.narrow import product, slices

__all__ = ["Head", "nll_sum", "nll_values"]

# One chunk of float32 logits. Smaller ones make the matrix products thin: 384 rows of 49,152 logits
# took 1.43, 1.08, 0.85, 0.71 and 0.82 s with 4, 8, 16, 32 and 64 MiB (one thread, AVX2).
CHUNK_BYTES = 32 << 20


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

    @property
    def chunk(self) -> int:
        """Rows of logits computed at once."""
        return max(16, CHUNK_BYTES // (4 * self.weight.shape[0]))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, V] of hidden states [n, H]."""
        logits = self._product(hidden).float()
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.weight.dtype == hidden.dtype:
            return torch.nn.functional.linear(hidden, self.weight, self.bias)
        out = product(hidden, self.weight)
        return out if self.bias is None else out.add_(self.bias)

    def to_hidden(self, gradient: torch.Tensor, out: torch.Tensor) -> None:
        """Write gradient @ weight [n, H] into `out`; `gradient` [n, V] is by the product."""
        if self.weight.dtype == gradient.dtype:
            torch.mm(gradient, self.weight, out=out)
            return
        out.zero_()
        for part, weight in slices(self.weight, gradient.dtype):
            out.addmm_(gradient[:, part], weight)

    def pull_back(self, gradient: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        """In place: the gradient by the logits into that by hidden @ weight.T + bias."""
        if self.softcap is not None and logits is not None:
            gradient.mul_(1 - (logits / self.softcap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


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
    for start in range(0, len(target), head.chunk):
        part = slice(start, start + head.chunk)
        logits = head.logits(hidden[part])
        chosen = logits.gather(1, target[part, None])[:, 0]
        correct[part] = logits.argmax(dim=1) == target[part]
        nll[part] = logits.logsumexp(dim=1) - chosen
    return nll, correct


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
        for start in range(0, len(target), head.chunk):
            part = slice(start, start + head.chunk)
            gradient, loss = _chunk(head, hidden[part], target[part], weight[part])
            total += loss
            gradient = gradient.to(hidden.dtype)
            if to_hidden is not None:
                head.to_hidden(gradient, to_hidden[part])
            if to_weight is not None:
                to_weight += gradient.T @ hidden[part]
            if to_bias is not None:
                to_bias += gradient.sum(dim=0, dtype=torch.float32)
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


def _chunk(
    head: Head, hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient by the raw logits [n, V] and the weighted loss of some rows."""
    logits = head.logits(hidden)
    kept = logits.clone() if head.softcap is not None else None
    places = target[:, None]
    log_probability = torch.log_softmax(logits, dim=1, out=logits)
    loss = -(log_probability.gather(1, places)[:, 0] * weight).sum()
    gradient = log_probability.exp_().mul_(weight[:, None])
    gradient.scatter_add_(1, places, -weight[:, None])
    return head.pull_back(gradient, kept), loss
