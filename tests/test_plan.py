"""Planning: sizes from a config alone, memory as a sum of formulas, and arrangements that keep to a
limit without changing what is learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import PretrainedConfig

from halfbyte.api import arranging
from halfbyte.api.arranging import Work
from halfbyte.api.planning import plan_training
from halfbyte.cli import cli
from halfbyte.config import LoraSettings, load_config
from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Encoded
from halfbyte.errors import InputError, MissingError
from halfbyte.model import budget, pace
from halfbyte.model.adapters import attach
from halfbyte.model.arrange import Wishes, arrange
from halfbyte.model.budget import Load, Way, base_bytes, memory, trained
from halfbyte.model.catalogue import CATALOGUE
from halfbyte.model.fast import checkpoint
from halfbyte.model.fast.weights import SMALL
from halfbyte.model.load import form_of
from halfbyte.model.loss import TokenLoss
from halfbyte.model.pace import CARDS, card_pace, operations, step_seconds
from halfbyte.model.shape import Shape, catalogue_config, shape_of
from halfbyte.model.sizes import SIZES
from tests.tiny import ARCHS, tiny_base, tiny_config, tiny_model

QLORA = Way("qlora", 4, 4, "nf4")
LORA = Way("lora", 4, 4)


def some_rows(count: int) -> list[Encoded]:
    """Rows of 12 to 37 random ids, half of them trained, all with the same first six."""
    draws = np.random.default_rng(0)
    rows = []
    for number in range(count):
        ids = draws.integers(0, 256, 12 + 5 * number, dtype=np.int32)
        ids[:6] = range(6)
        rows.append(Encoded(ids, np.arange(len(ids)) >= len(ids) // 2))
    return rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(tiny_config("llama"), "all-linear")


# shapes


@pytest.mark.parametrize("name", ["mistral-7b", "qwen2.5-0.5b", "gemma-2b", "tinyllama-1.1b"])
def test_the_catalogues_sizes_give_its_counts(name: str) -> None:
    """Two sources of one number: the sizes here, and the weights counted in the catalogue."""
    entry = next(one for one in CATALOGUE if one.name == name)
    found = shape_of(catalogue_config(SIZES[name]))
    assert (found.parameters, found.linear_weights) == (entry.parameters, entry.linear)


def test_every_base_of_the_catalogue_has_sizes() -> None:
    assert set(SIZES) == {entry.name for entry in CATALOGUE}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_shape_counts_what_the_model_has(arch: str) -> None:
    """Without a weight in memory, the counts are those of the loaded and adapted model."""
    found = shape_of(tiny_config(arch), "all-linear")
    model = tiny_model(arch)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    adapted = attach(model, LoraSettings(rank=4), 0)
    held = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert trained(found, replace(LORA, rank=4)) == held


def test_a_config_of_no_model_is_refused() -> None:
    with pytest.raises(InputError):
        shape_of(PretrainedConfig())


# memory


def test_memory_is_the_sum_of_its_parts_and_grows_with_what_is_computed(shape: Shape) -> None:
    small, large = (memory(shape, LORA, Load(n, n, n)) for n in (64, 128))
    assert small.activations < large.activations < 2.1 * small.activations
    assert (small.base, small.optimizer) == (large.base, large.optimizer)
    parts = json.loads(json.dumps([getattr(small, name) for name in small.__slots__]))
    assert small.peak == sum(parts)


def test_each_recomputed_layer_saves_memory() -> None:
    """But the last one: while it is computed again, its activations are all there anyway."""
    deep = shape_of(tiny_config("llama", num_hidden_layers=6), "all-linear")
    held = [memory(deep, LORA, Load(256, 8, 256), count).activations for count in range(6)]
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == 6


@pytest.mark.parametrize(("small", "bits"), [(1, 4.127), (1 << 20, 4.5)])
def test_quantized_weights_take_an_eighth_of_float32(
    shape: Shape, small: int, bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4.127 bits a weight: 4, an eighth of 8 and a share of 32 (arXiv:2305.14314). In small layers
    4.5: there the constants are made whole.
    """
    monkeypatch.setattr(budget, "SMALL", small)
    rest = shape.others * 4
    ratio = (base_bytes(shape, LORA) - rest) / (base_bytes(shape, QLORA) - rest)
    assert ratio == pytest.approx(32 / bits, rel=1e-3)


def test_small_layers_of_4_bits_are_dense_together_on_a_cpu(shape: Shape) -> None:
    """All of a decoder layer; on a card only the largest."""
    ways = (replace(QLORA, cuda=cuda) for cuda in (False, True))
    cpu, card = (memory(shape, way, Load(64, 1, 64)) for way in ways)
    together = shape.linear_weights // shape.blocks
    assert cpu.working - card.working == 4 * (together - shape.widest)


def test_a_cpu_that_computes_in_bf16_holds_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's; float32 products have none."""
    monkeypatch.setattr(arranging.psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=7))
    wide, narrow = (arranging.held_now(Way("lora", size, size)) for size in (4, 2))
    assert 7 < wide < narrow
    assert arranging.held_now(Way("lora", 2, 2, cuda=True)) == 600_000_000


def test_full_training_computes_in_the_type_of_its_weights() -> None:
    """AdamW's steps need float32 there, so neither the plan nor the training takes half of it."""
    for setting in ("auto", "bf16"):
        config = load_config(None, ("method=full", f"model.compute={setting}")).config
        form = form_of(config, "cpu")
        assert (form.weights, form.compute.dtype) == (torch.float32, torch.float32)
        assert form.compute.replaced == (setting == "bf16")


def test_dora_is_counted(shape: Shape) -> None:
    """PEFT's layers keep what the base and the factors give and leave holes, with dropout they keep
    their inputs and dense weights too, and they train a magnitude an output.
    """
    ways = [replace(LORA, dora=dora, dropout=drops) for dora, drops in ((0, 0), (1, 0), (1, 1))]
    kept = [memory(shape, way, Load(64, 8, 64)).activations // 4 for way in ways]
    outs, ins = (
        sum(sizes) for sizes in zip(*((o.outputs, o.inputs) for o in shape.linear), strict=True)
    )
    made_again = shape.layers * (2 * shape.width + shape.inner)
    assert kept[1] - kept[0] == 64 * (3 * outs + made_again)
    assert kept[2] - kept[1] == 64 * ins + shape.linear_weights
    adapted = attach(tiny_model("llama"), LoraSettings(rank=4, dora=True), 0)
    held = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert trained(shape, replace(LORA, rank=4, dora=True)) == held


def test_layers_below_the_lowest_adapter_keep_nothing_and_are_not_gone_back_through() -> None:
    config = tiny_config("llama", num_hidden_layers=6)
    load, way = Load(64, 8, 64), replace(LORA, rank=1)
    top, whole = (shape_of(config, names) for names in (("layers.4.mlp.up_proj",), "all-linear"))
    assert (top.idle, whole.idle) == (4, 0)
    kept = [
        memory(shape, way, load, again).activations for shape in (top, whole) for again in (0, 4)
    ]
    assert kept[0] == kept[1]
    assert 2.5 < kept[2] / kept[0] < 3
    assert operations(top, way, load) < 0.75 * operations(whole, way, load)


def test_scores_that_no_chunks_hold_are_counted_whole(shape: Shape) -> None:
    """And what the widest operation takes is what comes beyond them."""
    load = Load(64, 64, 64)
    chunks, whole = (memory(replace(shape, chunked=each), LORA, load) for each in (True, False))
    assert whole.logits == 3 * 64 * shape.vocabulary * 4
    assert 0 < chunks.logits < whole.logits
    assert chunks.logits + chunks.working == max(whole.logits, chunks.logits + chunks.working)


def test_full_training_takes_sixteen_bytes_a_weight(shape: Shape) -> None:
    found = memory(shape, Way("full", 4, 4), Load(8, 8, 8))
    assert found.base + found.gradients + found.optimizer == 16 * shape.parameters


# arranging


def bounds(rows: int, tokens: int) -> Load:
    return Work(64, 1024, 0.5).load(rows, tokens)


def test_without_a_limit_everything_is_as_wished(shape: Shape) -> None:
    found = arrange(shape, LORA, Wishes(16, 1024, 64), bounds, (None, 0))
    assert found is not None
    assert (found.rows, found.tokens, found.recomputed) == (16, 1024, 0)


def test_fewer_tokens_come_before_recomputed_layers_and_those_one_by_one(shape: Shape) -> None:
    """Every arrangement keeps to its limit, and a lower limit is never faster."""
    wishes = Wishes(16, 1024, 64)
    free = arrange(shape, LORA, wishes, bounds, (None, 0))
    assert free is not None
    seen = []
    for share in (1.0, 0.7, 0.5, 0.4, 0.35, 0.3, 0.2):
        limit = int(free.peak * share)
        found = arrange(shape, LORA, wishes, bounds, (limit, 0))
        if found is not None:
            assert found.peak <= limit
            seen.append((found.tokens, -found.recomputed))
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 2
    assert all(tokens == 256 for tokens, again in seen if again)


def test_what_the_user_set_is_kept(shape: Shape) -> None:
    wishes = Wishes(4, 512, 64, fixed=True, checkpointing="on")
    found = arrange(shape, LORA, wishes, bounds, (None, 0))
    assert found is not None
    assert (found.rows, found.tokens, found.recomputed) == (4, 512, shape.blocks)
    off = Wishes(4, 512, 64, fixed=True, checkpointing="off")
    assert arrange(shape, LORA, off, bounds, (found.peak, 0)) is None


def test_the_longest_row_bounds_the_tokens_from_below(shape: Shape) -> None:
    found = arrange(shape, LORA, Wishes(16, 900, 900), bounds, (None, 0))
    assert found is not None
    assert found.tokens == 900


@pytest.mark.parametrize("recomputed", [0, 1, 2])
@pytest.mark.parametrize("tokens", [40, 90, 1000])
def test_loss_and_gradient_do_not_depend_on_the_arrangement(recomputed: int, tokens: int) -> None:
    """1e-5 in float32, whatever is computed at once or twice."""

    def gradients(count: int, budget: int) -> tuple[float, list[torch.Tensor]]:
        module = TokenLoss(attach(tiny_model("llama"), LoraSettings(rank=4), 0)).train()
        checkpoint.set_layers(module, count)
        with torch.no_grad():  # B starts at zero: A would have no gradient
            for name, one in module.named_parameters():
                if "lora_B" in name:
                    one.copy_(torch.linspace(-0.1, 0.1, one.numel()).view(one.shape))
        total = 0.0
        for batch in plan_step(list(enumerate(some_rows(6))), MicroLimits(6, budget)):
            loss = module(batch)
            loss.backward()
            total += float(loss.detach())
        return total, [one.grad for one in module.parameters() if one.grad is not None]

    loss, expected = gradients(0, 100_000)
    other, found = gradients(recomputed, tokens)
    assert other == pytest.approx(loss, rel=1e-5)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))


# time


def test_a_step_needs_four_operations_a_frozen_weight_and_token(shape: Shape) -> None:
    """Two forwards and two backwards; what adapters, attention and head add is small."""
    big = shape_of(catalogue_config(SIZES["mistral-7b"]), "all-linear")
    load = Load(512, 1, 512)
    needed = operations(big, Way("qlora", 2, 2, "nf4"), load)
    assert needed == pytest.approx(4 * big.linear_weights * 512, rel=0.06)
    again = operations(big, Way("qlora", 2, 2, "nf4"), load, big.blocks)
    assert again == pytest.approx(6 * big.linear_weights * 512, rel=0.06)


def test_a_faster_card_is_faster(shape: Shape) -> None:
    seconds = [
        step_seconds(shape, QLORA, Load(512, 100, 512), 0, card_pace(card, torch.bfloat16))
        for card in CARDS.values()
    ]
    assert seconds[1] < seconds[0] or CARDS["rtx3060"].operations < CARDS["t4"].operations
    assert seconds[-1] == min(seconds)


def test_the_layer_that_is_timed_is_one_of_the_model(shape: Shape) -> None:
    """Its operations are those of one layer of the shape over the tokens it is timed with."""
    layer = pace._layer(shape, torch.float32)
    layer.run()
    assert not any(one.grad is not None for one in layer.loss.parameters())
    one_layer = 4 * shape.linear_weights / shape.layers * pace._TOKENS
    assert one_layer < layer.operations < 3 * one_layer  # at this width adapters weigh much


def test_calibrating_gives_speeds(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_fastest", lambda work, seconds=0.0: (work(), 0.5)[1])
    found = pace.calibrate(shape, torch.float32)
    assert found.measured
    assert found.factor >= 1
    assert step_seconds(shape, QLORA, Load(64, 8, 64), 0, found) > 0


# the command


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, ["plan", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_a_plan_needs_no_weights(base: Path) -> None:
    """The same plan with and without the safetensors files."""
    words = (f"model.base={base}", "train.max_steps=3")
    before = plan_training(load_config(None, words), timed=False)
    weights = list(base.glob("*.safetensors"))
    kept = [(path, path.read_bytes()) for path in weights]
    for path in weights:
        path.unlink()
    try:
        after = plan_training(load_config(None, words), timed=False)
    finally:
        for path, content in kept:
            path.write_bytes(content)
    assert kept
    assert after.data == before.data
    assert after.data.exact
    assert after.steps == 3
    assert (after.parameters, after.trainable) == (before.parameters, before.trainable)


def test_a_base_of_the_catalogue_is_planned_before_it_is_here() -> None:
    """Rows are counted and bounded; the card's memory decides, and the output says it estimates."""
    found = json.loads(run("ai-tutor-mistral-7b", "--card", "T4", "--json"))
    assert found["parameters"] == 7_241_732_096
    assert found["estimated"]
    assert not found["data"]["exact"]
    assert found["data"]["tokens"] == found["data"]["rows"] * 512
    assert found["seconds"] > 0
    assert found["peak"] < 14e9
    by_size = {one["gigabytes"]: one for one in found["fits"]}
    assert by_size[24]["fits"]
    assert not by_size[8]["fits"] or found["peak"] <= 8e9


def test_what_does_not_fit_comes_with_a_change_that_does() -> None:
    """Full training of 7B fits no card here: the plan says so, and what would."""
    words = ("model.base=mistral-7b", "method=full", "--card", "RTX4090")
    found = json.loads(run(*words, "--json"))
    assert found["over"]
    change = found["fits"][-1]["change"]
    assert change.startswith("method=qlora")
    again = json.loads(run("model.base=mistral-7b", *change.split(), "--card", "RTX4090", "--json"))
    assert again["peak"] <= 24e9
    assert not again["over"]


def test_advice_of_another_base_does_not_ask_for_this_ones_layers(tmp_path: Path) -> None:
    """A base with names of its own, and a limit that only a smaller one would keep."""
    base = tiny_base(tmp_path, "gpt2")
    words = (f"model.base={base}", "lora.targets=[c_attn]", "train.memory_limit=1MB")
    assert "train.memory_limit" in plan_training(load_config(None, words), timed=False).over
    config = load_config(None, ("lora.targets=[c_attn]",)).config
    big = shape_of(catalogue_config(SIZES["mistral-7b"]))
    room = (3 * 10**9, 0)
    advice = arranging.advise(config, (big, QLORA), Work(512, 4096, 0.5), room)
    assert advice is not None
    assert "lora.targets=all-linear" in advice
    assert "model.base=" in advice


def test_the_table_says_what_a_user_asks(base: Path) -> None:
    text = run(f"model.base={base}", "--no-calibrate")
    for word in ("parameters", "trainable", "steps", "activations", "peak", "24 GB", "disk"):
        assert word in text


def test_an_unknown_card_or_base_is_an_error_that_helps() -> None:
    with pytest.raises(InputError) as card:
        plan_training(load_config(None, ()), "GTX 1080")
    assert "rtx4090" in card.value.hint
    with pytest.raises(MissingError):
        plan_training(load_config(None, ("model.base=nobody/nothing",)), timed=False)


def test_a_refusal_says_what_would_fit(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice is tried: with it, the same limit is kept."""
    monkeypatch.setattr(arranging, "held_now", lambda _: 0)
    words = (f"model.base={base}", "method=full", "train.memory_limit=1.0MB")
    plan = plan_training(load_config(None, words), timed=False)
    assert "train.memory_limit" in plan.over


def test_models_list_and_plan_differ_by_what_the_list_says() -> None:
    """Layers below 2^20 weights hold 3 bytes more for 64 of them."""
    for entry in CATALOGUE:
        shape = shape_of(catalogue_config(SIZES[entry.name]))
        way = Way("qlora", 2, 2, "nf4")
        small = sum(one.weights for one in shape.linear if one.weights < SMALL)
        planned = base_bytes(shape, way)
        assert planned == pytest.approx(entry.quantized_bytes() + 3 * small / 64, rel=1e-3)
