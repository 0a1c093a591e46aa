"""Small 4-bit weights of a decoder layer that are made dense together."""

from __future__ import annotations

import weakref
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from halfbyte.model.fast import blocks, buffers, weights
from halfbyte.model.fast.linear import Member, lora_linears

SHAPES = ((64, 96), (64, 32), (128, 64))  # inputs, outputs


def quantized(ins: int, outs: int, **settings: Any) -> bnb.nn.Linear4bit:
    """A frozen layer without doubly quantized constants."""
    settings = {"quant_type": "nf4", "compress_statistics": False, **settings}
    layer = bnb.nn.Linear4bit(ins, outs, compute_dtype=torch.float32, **settings).to("cpu")
    return layer.requires_grad_(False)


class Decoder(GradientCheckpointingLayer):
    """A decoder layer of these, as transformers' are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def slab(layer: Any, pool: buffers.Pool | None) -> torch.Tensor:
    """The dense weight by `weights.slabs`, of which there is one."""
    ((outs, found),) = weights.slabs(layer, torch.float32, pool)
    assert outs is None
    return found


def test_joined_weights_are_the_same_to_the_bit() -> None:
    """With and without a pool; a second call finds nothing left to join."""
    layers = [quantized(*shape) for shape in SHAPES]
    before = [weights.dense(layer, torch.float32) for layer in layers]
    model, pool = Decoder(*layers), buffers.Pool()
    assert blocks.join(model) == 1
    assert blocks.join(model) == 0
    for layer, dense in zip(layers, before, strict=True):
        assert weights.fault(layer, torch.float32) is None
        assert torch.equal(weights.dense(layer, torch.float32), dense)
        assert torch.equal(slab(layer, None), dense)
        assert torch.equal(slab(layer, pool), dense)


def test_memory_that_joined_weights_leave_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all layers, and only where there was something to join."""
    trimmed: list[bool] = []
    monkeypatch.setattr(blocks.alloc, "trim", lambda: trimmed.append(True))
    model = nn.ModuleList([Decoder(*(quantized(*shape) for shape in SHAPES)) for _ in range(2)])
    blocks.join(model)
    blocks.join(model)
    assert len(trimmed) == 1


def test_a_block_is_made_dense_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers take their weights from what is there, until another block is asked for."""
    first = [quantized(*shape) for shape in SHAPES]
    second = [quantized(*shape) for shape in SHAPES]
    model = nn.ModuleList([Decoder(*first), Decoder(*second)])
    assert blocks.join(model) == 2
    calls: list[int] = []
    made: list[Any] = []
    four_bit = weights.four_bit

    def counted(*args: Any) -> torch.Tensor:
        assert all(one() is None for one in made), "two blocks are dense at once"
        calls.append(args[0].numel())
        flat = four_bit(*args)
        made.append(weakref.ref(flat))
        return flat

    monkeypatch.setattr(weights, "four_bit", counted)
    pool = buffers.Pool()
    for _ in range(2):
        for layer in first + second:
            slab(layer, pool)
    assert calls == [sum(ins * outs for ins, outs in SHAPES) // 2] * 4


def test_products_and_gradients_stay_the_same() -> None:
    """A group of two layers and one behind it, forward and backward, with and without a pool."""
    torch.manual_seed(0)
    layers = [quantized(64, 96), quantized(64, 96), quantized(96, 64)]
    pairs = [
        tuple(torch.randn(shape, requires_grad=True) for shape in ((4, ins), (outs, 4)))
        for ins, outs in ((64, 96), (64, 96), (96, 64))
    ]
    members = [Member(one, pair) for one, pair in zip(layers, pairs, strict=True)]
    x = torch.randn(3, 64, requires_grad=True)
    wanted_of = [x, *(factor for pair in pairs for factor in pair)]

    def found() -> list[torch.Tensor]:
        one, other = lora_linears(x, members[:2])
        (y,) = lora_linears(one * other, members[2:])
        return [y, *torch.autograd.grad(y.square().sum(), wanted_of)]

    alone = found()
    assert blocks.join(Decoder(*layers)) == 1
    assert all(torch.equal(one, other) for one, other in zip(found(), alone, strict=True))
    with buffers.use(buffers.Pool()):
        joined = found()
    assert all(torch.equal(one, other) for one, other in zip(joined, alone, strict=True))


def test_only_layers_that_can_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one alone, not of two kinds, and none that is large, doubly quantized, not quantized yet
    or whose rows end within a block of constants.
    """
    assert blocks.join(Decoder(quantized(64, 32))) == 0
    assert blocks.join(Decoder(quantized(64, 32), quantized(64, 32, quant_type="fp4"))) == 0
    plain = [quantized(64, 32), quantized(64, 32)]
    monkeypatch.setattr(weights, "SMALL", 64 * 100)
    others = [
        quantized(64, 128),
        quantized(64, 32, compress_statistics=True),
        bnb.nn.Linear4bit(64, 32),
        quantized(96, 32),
        nn.Linear(64, 32),
    ]
    assert blocks.join(Decoder(*plain, *others)) == 1
    assert all(weights.place_of(layer) is not None for layer in plain)
    assert all(weights.place_of(layer) is None for layer in others)


def test_a_layer_that_gets_another_weight_leaves_its_block() -> None:
    """As PEFT's merging does; the others stay."""
    layers = [quantized(*shape) for shape in SHAPES]
    assert blocks.join(Decoder(*layers)) == 1
    other = quantized(*SHAPES[0])
    layers[0].weight = other.weight
    pool = buffers.Pool()
    assert weights.place_of(layers[0]) is None
    assert torch.equal(slab(layers[0], pool), weights.dense(other, torch.float32))
    assert weights.place_of(layers[1]) is not None
