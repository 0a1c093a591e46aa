"""The fast path's parts against what they stand for: PEFT's layers, a masked softmax, norms."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from halfbyte.cli.show import _fast_rows
from halfbyte.config import LoraSettings
from halfbyte.data.batches import MicroLimits
from halfbyte.data.records import Batch, Segment
from halfbyte.model.adapters import attach
from halfbyte.model.fast import (
    buffers,
    checkpoint,
    dropout,
    fused,
    layout,
    linear,
    remake,
    residual,
    status,
    waiting,
    weights,
)
from halfbyte.model.fast.attention import segment_attention
from halfbyte.model.fast.linear import Fast, Member, custom_modules, lora_linears, prepared
from halfbyte.model.loss import TokenLoss
from tests.tiny import tiny_model


class Holder(nn.Module):
    """One layer, so that PEFT has something to look into."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def base_layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(64, 96)
    if kind == "linear":
        return plain
    if kind == "conv1d":
        layer = Conv1D(96, 64)
        layer.weight.data, layer.bias.data = plain.weight.data.T.clone(), plain.bias.data
        return layer
    quantized = (
        bnb.nn.Linear4bit(64, 96, compute_dtype=torch.float32, quant_type="nf4")
        if kind == "4bit"
        else bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
    )
    quantized.load_state_dict(plain.state_dict())
    return quantized.to("cpu")


def adapted(kind: str, ours: bool, **options: Any) -> Any:
    config = LoraConfig(r=4, target_modules=["layer"], **options)
    config.fan_in_fan_out = kind == "conv1d"
    if ours:
        config._register_custom_module(custom_modules())
    model = Holder(base_layer(kind))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "4bit", kind == "8bit"
    torch.manual_seed(1)
    model = get_peft_model(model, config)
    model.base_model.model.layer.lora_B["default"].weight.data.normal_(0, 0.1)
    return model


def run(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **found}


@pytest.mark.parametrize("kind", ["linear", "conv1d", "4bit", "8bit"])
def test_our_layer_computes_what_pefts_does(kind: str) -> None:
    """Output and gradients agree over every kind of weight; with the adapter off the base remains;
    merged and taken out again it is still the same.
    """
    ours, theirs = adapted(kind, ours=True), adapted(kind, ours=False)
    layer = ours.base_model.model.layer
    assert isinstance(layer, Fast)
    x = torch.randn(3, 5, 64)
    assert layer.member(x) is not None
    # bitsandbytes rounds activations to 8 bits under its 8-bit layer; ours does not
    tolerance = {"rtol": 0.05, "atol": 0.05} if kind == "8bit" else {"rtol": 1e-4, "atol": 1e-5}
    got, wanted = run(ours, x), run(theirs, x)
    assert got.keys() == wanted.keys()
    assert len(got) == 4
    for name in got:
        torch.testing.assert_close(got[name], wanted[name], **tolerance)
    with ours.disable_adapter(), theirs.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), **tolerance)
    if kind in ("linear", "conv1d"):
        ours.merge_adapter()
        torch.testing.assert_close(ours(x), got["y"], rtol=1e-4, atol=1e-5)
        ours.unmerge_adapter()
        torch.testing.assert_close(ours(x), got["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("ins", [64, 96])
def test_a_large_weight_is_made_dense_in_slabs(
    nested: bool, ins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slabs are the weight; outputs and gradients stay the same. A weight whose rows end
    within a block of constants is not cut.
    """
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        ins, 96, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=nested
    ).to("cpu")
    a, b = torch.randn(4, ins, requires_grad=True), torch.randn(96, 4, requires_grad=True)
    x = torch.randn(7, ins, requires_grad=True)

    def found() -> list[torch.Tensor]:
        (y,) = lora_linears(x, [Member(layer, (a, b))])
        return [y, *torch.autograd.grad(y.square().sum(), (x, a, b))]

    whole, dense = found(), weights.dense(layer, torch.float32)
    monkeypatch.setattr(weights, "SLAB", 30 * ins * 4)
    slabs = [slab for _, slab in weights.slabs(layer, torch.float32)]
    assert [len(slab) for slab in slabs] == ([32, 32, 32] if ins == 64 else [96])
    assert torch.equal(torch.cat(slabs), dense)
    del slabs
    made: list[Any] = []

    def watched(*args: Any) -> torch.Tensor:
        assert all(one() is None for one in made), "two slabs are alive at once"
        slab = four_bit(*args)
        made.append(weakref.ref(slab))
        return slab

    four_bit = weights.four_bit
    monkeypatch.setattr(weights, "four_bit", watched)
    for got, wanted in zip(found(), whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    assert len(made) == (6 if ins == 64 else 2)  # forward and backward


def test_switching_adapters_is_pefts() -> None:
    """The active adapter is used; several at once, which PEFT adds up, take PEFT's way."""
    model = adapted("linear", ours=True)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"]))
    layer = model.base_model.model.layer
    layer.lora_B["second"].weight.data.normal_()
    x = torch.randn(2, 64)
    first = model(x)
    model.set_adapter("second")
    second = model(x)
    model.base_model.set_adapter(["default", "second"])
    assert layer.member(x) is None
    with model.disable_adapter():
        base = model(x)
    torch.testing.assert_close(model(x), first + second - base, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_lora_function() -> None:
    """gradcheck in float64, with and without dropout, with and without an adapter."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5).double().requires_grad_(False)
    x, a, b = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 6), (2, 6), (5, 2)))
    inputs = [t.requires_grad_() for t in (x, a, b)]
    for rate in (0.0, 0.4):

        def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rate: float = rate) -> Any:
            torch.manual_seed(3)  # the same mask each time
            return lora_linears(x, [Member(base, (a, b), 1.7, rate)])[0]

        assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradcheck(lambda x: lora_linears(x, [Member(base)])[0], inputs[:1])


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gradients_by_a_need_no_norm_made_again(rate: float) -> None:
    """A norm's output is its input and two scales to them: as with the output itself, also where
    two layers share it, and dropped.
    """
    torch.manual_seed(0)
    bases = [nn.Linear(8, outs).double().requires_grad_(False) for outs in (5, 7)]
    norm = fused.RmsNorm(
        SimpleNamespace(
            weight=nn.Parameter(torch.rand(8).double()), variance_epsilon=0.1, training=True
        )
    )
    shapes = ((2, 3, 8), (2, 8), (5, 2), (3, 8), (7, 3))
    given = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    x, *pairs = given
    members = [
        Member(base, pair, 1.7, rate)
        for base, pair in zip(bases, (pairs[:2], pairs[2:]), strict=True)
    ]
    found = []
    for hidden in (norm(x), norm(x).clone()):  # a copy is not marked
        torch.manual_seed(3)  # the same mask each time
        outputs = lora_linears(hidden, members)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in outputs), given))
    assert remake.remake_of(norm(x)) is not None
    torch.testing.assert_close(*found)


def test_dropout_keeps_the_expectation_and_follows_the_seed() -> None:
    """About `rate` of the elements are dropped, the mean stays, torch's seed decides which; large
    inputs, which need several windows, too.
    """
    x = torch.ones(3000, 1000)
    for rate in (0.05, 0.3):
        y = dropout.apply(x, rate, 12345)
        assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.003)
        assert float(y.mean()) == pytest.approx(1, abs=0.003)
        assert torch.equal(y, dropout.apply(x, rate, 12345))
        assert not torch.equal(y, dropout.apply(x, rate, 54321))
    torch.manual_seed(0)
    seeds = [dropout.draw_seed() for _ in range(3)]
    torch.manual_seed(0)
    assert seeds == [dropout.draw_seed() for _ in range(3)]
    assert len(set(seeds)) == 3


def test_training_with_dropout_is_deterministic_and_evaluation_has_none() -> None:
    """The same torch seed gives the same output; eval mode gives PEFT's output without dropout."""
    model = adapted("linear", ours=True, lora_dropout=0.5)
    x = torch.randn(4, 64)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.train()(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(
        model.eval()(x), adapted("linear", ours=False, lora_dropout=0.5).eval()(x)
    )


def tree_batch() -> Batch:
    """Two rows: a tree of five segments, deep and with siblings, and a row with padding behind."""
    segments = (
        Segment(0, 0, 3),
        Segment(0, 3, 5, 0),
        Segment(0, 5, 6, 1),
        Segment(0, 6, 8, 1),
        Segment(0, 8, 11, 0),
        Segment(0, 11, 12),
        Segment(1, 0, 7),
    )
    positions = [[0, 1, 2, 3, 4, 5, 5, 6, 3, 4, 5, 0], list(range(12))]
    ids = torch.zeros(2, 12, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(ids, torch.tensor(positions), segments, none, none, none.float(), (), 0)


@pytest.mark.parametrize("grain", [1, 4])
@pytest.mark.parametrize(("queries", "tree"), [(128, 192), (128, 0), (2, 0), (2, 5)])
def test_segment_attention_is_a_masked_softmax(
    monkeypatch: pytest.MonkeyPatch, queries: int, tree: int, grain: int
) -> None:
    """However it is cut into blocks, and whatever their sizes are rounded to, attention over
    segments equals softmax under the full mask, in value and gradients, with grouped queries.
    """
    monkeypatch.setattr(layout, "QUERIES", queries)
    monkeypatch.setattr(layout, "TREE", tree)
    batch = tree_batch()
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 12, heads, 3, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for heads in (4, 2, 2)
    )
    monkeypatch.setattr(layout, "grain", lambda *_: grain)
    pieces = layout.bundles(batch, torch.float64)
    covered = []
    for bundle in pieces.found:
        blank = set(map(tuple, bundle.blank.T.tolist()))
        rows = enumerate(bundle.queries.tolist())
        covered += [p for b, row in rows for n, p in enumerate(row) if (b, n) not in blank]
    assert sorted(covered) == [*range(12), *range(12, 12 + 7)]
    got = segment_attention(q, k, v, pieces, 0.6)
    scores = 0.6 * q @ k.repeat_interleave(2, dim=1).mT
    scores = scores.masked_fill(~layout.allowed(batch)[:, None], -torch.inf)
    wanted = (scores.softmax(dim=-1) @ v.repeat_interleave(2, dim=1)).transpose(1, 2)
    inside = torch.ones(2, 12, dtype=torch.bool)
    inside[1, 7:] = False
    torch.testing.assert_close(got[inside], wanted[inside], rtol=1e-9, atol=1e-9)
    assert not got[~inside].any()
    d = torch.randn_like(got) * inside[:, :, None, None]
    ours = torch.autograd.grad((got * d).sum(), (q, k, v))
    theirs = torch.autograd.grad((wanted * d).sum(), (q, k, v))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


def test_gradients_of_norm_and_gated_product() -> None:
    """gradcheck in float64 of the norm (weight trained) and of act(gate) * up."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    inputs = (x.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: fused._RmsNorm.apply(x, w, 0.1)[0], inputs)
    gate, up = (torch.randn(2, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda gate, up: fused._Gated.apply(gate, up, fused._Activation(nn.SiLU())), (gate, up)
    )


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "relu2", "linear"])
@pytest.mark.parametrize("made_again", [False, True])
def test_a_gated_product_has_the_gradients_of_autograd(name: str, made_again: bool) -> None:
    """Also where `down` has asked for the product before, as it does in a backward pass."""
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    activation = fused._Activation(ACT2FN[name])
    product = fused._Gated.apply(gate, up, activation)
    wanted = ACT2FN[name](gate) * up
    torch.testing.assert_close(product, wanted)
    if made_again:
        with torch.no_grad():
            torch.testing.assert_close(activation.again(gate, up).middle, wanted)
    got = torch.autograd.grad(product.square().sum(), (gate, up))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.square().sum(), (gate, up)))


def test_an_activation_is_computed_once_for_a_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient by `down` and that by gate and up share it."""
    forward, backward = fused._KERNELS["SiLUActivation"]
    calls = []

    def counted(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return forward(x, out=out)

    monkeypatch.setitem(fused._KERNELS, "SiLUActivation", (counted, backward))
    gate, up = (torch.randn(3, 8).requires_grad_() for _ in range(2))
    activation = fused._Activation(ACT2FN["silu"])
    product = fused._Gated.apply(gate, up, activation)
    assert len(calls) == 1
    with torch.no_grad():
        activation.again(gate, up)
    product.sum().backward()
    assert len(calls) == 2


class _HeapWatch(TorchDispatchMode):
    """Counts results of `least` bytes and more that no pool gave and no operand holds."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.found = least, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        given = [one for one in (*args, *(kwargs or {}).values()) if torch.is_tensor(one)]
        known = {one.untyped_storage().data_ptr() for one in given}
        made = func(*args, **(kwargs or {}))
        if torch.is_tensor(made) and func is not torch.ops.aten.set_.source_Storage_storage_offset:
            block = made.untyped_storage()
            if block.nbytes() >= self.least and block.data_ptr() not in known:
                self.found.append((str(func), tuple(made.shape)))
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_wide_comes_from_the_pool(dtype: torch.dtype) -> None:
    """In norms and gated products, forward and backward: in the heap, between gradients that are
    kept, it would leave holes of its size (360 MB in one training)."""
    x, gate, up = (torch.randn(1, 64, 256).to(dtype).requires_grad_() for _ in range(3))
    weight = torch.ones(256, dtype=dtype)
    least = x.numel() * x.itemsize
    ones = torch.ones_like(x)
    with buffers.use(buffers.Pool()), _HeapWatch(least) as watch:
        activation = fused._Activation(ACT2FN["silu"])
        product = fused._Gated.apply(gate, up, activation)
        normed, _ = fused._RmsNorm.apply(x, weight, 1e-6)
        with torch.no_grad():
            activation.again(gate, up)
        torch.autograd.backward((product, normed), (ones, ones))
    # autograd itself copies what it hands to a leaf where somebody else may hold it too
    assert [one for one in watch.found if "aten.clone" not in one[0]] == []


def test_constants_of_small_layers_are_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense weight stays the same to the bit; a large layer keeps them in 8 bits, and one that
    is not quantized yet has none.
    """
    layers = [bnb.nn.Linear4bit(64, outs, quant_type="nf4").to("cpu") for outs in (96, 128)]
    states = [layer.weight.quant_state for layer in layers]
    before = [weights.dense(layer, torch.float32) for layer in layers]
    assert all(state.nested for state in states)
    monkeypatch.setattr(weights, "SMALL", 64 * 100)
    weights.unfold(nn.ModuleList([*layers, bnb.nn.Linear4bit(64, 8)]))
    assert [state.nested for state in states] == [False, True]
    assert states[0].absmax.dtype == torch.float32
    for layer, dense in zip(layers, before, strict=True):
        assert torch.equal(weights.dense(layer, torch.float32), dense)


def test_prepared_factors_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers find scale * A and B cast already, with equal outputs and gradients; large ones
    and float32 do not; after the block nobody does.
    """
    model = attach(tiny_model("llama").to(torch.bfloat16), LoraSettings(rank=4, alpha=5.0), 0)
    layers = [module for module in model.modules() if isinstance(module, Fast)]
    for layer in layers:
        nn.init.normal_(layer.lora_B["default"].weight)
    first = layers[0]
    x = torch.randn(5, first.in_features, dtype=torch.bfloat16)
    pair = (first.lora_A["default"].weight, first.lora_B["default"].weight)

    def found() -> list[torch.Tensor]:
        y = first(x)
        return [y, *torch.autograd.grad(y.square().sum(), pair)]

    alone = found()
    with prepared(layers, torch.bfloat16, "cpu"):
        assert all(layer.member(x).cast for layer in layers)
        together = found()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not any(layer.member(x).cast for layer in layers)
    with prepared(layers, torch.float32, "cpu"):
        assert not any(layer.member(x).cast for layer in layers)
    monkeypatch.setattr(weights, "SMALL", 1)
    with prepared(layers, torch.bfloat16, "cpu"):
        assert not any(layer.member(x).cast for layer in layers)


def test_replaced_modules_keep_names_and_numbers() -> None:
    """State dict and logits stay as they were, and a second replacement finds nothing."""
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(20)[None]
    logits = model(ids).logits
    assert fused.replace(model) == {"norms": 5, "mlps": 2}
    assert fused.replace(model) == {"norms": 0, "mlps": 0}
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == list(before)


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of distinct storages that the graph of one forward pass holds, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = model(inputs_embeds=ids, use_cache=False).logits
    del held
    return sum(kept.values())


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "gemma"])
def test_layers_add_into_what_attention_and_mlp_give(arch: str) -> None:
    """What transformers' layers compute, gradients too, without a tensor for the sum."""
    ids = torch.arange(1, 13).view(2, 6)
    found = []
    for replaced in (False, True):
        model = tiny_model(arch).train()
        assert not replaced or residual.replace(model) == len(model.model.layers)
        assert not replaced or residual.replace(model) == len(model.model.layers)  # idempotent
        places: list[int] = []
        model.model.layers[0].mlp.register_forward_hook(
            lambda *a, at=places: at.append(a[2].data_ptr())
        )
        model.model.layers[0].register_forward_hook(
            lambda *a, at=places: at.append(a[2].data_ptr())
        )
        logits = model(ids).logits
        logits.square().mean().backward()
        assert (places[0] == places[1]) == replaced
        found.append([logits, *(one.grad for one in model.parameters())])
    for ours, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_less_is_kept_for_the_backward_pass() -> None:
    """Norm outputs and the wide product of the MLP are made again: a third of the bytes go."""
    sizes = []
    for replaced in (False, True):
        model = tiny_model("llama", num_hidden_layers=4, intermediate_size=256)
        config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
        config._register_custom_module(custom_modules())
        if replaced:
            fused.replace(model)
        model = get_peft_model(model, config).get_base_model()
        embeddings = torch.randn(1, 64, 64, requires_grad=True)
        sizes.append(kept_bytes(model, embeddings))
    assert sizes[1] < 0.67 * sizes[0]


def test_nothing_is_computed_below_the_lowest_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adapter in the last layer alone, the backward pass makes no weight of the layers
    below dense, and nothing of the layer's own projections' inputs.
    """
    model = tiny_model("llama", num_hidden_layers=3)
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], layers_to_transform=[2]
    )
    config._register_custom_module(custom_modules())
    model = get_peft_model(model, config).train()
    batch = tree_batch()
    one = torch.tensor([3])
    batch = Batch(
        batch.input_ids, batch.position_ids, batch.segments, one, one, torch.ones(1), (), 0
    )
    loss = TokenLoss(model)(batch)
    used: list[nn.Module] = []
    dense = weights.dense
    monkeypatch.setattr(linear.weights, "dense", lambda *a: used.append(a[0]) or dense(*a))
    loss.backward()
    names = {module: name for name, module in model.named_modules()}
    # the input of q, k and v needs no gradient; down_proj is transformers' own
    wanted = ("self_attn.o_proj.base_layer", "mlp.gate_proj", "mlp.up_proj")
    assert sorted(names[one] for one in used) == sorted(
        f"base_model.model.model.layers.2.{name}" for name in wanted
    )


def test_status_names_every_part() -> None:
    """Each part is active or says why not."""
    model = get_peft_model(
        tiny_model("gpt2", attn_pdrop=0.1), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    found = {part.name: part for part in status(model)}
    assert all(part.reason for part in found.values())
    assert not found["LoRA in one function"].active
    assert "PEFT's own" in found["LoRA in one function"].reason
    assert found["segment attention"].reason == "attn_pdrop is 0.1"
    assert all(part.active for part in status(tiny_model("llama"))[1:4])


def test_the_summary_says_what_is_taken_and_why_not() -> None:
    """Parts that the model does not allow and parts that a setting switches off stand apart."""
    parts = status(tiny_model("llama"))
    limits = MicroLimits(4, 100, pack=True, share=False)
    rows = dict(_fast_rows(parts, SimpleNamespace(limits=limits)))
    assert rows["fast path"].startswith("packing, segment attention")
    assert "LoRA in one function: no adapter" in rows["not taken"]
    assert "shared prefixes: train.share_prefixes=false" in rows["not taken"]


def test_a_pool_hands_out_only_what_nobody_uses() -> None:
    """A block comes back when the last tensor, view or graph that refers to it is gone; it serves
    fewer places of the same width, and no other width.
    """
    pool = buffers.Pool()
    like = torch.zeros(0)
    first = buffers.empty((256, 256), like, pool)
    second = buffers.empty((2, 128, 4, 64), like, pool)
    address = first.data_ptr()
    assert second.data_ptr() != address
    assert pool.held == 2 * 256 * 256 * 4
    view = first[10:]
    del first
    assert buffers.empty((256, 256), like, pool).data_ptr() != address
    del view
    assert buffers.empty((1, 200, 256), like, pool).data_ptr() == address
    held = pool.held
    assert buffers.empty((200, 128), like.double(), pool).dtype == torch.float64
    assert pool.held == held
    assert buffers.empty((256, 160), like, pool).data_ptr() != address
    assert buffers.empty((2, 2), like, pool).shape == (2, 2)  # too small for a pool


def test_a_pool_grows_with_the_longest_and_not_with_every_length() -> None:
    """Lengths that come and go leave one block, as large as the longest; a longer replaces it."""
    pool = buffers.Pool()
    like = torch.zeros(0)
    for places in (300, 200, 290, 256, 300):
        assert len(buffers.empty((places, 256), like, pool)) == places
        assert pool.held == 300 * 256 * 4
    outgrown = buffers.empty((300, 256), like, pool).fill_(1.0)
    kept = outgrown.data_ptr()
    del outgrown
    assert len(buffers.empty((400, 256), like, pool)) == 400
    assert pool.held == 400 * 256 * 4
    if sys.platform == "linux":  # the smaller one went back to the system: its pages are new ones
        assert ctypes.c_float.from_address(kept).value == 0.0


def test_a_graph_keeps_its_blocks() -> None:
    """What a forward pass saved is not overwritten by the next one: gradients of two graphs that
    live at once are those of each alone.
    """
    torch.manual_seed(0)
    base = nn.Linear(256, 256).requires_grad_(False)
    a, b = torch.randn(4, 256, requires_grad=True), torch.randn(256, 4, requires_grad=True)
    inputs = [torch.randn(300, 256, requires_grad=True) for _ in range(2)]

    def through(x: torch.Tensor) -> torch.Tensor:
        layer = [Member(base, (a, b))]
        return lora_linears(lora_linears(x, layer)[0], layer)[0].square().sum()

    alone = [torch.autograd.grad(through(x), (x, a, b)) for x in inputs]
    with buffers.use(buffers.Pool()):
        losses = [through(x) for x in inputs]
        for _ in range(2):
            through(inputs[0])
    for loss, x, wanted in zip(losses, inputs, alone, strict=True):
        for got, one in zip(torch.autograd.grad(loss, (x, a, b)), wanted, strict=True):
            assert torch.equal(got, one)


def test_repacked_weights_come_back() -> None:
    """bitsandbytes' eval format for AVX512-BF16 CPUs is undone before a weight is made dense, and
    `keep_as_quantized` keeps it from being made.
    """
    layer = base_layer("4bit")
    before = weights.dense(layer, torch.float32)
    layer.support_avx512bf16_for_cpu = True
    weights.keep_as_quantized(Holder(layer))
    assert not layer.support_avx512bf16_for_cpu
    state = layer.weight.quant_state
    if not hasattr(bnb.functional, "_convert_weight_packed_for_cpu"):
        pytest.skip("this bitsandbytes has no such format")
    packed, state = bnb.functional._convert_weight_packed_for_cpu(layer.weight.data, state)
    layer.weight.data, layer.weight.quant_state = packed, state
    after = weights.dense(layer, torch.float32)
    # the constants went through bf16
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("count", [1, 2])
def test_checkpointed_layers_give_the_same_gradients(count: int) -> None:
    """Some or all layers computed again, dropout included: the same bytes, with less kept."""
    results, sizes = [], []
    for layers in (0, count):
        torch.manual_seed(0)
        config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
        config.lora_dropout = 0.2
        config._register_custom_module(custom_modules())
        model = get_peft_model(tiny_model("llama"), config).train()
        loss = TokenLoss(model)
        assert checkpoint.set_layers(model, layers) == layers
        batch = tree_batch()
        some = torch.tensor([3, 9, 14])
        batch = Batch(
            batch.input_ids, batch.position_ids, batch.segments, some, some, torch.ones(3), (), 0
        )
        torch.manual_seed(1)
        loss(batch).backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        embeddings = torch.randn(1, 64, 64, requires_grad=True)
        sizes.append(kept_bytes(model.get_base_model(), embeddings))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("large", "again", "trims"), [(True, False, 2), (False, False, 0), (True, True, 0)]
)
def test_large_layers_are_computed_again_on_a_trimmed_heap(
    large: bool, again: bool, trims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once forward and once backward for each layer computed again; small ones are not worth it,
    nor is it needed where freed blocks are found again.
    """
    model = tiny_model("llama").train()
    monkeypatch.setattr(checkpoint.alloc, "finds_again", lambda: again)
    monkeypatch.setattr(checkpoint.alloc, "MMAP_FROM", 4 * 64 * 64 if large else 1 << 26)
    calls: list[int] = []
    monkeypatch.setattr(checkpoint.alloc, "trim", lambda: calls.append(1))
    checkpoint.set_layers(model, 1)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert len(calls) == trims


@pytest.mark.parametrize(
    ("given", "said", "setting"),
    [
        ({}, "short", "2000"),
        ({"GOMP_SPINCOUNT": "7"}, "as GOMP_SPINCOUNT", "7"),
        ({"OMP_WAIT_POLICY": "active"}, "as OMP_WAIT_POLICY", "None"),
    ],
)
def test_threads_wait_briefly_on_a_shared_machine(
    given: dict[str, str], said: str, setting: str
) -> None:
    """What the user set wins; nothing of it loads torch."""
    code = (
        "import os, sys; from halfbyte.model.fast import waiting"
        "; said, setting = waiting.set_up(shares=True), os.environ.get('GOMP_SPINCOUNT')"
        "; print(said, setting, 'torch' in sys.modules)"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env={**clean, **given}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said)
    assert done.stdout.split()[-2:] == [setting, "False"]


@pytest.mark.parametrize(("others", "said"), [(80.0, "short"), (3.0, "long")])
def test_threads_look_who_else_is_there(
    others: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word from the user what others use of the cores decides."""
    for name in (waiting.SETTING, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert waiting.set_up() == "as it was: torch is loaded already"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("psutil.cpu_percent", lambda _seconds: others)
    monkeypatch.setattr(waiting.os, "environ", environment := dict(os.environ))
    assert waiting.set_up().startswith(said)
    assert (waiting.SETTING in environment) == (said == "short")
