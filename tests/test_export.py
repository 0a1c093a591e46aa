"""What is exported opens again, encodes chats to the same ids and gives the same answers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from halfbyte.cli import cli
from halfbyte.data.records import Message
from halfbyte.errors import InputError
from halfbyte.ship import export as ship
from halfbyte.ship.card import CardFacts, model_card
from halfbyte.ship.chats import Chat, chats
from halfbyte.ship.check import Agreement, ExportReport, Trial, check
from halfbyte.ship.companions import ChatForm, Companions
from halfbyte.ship.deltas import Adapter, open_parts
from halfbyte.ship.gguf_read import GgufTokenizer, load_model, open_gguf, read_adapter
from halfbyte.ship.gguf_shapes import gguf_name
from halfbyte.ship.gguf_write import TYPES, Label
from halfbyte.ship.gotemplate import Frame
from halfbyte.ship.merge import MergedWeights
from tests import llama_peer, ship_tiny

ARCHS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
peer = pytest.mark.skipif(bool(llama_peer.missing()), reason=llama_peer.missing() or "present")


def tokenizer_of(arch: str):
    if arch in ("gemma", "mistral"):
        return ship_tiny.spm_tokenizer(prefix=arch == "mistral")
    return ship_tiny.bpe_tokenizer("qwen2" if arch.startswith("qwen") else "smollm")


def held(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def answers(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Eight greedy tokens after each prompt."""
    made = []
    for ids in prompts:
        out = model.generate(
            input_ids=torch.tensor([list(ids)]),
            # pad is the end mark here: a mask made from ids would hide every turn's end
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
        )
        made.append(out[0, len(ids) :].tolist())
    return made


def encoder(folder: Path) -> Callable[[Sequence[Message]], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(messages: Sequence[Message]) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    return encode


def shipped(base: Path) -> tuple[ship.Shipment, tuple[Chat, ...]]:
    chat = ChatForm(stop_ids=(AutoTokenizer.from_pretrained(base).eos_token_id,))
    companions = Companions(base, base, chat, "# A model card")
    return ship.Shipment(companions, Label("tiny", "tiny-base")), chats(encoder(base))


def shorter(all_chats: Sequence[Chat]) -> list[Chat]:
    """Every fourth chat: enough for answers of models with random weights."""
    return list(all_chats[::4])


def loose_accents(report: ExportReport) -> int:
    """Qwen's tokenizer composes accents and llama.cpp does not: one chat has them, and the report
    says so."""
    if not any("NFC" in note for note in report.notes):
        return 0
    assert report.ids.first.row == 11
    return 1


@pytest.fixture(params=ARCHS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return ship_tiny.base(tmp_path / "base", request.param, tokenizer_of(request.param))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return ship_tiny.base(tmp_path / "base")


def adapter(base: Path, folder: Path, **more: object) -> Path:
    ship_tiny.adapted(held(base), **more).save_pretrained(folder)
    return folder


def test_gguf_of_every_shape(base: Path, tmp_path: Path) -> None:
    """A float32 GGUF read again holds the very model: logits bit for bit, ids of all chats."""
    shipment, tried = shipped(base)
    exported = ship.export_gguf(ship.stored(base), tmp_path / "out", shipment, "f32")
    report = check(exported, Trial(tried))
    assert report.ids.same == len(tried) - loose_accents(report), report.lines()
    again, wanted = load_model(tmp_path / "out" / ship.MODEL_GGUF, shipment.config), held(base)
    for chat in shorter(tried):
        ids = torch.tensor([chat.ids])
        torch.testing.assert_close(again(ids).logits, wanted(ids).logits, atol=1e-5, rtol=1e-5)


def test_no_bars_while_it_is_opened_again(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Opening a folder or a GGUF file to check it prints nothing: our report says what happened."""
    shipment, _ = shipped(llama)
    whole = ship.export_safetensors(llama, tmp_path / "whole", shipment)
    packed = ship.export_gguf(ship.stored(llama), tmp_path / "packed", shipment)
    capfd.readouterr()
    for exported in (whole, packed):
        assert exported.open_model is not None
        exported.open_model()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", TYPES)
def test_gguf_types(llama: Path, tmp_path: Path, kind: str) -> None:
    """Every type is written and read; its weights differ by what its bits allow."""
    shipment, _ = shipped(llama)
    ship.export_gguf(ship.stored(llama), tmp_path / "out", shipment, kind)
    again = load_model(tmp_path / "out" / ship.MODEL_GGUF, shipment.config).state_dict()
    wanted = held(llama).state_dict()
    limit = {"f32": 0, "f16": 1e-3, "bf16": 1e-6, "q8_0": 0.01, "q5": 0.08, "q4": 0.15}
    most = limit[kind if kind in limit else kind[:2]]
    for name, weight in wanted.items():
        lost = (again[name] - weight).norm() / weight.norm()
        assert lost <= most, f"{name}: {lost}"


def test_gguf_of_adapter_and_base_summed(llama: Path, tmp_path: Path) -> None:
    """Adapters merged while they are written give base + adapter's answers."""
    folder = adapter(llama, tmp_path / "adapter", size=0.2)
    shipment, tried = shipped(llama)
    weights = MergedWeights(llama, open_parts({folder: 1.0}), "original")
    exported = ship.export_gguf(weights, tmp_path / "out", shipment, "f32")
    prompts = [chat.ids for chat in shorter(tried)]
    wanted = answers(ship_tiny.adapted(held(llama), size=0.2), prompts)
    report = check(exported, Trial(shorter(tried), wanted, answers))
    assert report.greedy is not None
    assert report.greedy.same == len(prompts), report.lines()
    assert wanted != answers(held(llama), prompts)


def test_llama3_rotary_factors(tmp_path: Path) -> None:
    """Llama 3's scaled rotary frequencies are written as factors: theta ** (2i/d) scaled."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    base = ship_tiny.base(tmp_path / "base", rope_parameters=rope)
    shipment, _ = shipped(base)
    ship.export_gguf(ship.stored(base), tmp_path / "out", shipment, "f32")
    reader = open_gguf(tmp_path / "out" / ship.MODEL_GGUF)
    factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(8.0)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"k_proj": 3}}])
def test_lora_gguf_holds_the_deltas(base: Path, tmp_path: Path, more: dict) -> None:
    """A LoRA GGUF adds to each weight what PEFT adds, whatever the scale's rule."""
    folder = adapter(base, tmp_path / "adapter", **more)
    shipment, tried = shipped(base)
    exported = ship.export_lora_gguf(folder, tmp_path / "out", shipment)
    assert check(exported, Trial(tried)).ids.same == 20
    added = read_adapter(tmp_path / "out" / ship.ADAPTER_GGUF, shipment.config)
    opened = Adapter(folder)
    assert len(added) == len(opened.modules)
    for module in opened.modules:
        factors = opened.factors(module)
        wanted = factors.scale * factors.b @ factors.a
        torch.testing.assert_close(added[gguf_name(f"{module}.weight")], wanted)


def test_dora_has_no_lora_gguf(llama: Path, tmp_path: Path) -> None:
    """llama.cpp cannot apply DoRA: refused, and nothing is left."""
    folder = adapter(llama, tmp_path / "adapter", use_dora=True)
    with pytest.raises(InputError, match="DoRA"):
        ship.export_lora_gguf(folder, tmp_path / "out", shipped(llama)[0])
    assert not (tmp_path / "out").exists()


def test_peft_export(llama: Path, tmp_path: Path) -> None:
    """The exported adapter opens in plain PEFT and answers as before."""
    folder = adapter(llama, tmp_path / "adapter", size=0.2)
    shipment, tried = shipped(llama)
    wanted = answers(
        ship_tiny.adapted(held(llama), size=0.2), [chat.ids for chat in shorter(tried)]
    )
    exported = ship.export_peft(folder, tmp_path / "out", shipment, lambda: held(llama))
    report = check(exported, Trial(shorter(tried), wanted, answers))
    assert report.ids.same == report.greedy.same == len(wanted)
    assert (tmp_path / "out" / "export-report.json").is_file()
    assert {"README.md", "tokenizer.json", "chat_template.jinja"} <= set(exported.files)


def test_safetensors_export(llama: Path, tmp_path: Path) -> None:
    """A folder of weights opens in plain transformers and answers as before."""
    shipment, tried = shipped(llama)
    wanted = answers(held(llama), [chat.ids for chat in shorter(tried)])
    exported = ship.export_safetensors(llama, tmp_path / "out", shipment)
    report = check(exported, Trial(shorter(tried), wanted, answers))
    assert report.ids.same == report.greedy.same == len(wanted)


def test_ollama_export(base: Path, tmp_path: Path) -> None:
    """The frame behind the Go template gives every chat its ids, but those it cannot trim."""
    shipment, tried = shipped(base)
    exported = ship.export_ollama(ship.stored(base), tmp_path / "out", shipment)
    report = check(exported, Trial(tried))
    # Gemma's template trims contents, which no Go template of Ollama's can
    odd = sum(any(m.content != m.content.strip() for m in chat.messages) for chat in tried)
    trims = shipment.config.model_type in ("gemma", "mistral")
    fine = 20 - (odd if trims else 0) - loose_accents(report)
    assert report.ids.same >= fine, report.lines()
    text = (tmp_path / "out" / "Modelfile").read_text()
    end = AutoTokenizer.from_pretrained(base).eos_token
    assert "FROM ./model.gguf\n" in text
    assert f'PARAMETER stop "{end}"\n' in text
    assert text.count('"""') == 2


def test_default_system_text_in_frame() -> None:
    """A template with a default system text shows it only where none is given."""

    def render(messages: Sequence[Message]) -> str:
        if messages[0].role != "system":
            messages = [Message("system", "Be kind."), *messages]
        return "".join(f"<{m.role}>\n{m.content}</>\n" for m in messages) + "<assistant>\n"

    frame = Frame.of(render)
    for chat in chats(lambda messages: ()):
        assert frame.render(chat.messages) == render(chat.messages)
    assert frame.go_template().startswith("<system>\n{{ if .System }}{{ .System }}</>\n{{ else }}")


def test_vllm_export(llama: Path, tmp_path: Path) -> None:
    """The script is valid shell, names each adapter once, and allows their largest rank."""
    one = adapter(llama, tmp_path / "one")
    two = adapter(llama, tmp_path / "two", r=12)
    shipment, tried = shipped(llama)
    exported = ship.export_vllm({"a": one, "b": two}, "org/base", tmp_path / "out", shipment)
    assert check(exported, Trial(tried)).ids.same == 20
    script = tmp_path / "out" / "serve.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "--max-lora-rank 16 " in script.read_text()
    assert "--lora-modules a=./a b=./b" in script.read_text()
    dora = adapter(llama, tmp_path / "dora", use_dora=True)
    with pytest.raises(InputError, match="DoRA"):
        ship.export_vllm({"a": dora}, "org/base", tmp_path / "no", shipment)


@pytest.mark.parametrize(
    ("kind", "got", "noted"),
    [("q8_0", [1, 3], True), ("q8_0", [1, 2], False), ("f16", [1, 3], False)],
)
def test_what_rounding_does_to_answers_is_said_where_they_differ(
    kind: str, got: list[int], noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = Agreement.of([[1, 2]], [got])
    report = ExportReport("gguf", "out", ("x.gguf",), Agreement.of([[1]], [[1]]), greedy)
    monkeypatch.setattr("halfbyte.api.export", lambda *_: report)
    done = CliRunner().invoke(cli, ["export", "run", "--to", "gguf", "--type", kind])
    assert done.exit_code == 0, done.output
    assert ("--type f16" in done.output) == noted


def test_parting_is_located() -> None:
    """The first place where answers part is named by row and place."""
    agreement = Agreement.of([[1, 2], [1, 2, 3]], [[1, 2], [1, 9, 3]])
    assert (agreement.first.row, agreement.first.place) == (1, 1)
    assert (agreement.same, agreement.equal, agreement.tokens) == (1, 3, 5)


def require_same(wanted: list[list[int]], said: llama_peer.Answers, kind: str) -> None:
    """At least 90 % of greedy choices along the wanted answer; where nothing is rounded, also of
    free answers before they part. (With eight bits a free answer stands or falls with its first
    close call: random weights have many.)"""
    choices = [
        one == two
        for row, other in zip(wanted, said.choices, strict=True)
        for one, two in zip(row, other, strict=True)
    ]
    assert sum(choices) >= 0.9 * len(choices)
    free = [ids[: len(row)] for row, ids in zip(wanted, said.greedy, strict=True)]
    agreed = Agreement.of(wanted, free)
    assert kind != "f32" or agreed.share >= 0.9, agreed.line()


@pytest.mark.peer
@peer
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_agrees(base: Path, tmp_path: Path, kind: str) -> None:
    """A real llama.cpp reads the file, cuts all texts to the same ids, and chooses the same."""
    shipment, tried = shipped(base)
    ship.export_gguf(ship.stored(base), tmp_path / "out", shipment, kind)
    path = tmp_path / "out" / ship.MODEL_GGUF
    wanted = answers(held(base), [chat.ids for chat in tried])
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [chat.messages[-1].content for chat in tried]
    said = llama_peer.ask(
        path, texts=texts, prompts=[chat.ids for chat in tried], forced=wanted, count=8
    )
    composed = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    accents = 1 if shipment.config.model_type.startswith("qwen") else 0
    assert sum(one == two for one, two in zip(said.ids, composed, strict=True)) == 20 - accents
    assert said.ids == [GgufTokenizer(open_gguf(path)).encode(text) for text in texts]
    require_same(wanted, said, kind)


@pytest.mark.peer
@peer
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_applies_the_adapter(base: Path, tmp_path: Path, kind: str) -> None:
    """The LoRA GGUF on the base's GGUF gives base + adapter's choices in a real llama.cpp."""
    folder = adapter(base, tmp_path / "adapter", size=0.2)
    shipment, tried = shipped(base)
    ship.export_gguf(ship.stored(base), tmp_path / "out", shipment, kind)
    ship.export_lora_gguf(folder, tmp_path / "lora", shipment)
    files = (tmp_path / "out" / ship.MODEL_GGUF, tmp_path / "lora" / ship.ADAPTER_GGUF)
    prompts = [chat.ids for chat in tried]
    wanted = answers(ship_tiny.adapted(held(base), size=0.2), prompts)
    require_same(wanted, llama_peer.ask(*files, prompts=prompts, forced=wanted, count=8), kind)
    assert AutoConfig.from_pretrained(base).model_type in ARCHS


def test_model_card_front_matter() -> None:
    """The card's head is YAML the hub reads, and its tables hold what was measured."""
    facts = CardFacts("a", "org/base", "abc", "Apache-2.0", results={"perplexity": "3 | 4"})
    head, body = model_card(facts).removeprefix("---\n").split("---\n", 1)
    read = yaml.safe_load(head)
    assert (read["base_model"], read["license"]) == ("org/base", "apache-2.0")
    assert "| perplexity | 3 \\| 4 |" in body
    assert "revision `abc`" in body
