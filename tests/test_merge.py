"""A merged model does what base + adapter does, or the merge says that it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from halfbyte.data.records import Encoded
from halfbyte.errors import IntegrityError
from halfbyte.model.fast.weights import keep_as_quantized
from halfbyte.ship.companions import ChatForm, Companions
from halfbyte.ship.deltas import open_parts
from halfbyte.ship.fidelity import Scored, score
from halfbyte.ship.merge import MergedWeights, MergePlan, Proof, merge, merged_from
from halfbyte.ship.quantize import Quantized
from halfbyte.ship.report import MergeRefusedError
from tests import ship_tiny

ROWS = [
    Encoded(
        np.array(ids, np.int32), np.array([False] * 8 + [True] * (len(ids) - 8)), prompt_length=8
    )
    for ids in np.random.default_rng(0).integers(4, 300, (12, 24))
]


def held(folder: Path, quantized: Quantized | None = None) -> PreTrainedModel:
    """The base as a training holds it."""
    options = {}
    if quantized is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantized.kind,
            bnb_4bit_use_double_quant=quantized.double_quant,
            bnb_4bit_compute_dtype=quantized.dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    keep_as_quantized(model)
    return model


def answers(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Six greedy tokens after each prompt."""
    given = torch.tensor(prompts)
    made = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=None,
    )
    return made[:, given.shape[1] :].tolist()


def proof(base: Path, adapter: Path, quantized: Quantized | None, **more: object) -> Proof:
    """Measures with transformers and PEFT themselves."""

    def reference() -> Scored:
        return score(
            PeftModel.from_pretrained(held(base, quantized), adapter).eval(), ROWS, answers
        )

    return Proof(reference, lambda folder: score(held(folder), ROWS, answers), **more)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ship_tiny.base(tmp_path_factory.mktemp("merge") / "base")


def adapter(base: Path, folder: Path, size: float = 0.05, **more: object) -> Path:
    ship_tiny.adapted(held(base), size=size, **more).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.up_proj": 32}},
    ],
    ids=["lora", "rslora", "dora", "patterns"],
)
def test_merged_weights_are_pefts(base: Path, tmp_path: Path, more: dict) -> None:
    """Every merged weight equals PEFT's own merge into the same float32 weights."""
    folder = adapter(base, tmp_path / "adapter", **more)
    merged = MergedWeights(base, open_parts({folder: 1.0}), "original")
    wanted = PeftModel.from_pretrained(held(base), folder).merge_and_unload().state_dict()
    for name in merged.names():
        torch.testing.assert_close(merged.read(name).float(), wanted[name], atol=1e-5, rtol=1e-5)


def test_fan_in_fan_out(tmp_path: Path) -> None:
    """GPT-2's layers store [in, out]; their merge equals PEFT's."""
    tokenizer = ship_tiny.bpe_tokenizer()
    model = ship_tiny.tiny_model("gpt2", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    ship_tiny.adapted(held(tmp_path / "base"), fan_in_fan_out=True).save_pretrained(tmp_path / "a")
    merged = MergedWeights(tmp_path / "base", open_parts({tmp_path / "a": 1.0}), "original")
    peft = PeftModel.from_pretrained(held(tmp_path / "base"), tmp_path / "a")
    wanted = peft.merge_and_unload().state_dict()
    for name in merged.names():
        torch.testing.assert_close(merged.read(name).float(), wanted[name], atol=1e-5, rtol=1e-5)


def test_adapters_sum_with_weights(base: Path, tmp_path: Path) -> None:
    """Two adapters with weights give base + w1 * delta1 + w2 * delta2."""
    one, two = adapter(base, tmp_path / "1"), adapter(base, tmp_path / "2", seed=2)
    plain = MergedWeights(base, (), "original")
    each = [MergedWeights(base, open_parts({path: 1.0}), "original") for path in (one, two)]
    both = MergedWeights(base, open_parts({one: 0.5, two: -0.25}), "original")
    for name in plain.names():
        start = plain.read(name).float()
        wanted = start + 0.5 * (each[0].read(name) - start) - 0.25 * (each[1].read(name) - start)
        torch.testing.assert_close(both.read(name).float(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantized_is_what_training_used(
    base: Path, kind: str, double_quant: bool, dtype: torch.dtype
) -> None:
    """The dequantized weights equal, bit for bit, those of the loaded model's 4-bit layers."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config)
    ours = MergedWeights(base, (), "dequantized", Quantized(kind, double_quant, dtype))
    layers = 0
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            layers += 1
            wanted = bnb.dequantize_4bit(module.weight.data, state)
            assert torch.equal(ours.read(f"{name}.weight"), wanted.float()), name
    assert layers == len([name for name in ours.names() if "_proj" in name])


def test_bad_original_merge_is_seen(base: Path, tmp_path: Path) -> None:
    """With coarse quantization and a tiny delta, the merge into the original weights is another
    model: it is named unfaithful, and the dequantized one is kept."""
    folder = adapter(base, tmp_path / "adapter", size=0.005)
    quantized = Quantized("fp4", True, torch.float32)
    plan = MergePlan(base, {folder: 1.0}, quantized)
    out = tmp_path / "merged"
    report = merge(plan, out, Companions(base, base), proof(base, folder, quantized))
    kept = report.kept or ""
    assert kept.partition("-")[0] == "dequantized"
    assert report.limits.broken_by(report.outcomes["original"].fidelity)
    assert report.quantization_share > 10
    assert json.loads((out / "merge-report.json").read_text())["kept"] == kept
    again = score(held(out), ROWS, answers)
    assert again.perplexity == pytest.approx(report.outcomes[kept].fidelity.perplexity)


def test_refused_when_no_candidate_is_faithful(base: Path, tmp_path: Path) -> None:
    """Only the bad candidate: nothing is written but the report, unless the user insists."""
    folder = adapter(base, tmp_path / "adapter", size=0.005)
    quantized = Quantized("fp4", True, torch.float32)
    plan = MergePlan(base, {folder: 1.0}, quantized, forms=("original",))
    out = tmp_path / "merged"
    with pytest.raises(MergeRefusedError, match="equal choices") as refused:
        merge(plan, out, Companions(base, base), proof(base, folder, quantized))
    assert not out.exists()
    assert refused.value.report.kept is None
    assert json.loads((tmp_path / "merged-merge-report.json").read_text())["kept"] is None
    forced = merge(plan, out, Companions(base, base), proof(base, folder, quantized, force=True))
    assert forced.forced
    assert (out / "model.safetensors").is_file()


def in_bfloat16(base: Path, folder: Path, scale: float = 1.0) -> Path:
    """The tiny base, stored in bfloat16; `scale` makes one of its weights larger."""
    model = held(base)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[0, 0] *= scale
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def test_float16_is_tried_where_bfloat16_answers_differ(base: Path, tmp_path: Path) -> None:
    """A bfloat16 merge that parts from base + adapter is measured in float16 too; the nearer one
    is kept, and the report says of what it was made."""
    coarse = in_bfloat16(base, tmp_path / "coarse")
    folder = adapter(coarse, tmp_path / "adapter", size=0.05)
    out = tmp_path / "merged"
    given = proof(coarse, folder, None)
    answered = iter([given.candidate, given.candidate])

    def candidate(merged: Path) -> Scored:
        found = next(answered)(merged)
        stored = load_file(merged / "model.safetensors")["model.norm.weight"].dtype
        if stored == torch.bfloat16:  # one choice off: the tiny model's own may all be the same
            found.choices[0][0] += 1
        return found

    report = merge(
        MergePlan(coarse, {folder: 1.0}),
        out,
        Companions(coarse, coarse),
        Proof(given.reference, candidate),
    )
    assert set(report.outcomes) == {"original", "original-float16"}
    assert report.kept == "original-float16"
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    assert "stored in float16" in "\n".join(report.lines())
    assert merged_from(out) == ("original", {folder: 1.0})
    (folder / "adapter_model.safetensors").write_bytes(b"changed")
    assert merged_from(out) == ("original", {})


def test_what_float16_cannot_hold_stays_bfloat16(base: Path, tmp_path: Path) -> None:
    """A weight beyond 65,504 leaves the merge in bfloat16 instead of writing infinity."""
    coarse = in_bfloat16(base, tmp_path / "coarse", scale=1e9)
    folder = adapter(coarse, tmp_path / "adapter", size=0.05)
    given = proof(coarse, folder, None, force=True)
    out = tmp_path / "merged"

    def candidate(merged: Path) -> Scored:
        found = given.candidate(merged)
        found.choices[0][0] += 1
        return found

    plan = MergePlan(coarse, {folder: 1.0})
    report = merge(plan, out, Companions(coarse, coarse), replace(given, candidate=candidate))
    assert set(report.outcomes) == {"original"}
    assert not list(out.glob("*float16*"))


def test_unquantized_merge_has_companions(base: Path, tmp_path: Path) -> None:
    """A merge of a LoRA run opens in plain transformers with tokenizer, template and ends."""
    folder = adapter(base, tmp_path / "adapter", size=0.2)
    companions = Companions(base, base, ChatForm("{{ messages[0].content }}", (1, 2)), "# card")
    out = tmp_path / "merged"
    report = merge(
        MergePlan(base, {folder: 1.0}, dtype=torch.float32),
        out,
        companions,
        proof(base, folder, None),
    )
    assert report.kept == "original"
    assert report.outcomes["original"].fidelity.choices == 1.0
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 1]
    assert (out / "README.md").read_text() == "# card"


def test_foreign_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    """An adapter for another width is refused with the mismatches, before anything is written."""
    other = ship_tiny.base(tmp_path / "other", hidden_size=32)
    folder = adapter(other, tmp_path / "adapter")
    with pytest.raises(IntegrityError, match="do not fit the base"):
        MergedWeights(base, open_parts({folder: 1.0}), "original")
