"""Loading: streamed, quantized on the way, kept quantized, and every weight accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from halfbyte.config import resolve as resolve_config
from halfbyte.errors import InputError, IntegrityError, MissingError
from halfbyte.model import compute, quantize
from halfbyte.model.bases import Base, resolve
from halfbyte.model.cache import build_folder
from halfbyte.model.fast.weights import keep_as_quantized
from halfbyte.model.kept import find_kept, keep
from halfbyte.model.load import Form, form_of, load_base
from halfbyte.model.memory import summarize
from tests.tiny import ARCHS, tiny_base, tiny_model

QUANTIZATIONS = [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))


def form(method: str = "qlora", **model: Any) -> Form:
    config = resolve_config({"method": method, "model": {"compute": "fp32", **model}}).config
    return form_of(config, "cpu")


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return model(ids).logits


def plain_quantized(folder: Path, kind: str, double: bool) -> nn.Module:
    """What a user of transformers and bitsandbytes gets."""
    if kind == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return as_quantized(
        AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=how, dtype=torch.float32, device_map={"": "cpu"}
        )
    )


def as_quantized(model: nn.Module) -> nn.Module:
    """Without bitsandbytes' other format for AVX512-BF16, whose numbers differ."""
    keep_as_quantized(model)
    return model


@pytest.mark.parametrize("name", ["plain", "odd [q4] name"])
def test_what_a_killed_build_left_in_the_cache_goes_with_the_next_one(
    tmp_path: Path, name: str
) -> None:
    """Of the same folder only, whatever signs its name has: others may be under way."""
    left, others = tmp_path / f".{name}.a1.partial", tmp_path / ".other.a1.partial"
    left.mkdir()
    others.mkdir()
    built = build_folder(tmp_path / name, lambda folder: None)
    assert built.is_dir()
    assert not left.exists()
    assert others.is_dir()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_loaded_model_is_the_one_in_the_files(arch: str, tmp_path: Path) -> None:
    """Read by our own reader, every architecture gives the logits of the model that was saved."""
    folder = tiny_base(tmp_path, arch)
    model = load_base(resolve(str(folder)), form("lora"))
    assert torch.equal(logits(model), logits(tiny_model(arch)))
    assert not model.training


@pytest.mark.parametrize(("kind", "double"), QUANTIZATIONS)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_quantized_bases_are_bitsandbytes_own_bit_for_bit(
    arch: str, kind: str, double: bool, tmp_path: Path
) -> None:
    """Streamed, kept and plain: the same bytes under the same names, so adapters fit everywhere."""
    base = resolve(str(tiny_base(tmp_path, arch)))
    wanted = form(quantization=kind, double_quant=double)
    plain = plain_quantized(base.folder, kind, double)
    streamed = load_base(base, wanted)
    folder = keep(base, wanted)
    reopened = load_base(base, wanted)
    elsewhere = as_quantized(AutoModelForCausalLM.from_pretrained(folder))
    expected = plain.state_dict()
    for model in (streamed, reopened, elsewhere):
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert torch.equal(logits(model), logits(plain))


def test_the_kept_form_is_used_and_belongs_to_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once kept, nothing is quantized again; a changed base or another form does not find it."""
    base = resolve(str(tiny_base(tmp_path)))
    wanted = form()
    assert wanted.recipe is not None
    assert find_kept(base, wanted.recipe) is None
    folder = keep(base, wanted)
    with monkeypatch.context() as patch:
        patch.setattr(quantize.Recipe, "apply", None)  # would fail if called
        model = load_base(base, wanted)
    assert model.name_or_path == base.name
    assert find_kept(base, wanted.recipe) == folder
    other = form(double_quant=False).recipe
    assert other is not None
    assert find_kept(base, other) is None
    tiny_base(tmp_path, seed=1)
    assert find_kept(resolve(base.name), wanted.recipe) is None


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma", "qwen2"])
def test_only_linear_layers_but_the_head_are_quantized(arch: str, tmp_path: Path) -> None:
    """Norms stay in compute type, whatever type the files have; embeddings and head are held in
    the files' own where they are plain."""
    folder = tiny_base(tmp_path, arch)
    tiny_model(arch).to(torch.bfloat16).save_pretrained(folder)
    model = load_base(resolve(str(folder)), form())
    kinds = {type(module).__name__ for _, module in model.named_modules()}
    assert "Linear4bit" in kinds
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    for name, parameter in model.named_parameters():
        if "embed" in name or "lm_head" in name:
            assert parameter.dtype in (torch.bfloat16, torch.float32), name
        elif "proj" not in name or name.endswith("bias"):
            assert parameter.dtype == torch.float32, name


def test_files_without_the_models_prefix_load_quantized(tmp_path: Path) -> None:
    """GPT-2's own files call their weights `h.0…`, its class `transformer.h.0…`."""
    folder = tiny_base(tmp_path, "gpt2")
    path = folder / "model.safetensors"
    weights = {name.removeprefix("transformer."): w for name, w in load_file(path).items()}
    expected = logits(load_base(resolve(str(folder)), form()))
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(logits(load_base(resolve(str(folder)), form())), expected)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float, method: str, tmp_path: Path) -> None:
    """One NaN or infinity anywhere is named; quantization would have hidden it."""
    folder = tiny_base(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj"):
        load_base(resolve(str(folder)), form(method))


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.0.self_attn.q_proj.weight"]


def reshape(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name][:32].contiguous()


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("spoil", [drop, reshape])
def test_missing_or_misshapen_weights_are_refused(spoil: Any, method: str, tmp_path: Path) -> None:
    """transformers would fill them with random numbers and warn."""
    folder = tiny_base(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    spoil(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="q_proj"):
        load_base(resolve(str(folder)), form(method))


def test_a_weight_in_two_files_is_refused(tmp_path: Path) -> None:
    """Which of the two would be used is nobody's guess."""
    folder = tiny_base(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    name = "model.norm.weight"
    save_file({name: weights[name]}, folder / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"is in a\.safetensors too"):
        load_base(resolve(str(folder)), form("lora"))


def test_sharded_files_load_like_one(tmp_path: Path) -> None:
    """A base in several files is the same base; a second copy beside them is not read."""
    folder = tiny_base(tmp_path)
    expected = logits(load_base(resolve(str(folder)), form()))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "consolidated.safetensors")
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="100KB")
    base = resolve(str(folder))
    assert len(base.weights) > 2
    assert torch.equal(logits(load_base(base, form())), expected)


def test_bases_quantized_by_others_are_named(tmp_path: Path) -> None:
    """GPTQ, AWQ and the like cannot be trained on; bitsandbytes' own can, but not in full."""
    folder = tiny_base(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="gptq"):
        load_base(resolve(str(folder)), form())
    (folder / "config.json").write_text(json.dumps(config))
    kept = keep(resolve(str(folder)), form())
    assert torch.equal(
        logits(load_base(resolve(str(kept)), form())),
        logits(load_base(resolve(str(folder)), form())),
    )
    with pytest.raises(InputError, match="quantized in the files"):
        load_base(resolve(str(kept)), form("full"))


def test_a_model_that_does_not_generate_is_refused(tmp_path: Path) -> None:
    """An encoder, or an architecture transformers does not know, is refused by name."""
    folder = tiny_base(tmp_path)
    refused = {"t5": "left to right", "bert": "both directions", "no-such-model": "knows no model"}
    for kind, says in refused.items():
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(IntegrityError, match=says):
            load_base(resolve(str(folder)), form())


@pytest.mark.parametrize("size", [(64, 64), (7, 64), (513, 128), (1, 64)])
def test_quick_nf4_is_bitsandbytes_nf4(size: tuple[int, int]) -> None:
    """Random values, zeros, single outliers, exact bounds and tiny numbers give the same codes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator)
    weight[0] = 0
    if len(weight) > 6:
        weight[1] *= 1e-30
        weight[2] = 1e-42  # denormal
        weight[3, 0] = 1e30
        code = quantize.bnb.get_4bit_type("nf4", device="cpu")
        bounds = (code[1:] + code[:-1]) / 2
        weight[4, :16], weight[5, :15] = code, bounds
        weight[4, 16], weight[5, 15] = 1.0, 1.0
        weight[6, :15] = torch.nextafter(bounds, torch.tensor(2.0))
        weight[6, 15] = 1.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = weight.to(dtype).nan_to_num(posinf=6e4)
        packed, scales = quantize.quantize_nf4(given)
        expected = torch.ops.bitsandbytes.quantize_4bit.default(given, 64, "nf4", torch.uint8)
        assert torch.equal(packed, expected[0])
        assert torch.equal(scales, expected[1])


def test_summary_counts_packed_weights_as_what_they_stand_for(tmp_path: Path) -> None:
    """A 4-bit model has as many parameters as its base, in less than half its 16-bit bytes."""
    base = resolve(str(tiny_base(tmp_path, hidden_size=128, intermediate_size=512)))
    plain = summarize(load_base(base, form("lora")))
    packed = summarize(load_base(base, form("qlora")))
    assert packed.parameters == plain.parameters
    assert plain.base_bytes == 4 * plain.parameters
    assert packed.base_bytes_16bit == 2 * plain.parameters
    assert packed.base_bytes < plain.base_bytes / 3


def test_fp16_on_a_cpu_is_computed_in_fp32_and_said() -> None:
    """A recipe for a T4 runs here unchanged, and the summary can tell."""
    chosen = compute.choose("fp16", "cpu")
    assert (chosen.dtype, chosen.replaced) == (torch.float32, True)
    assert "fp16" in chosen.reason
    assert compute.choose("bf16", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("able", [True, False])
def test_auto_takes_bf16_only_where_there_are_instructions(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without them bf16 is several times slower than fp32."""
    monkeypatch.setattr(compute, "has_cpu_bf16", lambda: able)
    assert compute.choose("auto", "cpu").name == ("bf16" if able else "fp32")


@pytest.mark.parametrize(
    ("setting", "capability", "name"),
    [
        ("auto", (7, 5), "fp16"),
        ("auto", (8, 0), "bf16"),
        ("bf16", (7, 5), "fp16"),
        ("fp16", (9, 0), "fp16"),
        ("fp32", (7, 5), "fp32"),
    ],
)
def test_cards_without_bf16_compute_in_fp16(
    setting: Any, capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 (7.5) has no bf16 units; from Ampere (8.0) on there are."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "card")
    assert compute.choose(setting, "cuda").name == name


def test_full_training_holds_float32_weights() -> None:
    """AdamW's steps at 2e-5 are smaller than bf16's spacing."""
    assert form("full", compute="bf16").weights == torch.float32
    assert form("lora", compute="bf16").weights == torch.bfloat16


@pytest.mark.model
def test_the_embedded_base_loads_and_answers() -> None:
    """The package's file is found without importing it, converted once, and knows its capital."""
    from halfbyte.model.bases import load_tokenizer

    base = resolve("smollm2-135m")
    tokenizer = load_tokenizer(base)
    assert base.kind == "embedded"
    assert sum(p.numel() for p in load_base(base, form("lora")).parameters()) == 134_515_008
    model = load_base(base, form())
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_an_unknown_base_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Near names are offered; a hub id says at once which command fetches it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean smollm2-135m\?"):
        resolve("smollm2-135")
    with pytest.raises(MissingError, match="halfbyte models pull mistral-7b"):
        resolve("mistral-7b")
    with pytest.raises(MissingError, match="halfbyte models pull owner/name --revision v2"):
        resolve("owner/name", "v2")
    with pytest.raises(MissingError, match="no such file"):
        resolve("absent.gguf")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match=r"not a \.bin file"):
        resolve("weights.bin")
    with pytest.raises(InputError, match="revision"):
        resolve("smollm2-135m", "main")


def test_hashes_follow_the_files(tmp_path: Path) -> None:
    """The receipt's hashes change with any file that shapes the base."""
    folder = tiny_base(tmp_path)
    base: Base = resolve(str(folder))
    before = base.hashes()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    after = base.hashes()
    assert {name for name in before if before[name] != after[name]} == {"config.json"}
