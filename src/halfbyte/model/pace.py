"""How long a step takes: its arithmetic, and the speed of this machine or of a named card.

A step needs 2 operations a weight and token forwards and 2 backwards through the frozen weights;
trained weights need 2 more (Kaplan et al., arXiv:2001.08361, section 2.1). Recomputed layers go
forwards twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import bitsandbytes.functional as bnb
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from halfbyte.config import LoraSettings
from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Batch, Encoded
from halfbyte.model.adapters import attach
from halfbyte.model.budget import Load, Way, trained
from halfbyte.model.loss import TokenLoss
from halfbyte.model.shape import Shape, shape_of

__all__ = ["CARDS", "Card", "Pace", "calibrate", "operations", "step_seconds"]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as its maker publishes it. `bytes`: memory; `bandwidth`: bytes a second; `operations`:
    dense 16-bit matrix operations a second, accumulated in float32; `single`: operations in
    float32. `bf16`: whether it has it."""

    name: str
    bytes: int
    bandwidth: float
    operations: float
    single: float
    bf16: bool = True


# NVIDIA's data sheets: T4 (2019), Ampere GA102 white paper and the RTX 3060's product page (tensor
# cores at boost clock), Ada white paper (RTX 4090), A100 40 GB (2020), H100 SXM (2023); without
# sparsity. Written from those figures, never run on by us.
CARDS: Final[dict[str, Card]] = {
    "t4": Card("T4", 16_000_000_000, 320e9, 65e12, 8.1e12, bf16=False),
    "rtx3060": Card("RTX 3060 12 GB", 12_000_000_000, 360e9, 25.6e12, 12.7e12),
    "rtx4090": Card("RTX 4090", 24_000_000_000, 1008e9, 165.2e12, 82.6e12),
    "a100": Card("A100 40 GB", 40_000_000_000, 1555e9, 312e12, 19.5e12),
    "h100": Card("H100 SXM 80 GB", 80_000_000_000, 3350e9, 989.4e12, 66.9e12),
}
# The share of a card's published operations that training reaches. PaLM's survey of large trainings
# gives 21 to 46 % (arXiv:2204.02311, table 3); small batches on one card are no better.
REACHED: Final = 0.35
_SECONDS: Final = 3.0  # for each of the three things that are timed
_WIDEST: Final = 48 << 20  # weights of the layer that is timed; a wider one is timed scaled down
_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class Pace:
    """A machine's speed. `operations`: of bare matrix products a second. `factor`: a step's time
    over that of its bare products. `dequantized`: weights made dense a second."""

    name: str
    operations: float
    factor: float
    dequantized: float
    measured: bool


def operations(shape: Shape, way: Way, load: Load, recomputed: int = 0) -> float:
    """Matrix operations of one micro-batch, forwards and backwards."""
    frozen = shape.linear_weights
    back = 1.0 - shape.idle / max(1, shape.blocks)  # nothing goes back below the lowest adapter
    head = 2.0 * shape.vocabulary * shape.width * load.targets
    # scores and values: every token looks back over half of its row on average
    attention = 2.0 * shape.layers * shape.heads * shape.head_width * load.longest * load.tokens
    forward = 2.0 * frozen * load.tokens + attention
    again = forward * max(0, recomputed - shape.idle) / max(1, shape.blocks)
    own = 2.0 * load.tokens * trained(shape, way)
    if way.method == "full":
        return 3 * forward + again + 3 * head
    return forward + back * (forward + attention) + again + 3 * own + 2 * head


def step_seconds(shape: Shape, way: Way, load: Load, recomputed: int, pace: Pace) -> float:
    """One step of `load.parts` micro-batches like this one."""
    products = operations(shape, way, load, recomputed) / pace.operations * pace.factor
    passes = 2 + (max(0, recomputed - shape.idle) - shape.idle) / max(1, shape.blocks)
    dense = passes * shape.linear_weights / pace.dequantized if way.quantization else 0.0
    return load.parts * (products + dense)


def card_pace(card: Card, compute: torch.dtype) -> Pace:
    """What a card may reach; making weights dense is bound by its memory's bandwidth."""
    rate = card.single if compute == torch.float32 else card.operations
    dense = card.bandwidth / 2.5  # half a byte is read and two are written a weight
    return Pace(card.name, rate, 1 / REACHED, dense, measured=False)


def calibrate(shape: Shape, compute: torch.dtype) -> Pace:
    """Time bare products, one layer of this shape with its adapter, and dequantization: about ten
    seconds on the CPU."""
    rate = _product_rate(shape, compute)
    layer = _layer(shape, compute)
    seconds = _fastest(layer.run)
    factor = max(1.0, seconds * rate / layer.operations)
    name = f"this machine ({torch.get_num_threads()} threads)"
    return Pace(name, rate, factor, _dequantized(compute), measured=True)


def _fastest(work: Callable[[], Any], seconds: float = _SECONDS) -> float:
    """The fastest of several runs: what others on the machine take is not ours."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end:
            return best


def _product_rate(shape: Shape, compute: torch.dtype) -> float:
    """Operations a second of a product of this model's width and its MLP's."""
    inner, width = min(shape.inner, 4096), min(shape.width, 4096)
    a = torch.ones(_TOKENS, width, dtype=compute)
    b = torch.ones(inner, width, dtype=compute)
    c = torch.empty(_TOKENS, inner, dtype=compute)
    return 2.0 * _TOKENS * width * inner / _fastest(lambda: torch.mm(a, b.T, out=c))


def _dequantized(compute: torch.dtype) -> float:
    count = 1 << 22
    packed, state = bnb.quantize_4bit(
        torch.ones(1 << 11, 1 << 11, dtype=compute), compress_statistics=True, quant_type="nf4"
    )
    return count / _fastest(lambda: bnb.dequantize_4bit(packed, state), _SECONDS / 3)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    loss: TokenLoss
    batch: Batch
    operations: float

    def run(self) -> None:
        """Forwards and backwards."""
        self.loss(self.batch).backward()
        for parameter in self.loss.parameters():
            parameter.grad = None


def _layer(shape: Shape, compute: torch.dtype) -> _Layer:
    """One layer of this shape (scaled down where it is very wide) over one row of tokens."""
    scale = 1
    each = shape.linear_weights // max(1, shape.layers)
    while each / scale**2 > _WIDEST and shape.groups % (scale * 2) == 0:
        scale *= 2
    config = AutoConfig.for_model(
        "llama",
        hidden_size=shape.heads // scale * shape.head_width,
        intermediate_size=shape.inner // scale,
        num_hidden_layers=1,
        num_attention_heads=shape.heads // scale,
        num_key_value_heads=shape.groups // scale,
        head_dim=shape.head_width,
        vocab_size=256,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=compute)
        model = attach(model, LoraSettings(), 0)
    ids = torch.arange(_TOKENS + 1).remainder(256).to(torch.int32).numpy()
    wanted = torch.zeros(_TOKENS + 1, dtype=torch.bool).numpy()
    wanted[-1] = True
    (batch,) = plan_step([(0, Encoded(ids, wanted))], MicroLimits(1, _TOKENS))
    layer = shape_of(config, "all-linear")
    way = Way("lora", compute.itemsize, compute.itemsize)
    needed = operations(layer, way, Load(_TOKENS, 1, _TOKENS))
    return _Layer(TokenLoss(model), batch, needed)
