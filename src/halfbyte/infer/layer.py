"""One decoder layer over packed tokens, written so that TorchScript can run it.

A small model's token takes milliseconds, of which Python's share, some 25 operators a layer, was
most: scripted, a step of 30 layers costs 3 ms beside its products instead of 10 (measured, one
thread). What TorchScript cannot take (4-bit layers that compute for themselves) runs the same code
in Python.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from halfbyte.infer.attention import Plan, attend

QKV, OUT, GATE_UP, DOWN = range(4)  # the places of a layer's projections in `Lora`
PROJECTIONS = 4


class Lora(NamedTuple):
    """The adapters of one layer, in groups of rows that take theirs together (pool.py).

    `rows`, `places`, `back`: of each group, see `Group`. `down`, `up`, `rescale`: at
    group * PROJECTIONS + projection; see `Factor`. Those of several slots have a dimension before.
    """

    rows: list[torch.Tensor]
    places: list[torch.Tensor]
    back: list[torch.Tensor]
    down: list[torch.Tensor]
    up: list[list[torch.Tensor]]
    rescale: list[torch.Tensor]


class Shape(NamedTuple):
    """What all layers of a model have in common."""

    heads: int
    kv_heads: int
    width: int  # of a head
    scale: float  # of attention scores
    eps: float
    activation: str  # silu, gelu or gelu_pytorch_tanh


class Norms(NamedTuple):
    """Weights of a layer's root mean square norms; those of heads may be empty."""

    before: torch.Tensor
    between: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor


class Layer(nn.Module):
    """Attention and feed-forward with their residuals. The modules are products, see there."""

    def __init__(self, shape: Shape, norms: Norms, products: list[nn.Module]) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = shape.heads, shape.kv_heads, shape.width
        self.scale, self.eps, self.activation = shape.scale, shape.eps, shape.activation
        self.before, self.between = norms.before, norms.between
        self.query_norm, self.key_norm = norms.query, norms.key
        self.qkv, self.out = products[QKV], products[OUT]
        self.gate_up, self.down = products[GATE_UP], products[DOWN]

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        todo: Plan,
        lora: Lora,
    ) -> torch.Tensor:
        """x: [n, hidden], changed in place and returned. `rotation`: cosines [n, 1, 1, half] and
        signed sines [n, 1, 2, half]; `cache`: keys and values [slots, kv heads, capacity, width]
        and the flat places [n * kv heads] where this step's go.
        """
        normed = rms_norm(x, self.before, self.eps)
        qkv = adapted(self.qkv(normed), normed, lora, 0)
        keys, values, places = cache
        q = self.placed(qkv, rotation, keys, values, places)
        found = attend(q, keys, values, todo, self.scale)
        x.add_(adapted(self.out(found), found, lora, 1))
        normed = rms_norm(x, self.between, self.eps)
        both = adapted(self.gate_up(normed), normed, lora, 2)
        half = both.shape[1] // 2
        gate, up = both[:, :half], both[:, half:]
        if self.activation == "silu":
            inner = functional.silu(gate)
        elif self.activation == "gelu":
            inner = functional.gelu(gate)
        else:
            inner = functional.gelu(gate, approximate="tanh")
        inner.mul_(up)
        return x.add_(adapted(self.down(inner), inner, lora, 3))

    def placed(
        self,
        qkv: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        """Apply positions, store keys and values; the queries [n, kv heads, group, width]."""
        n, width = qkv.shape[0], self.width
        turned = self.heads + self.kv_heads
        both = qkv[:, : turned * width].view(n, turned, width)
        if self.query_norm.numel() > 0:
            q = rms_norm(both[:, : self.heads], self.query_norm, self.eps)
            k = rms_norm(both[:, self.heads :], self.key_norm, self.eps)
            both = torch.cat([q, k], dim=1)
        # (a, b) → (a cos - b sin, b cos + a sin) on the halves of each head
        halves = both.view(n, turned, 2, width // 2)
        cosine, sine = rotation
        both = torch.addcmul(halves * cosine, halves.flip(2), sine).view(n, turned, width)
        keys.view(-1, width).index_put_([places], both[:, self.heads :].reshape(-1, width))
        values.view(-1, width).index_put_([places], qkv[:, turned * width :].reshape(-1, width))
        group = self.heads // self.kv_heads
        return both[:, : self.heads].reshape(n, self.kv_heads, group, width)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; squares summed in float32."""
    if x.dtype != torch.float32:
        return functional.rms_norm(x, [x.shape[-1]], weight, eps)
    square = (x * x).sum(-1, keepdim=True)
    return (x * square.mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()).mul_(weight)


def adapted(out: torch.Tensor, x: torch.Tensor, lora: Lora, which: int) -> torch.Tensor:
    """Add each group's adapters to a product's `out`, in place."""
    for group in range(len(lora.rows)):
        at = group * 4 + which
        down = lora.down[at]
        if down.numel() > 0:
            rows, places = lora.rows[group], lora.places[group]
            alone = rows.numel() == 0
            low = side_by_side(x if alone else x.index_select(0, rows), down)
            row, column = 0, 0
            for up in lora.up[at]:
                rank, outs = up.shape[-2], up.shape[-1]
                if rank > 0:
                    part, mine = out.narrow(1, column, outs), low.narrow(1, row, rank)
                    if alone:
                        part.addmm_(mine, up)
                    else:
                        more = side_by_side(mine, up).index_select(0, lora.back[group])
                        if places.numel() == 0:
                            part.add_(more)
                        else:
                            part.index_add_(0, places, more)
                row, column = row + rank, column + outs
            rescale = lora.rescale[at]
            if rescale.numel() > 0:
                if places.numel() == 0:
                    out.mul_(rescale[0]).add_(rescale[1])
                else:
                    out[places] = out[places] * rescale[0] + rescale[1]
    return out


def side_by_side(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x [slots * rows, in], each slot's rows by its own of `weights` [slots, in, out]; of one slot
    [in, out].
    """
    if weights.dim() == 2:
        return torch.mm(x, weights)
    return torch.bmm(x.view(weights.shape[0], -1, x.shape[1]), weights).view(x.shape[0], -1)


def whole_rows(count: int) -> int:
    """The next count of rows for which MKL reads a weight once: for 2 or 3 rows beyond a multiple
    of 4 it reads it as often. A weight from memory, [576, 48]: 12 µs for 1, 4, 5 and 8 rows; 21,
    30, 20 and 28 for 2, 3, 6 and 7; from 12 rows on the same (AVX-512, one thread).
    """
    return count + (-count % 4) if count < 12 and count % 4 > 1 else count
