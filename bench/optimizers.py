"""AdamW on the CPU: which of torch's implementations is fastest, for adapters and whole models.

    python bench/optimizers.py

Shapes are SmolLM2-135M's: rank-16 adapters on all linear layers, and every weight of ten layers.
"""

from __future__ import annotations

import time

import torch
from torch import nn

HIDDEN, KEY_VALUE, INNER, LAYERS = 576, 192, 1536, 30
LINEAR = (
    [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, KEY_VALUE)] * 2 + [(HIDDEN, INNER)] * 2 + [(INNER, HIDDEN)]
)
KINDS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def adapters(rank: int = 16) -> list[nn.Parameter]:
    shapes = [shape for a, b in LINEAR for shape in ((rank, a), (b, rank))] * LAYERS
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def weights(layers: int = 10) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(b, a)) for a, b in LINEAR * layers]


def seconds(parameters: list[nn.Parameter], steps: int, **given: bool) -> float:
    optimizer = torch.optim.AdamW(parameters, 1e-4, **given)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def main() -> None:
    for name, parameters, steps in (("adapters", adapters(), 20), ("weights", weights(), 10)):
        count = sum(one.numel() for one in parameters)
        print(f"{name}: {count / 1e6:.1f} M parameters in {len(parameters)} tensors")
        for words, given in KINDS.items():
            took = seconds(parameters, steps, **given)
            print(f"  {words:8} {took * 1e3:8.1f} ms a step (median)")


if __name__ == "__main__":
    main()
