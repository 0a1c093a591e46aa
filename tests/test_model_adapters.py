"""Adapters: B = 0, float32, PEFT's format both ways, several on one base, and hostile folders."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from halfbyte.config import LoraSettings
from halfbyte.config import resolve as resolve_config
from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.adapters import attach, load, save, target_names
from halfbyte.model.bases import resolve
from halfbyte.model.fast import checkpoint
from halfbyte.model.load import form_of, load_base
from halfbyte.model.memory import summarize
from tests.tiny import ARCHS, tiny_base, tiny_model

IDS = torch.arange(24).reshape(2, 12)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def train(model: nn.Module, steps: int = 2) -> None:
    """A few large steps, so that B is far from zero."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def tuned(arch: str = "llama", seed: int = 0, **lora: Any) -> PeftModel:
    model = attach(tiny_model(arch), LoraSettings(rank=4, **lora), seed)
    train(model)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    save(tuned(), folder)
    return folder


METHODS: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "qlora"},
    {"method": "qlora", "lora": {"dora": True}},
    {"method": "lora", "lora": {"rslora": True, "targets": "attention"}},
]


@pytest.mark.parametrize("tree", METHODS, ids=json.dumps)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_method_on_every_architecture(
    arch: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Step 0 is the base; training changes it; saved, it comes back the same here and in PEFT."""
    base = resolve(str(tiny_base(tmp_path, arch)))
    config = resolve_config({**tree, "model": {"compute": "fp32"}}).config
    form = form_of(config, "cpu")
    before = logits(load_base(base, form))
    model = attach(load_base(base, form), config.lora, seed=3)
    assert torch.equal(logits(model), before)
    train(model)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-2)
    save(model, tmp_path / "adapter")
    assert torch.equal(logits(load(load_base(base, form), tmp_path / "adapter")), after)
    plain = PeftModel.from_pretrained(load_base(base, form), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_full_training_starts_from_the_base_and_is_saved_whole(arch: str, tmp_path: Path) -> None:
    """All weights learn, in float32, and the saved folder is a base like any other."""
    config = resolve_config({"method": "full", "model": {"compute": "bf16"}}).config
    form = form_of(config, "cpu")
    model = load_base(resolve(str(tiny_base(tmp_path, arch))), form).requires_grad_(True)
    train(model)
    model.save_pretrained(tmp_path / "tuned")
    again = load_base(resolve(str(tmp_path / "tuned")), form)
    assert torch.equal(logits(again), logits(model))
    assert summarize(model).trainable == summarize(model).parameters


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", [["c_attn", "q_proj", "v_proj"], "all-linear"])
def test_an_adapter_of_plain_peft_loads_here(arch: str, targets: Any, tmp_path: Path) -> None:
    """Whoever trained it, patterns of ranks included."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules=targets,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 32},
        init_lora_weights="gaussian",
    )
    model = get_peft_model(tiny_model(arch), config)
    train(model)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    here = load(tiny_model(arch), tmp_path / "theirs")
    torch.testing.assert_close(logits(here), logits(model), atol=1e-5, rtol=1e-5)


def test_adapters_are_float32_seeded_and_alone_trainable() -> None:
    """Whatever type the base has; the caller's random numbers go on undisturbed."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = attach(tiny_model().to(torch.bfloat16), LoraSettings(rank=4), seed=1)
    assert torch.equal(torch.rand(3), expected)
    for name, parameter in model.named_parameters():
        adapter = "lora_" in name
        assert parameter.requires_grad == adapter
        assert parameter.dtype == (torch.float32 if adapter else torch.bfloat16)
        if "lora_B" in name:
            assert not parameter.any()
    again, other = (attach(tiny_model(), LoraSettings(rank=4), seed=seed) for seed in (1, 2))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(model.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(model.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize(
    ("rslora", "scale"), [(False, 32 / 16), (True, 32 / 16**0.5)], ids=["plain", "rslora"]
)
def test_the_scale_is_alpha_over_rank(rslora: bool, scale: float) -> None:
    """alpha / rank, or alpha / sqrt(rank) when rank-stabilized."""
    model = attach(tiny_model(), LoraSettings(rank=16, alpha=32, rslora=rslora), seed=0)
    layer: Any = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert layer.scaling["default"] == pytest.approx(scale)


@pytest.mark.parametrize(
    ("arch", "targets", "names"),
    [
        ("llama", "attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("gpt2", "all-linear", ["c_attn", "c_fc", "c_proj"]),
        ("gpt2", "attention", ["attn.c_proj", "c_attn"]),
        ("gpt2", ("mlp.c_proj",), ["mlp.c_proj"]),
        ("llama", ("layers.1.mlp.up_proj", "q_proj"), ["1.mlp.up_proj", "q_proj"]),
    ],
)
def test_targets_are_the_shortest_names_that_select_them(
    arch: str, targets: Any, names: list[str]
) -> None:
    """GPT-2's MLP and attention both have a c_proj; only the wanted one is named."""
    assert target_names(tiny_model(arch), targets) == names


def test_the_head_is_no_target() -> None:
    """Not by `all-linear`, and not by name: the answer lists what there is."""
    assert "lm_head" not in target_names(tiny_model(), "all-linear")
    with pytest.raises(InputError, match="no linear layer is called lm_head, qproj") as caught:
        target_names(tiny_model(), ("q_proj", "lm_head", "qproj"))
    assert "down_proj, gate_proj, k_proj" in caught.value.hint


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """The file's order is fixed, so equal weights are equal files."""
    model = tuned()
    for name in ("a", "b"):
        save(model, tmp_path / name)
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_several_adapters_share_a_base(tmp_path: Path) -> None:
    """Each answers as it does alone; switched off, the base does."""
    for seed in (1, 2):
        save(tuned(seed=seed), tmp_path / str(seed))
    alone = {seed: logits(load(tiny_model(), tmp_path / str(seed))) for seed in (1, 2)}
    model = load(tiny_model(), tmp_path / "1", name="one")
    load(model, tmp_path / "2", name="two")
    assert torch.equal(logits(model), alone[1])
    model.set_adapter("two")
    assert torch.equal(logits(model), alone[2])
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model()))
    with pytest.raises(InputError, match="'two' is loaded already"):
        load(model, tmp_path / "1", name="two")


def test_a_loaded_adapter_trains_only_when_asked(saved: Path) -> None:
    """For inference nothing requires a gradient; for going on, the adapter and only it."""
    frozen = load(tiny_model(), saved)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    going_on = load(tiny_model(), saved, trainable=True)
    for name, parameter in going_on.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)


def test_checkpointing_changes_no_gradient() -> None:
    """Recomputed activations give the gradients that kept ones give."""
    found = []
    for recompute in (False, True):
        model = attach(tiny_model(), LoraSettings(rank=4), seed=0)
        train(model, 1)
        if recompute:
            assert checkpoint.set_layers(model, 2) == 2
        model.train()
        model(IDS, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / WEIGHTS)


def halve(weights: dict[str, torch.Tensor]) -> None:
    for name in list(weights)[::2]:
        del weights[name]


def poison(weights: dict[str, torch.Tensor]) -> None:
    next(iter(weights.values()))[0, 0] = float("nan")


def stretch(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = torch.zeros(4, 65)


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 64)


def to_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), "not an adapter"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no adapter_model"),
    "pickled": (to_pickle, "pickles"),
    "pickle under its name": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({})), "pickle"),
    "not JSON": (lambda f: (f / CONFIG).write_text("{"), "not JSON"),
    "unknown key": (lambda f: edit(f, post_load_hook="os.system"), "post_load_hook: unknown key"),
    "other method": (lambda f: edit(f, peft_type="IA3"), "peft_type"),
    "other task": (lambda f: edit(f, task_type="SEQ_CLS"), "task_type"),
    "changes the base": (lambda f: edit(f, init_lora_weights="pissa"), "init_lora_weights"),
    "unsupported part": (lambda f: edit(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "trains biases": (lambda f: edit(f, bias="all"), "bias"),
    "regular expression": (lambda f: edit(f, target_modules="(a+)+$"), "target_modules"),
    "pattern in a list": (lambda f: edit(f, target_modules=["(a+)+$"]), "target_modules"),
    "pattern of ranks": (lambda f: edit(f, rank_pattern={"(a+)+$": 2}), "rank_pattern"),
    "rank zero": (lambda f: edit(f, r=0), "r: "),
    "rank of another": (lambda f: edit(f, r=8), r"shape \[4, 64\], expected \[8, 64\]"),
    "rank beyond sense": (lambda f: edit(f, r=10**9), "r: "),
    "infinite alpha": (lambda f: edit(f, lora_alpha=1e999), "not JSON|lora_alpha"),
    "other base": (
        lambda f: edit(f, base_model_name_or_path="mistralai/Mistral-7B-v0.1"),
        "was trained on mistralai",
    ),
    "half its keys": (lambda f: reweigh(f, halve), "lora_A.weight: missing"),
    "one key too many": (lambda f: reweigh(f, add), "no such layer"),
    "another shape": (lambda f: reweigh(f, stretch), r"shape \[4, 65\], expected \[4, 96\]"),
    "NaN": (lambda f: reweigh(f, poison), "NaN"),
    "other targets": (lambda f: edit(f, target_modules=["q_proj"]), "not one of target_modules"),
    "DoRA without magnitudes": (lambda f: edit(f, use_dora=True), "lora_magnitude_vector: missing"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_an_adapter_that_does_not_fit_is_refused_whole(name: str, saved: Path) -> None:
    """The first three mismatches are named, and the model is as it was."""
    spoil, says = SPOILT[name]
    spoil(saved)
    model = tiny_model()
    model.name_or_path = "meta-llama/Llama-2-7b-hf"
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(IntegrityError, match=says) as caught:
        load(model, saved)
    assert len(caught.value.faults) <= 3
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_for_another_architecture_names_its_layers(saved: Path) -> None:
    """A Llama adapter on GPT-2: nothing fits, three are named, the rest counted."""
    with pytest.raises(IntegrityError, match="weights differ") as caught:
        load(tiny_model("gpt2"), saved)
    assert len(caught.value.faults) == 3


def test_the_catalogues_name_and_the_hubs_are_one_base(saved: Path) -> None:
    """An adapter trained on the hub id loads on the catalogue name, and on a copy in a folder."""
    edit(saved, base_model_name_or_path="mistralai/Mistral-7B-v0.1")
    for name in ("mistral-7b", "mistralai/Mistral-7B-v0.1", str(saved.parent), ""):
        model = tiny_model()
        model.name_or_path = name
        load(model, saved)
