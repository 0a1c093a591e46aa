"""Exports: what other engines open, made from an adapter and its base or from a merged folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from jinja2.exceptions import TemplateError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils.chat_template_utils import render_jinja_template

from halfbyte.data.records import Message
from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from halfbyte.run.files import atomic_folder
from halfbyte.ship import gguf_shapes
from halfbyte.ship.check import Exported
from halfbyte.ship.companions import CARD, TEMPLATE, Companions
from halfbyte.ship.deltas import Adapter
from halfbyte.ship.gguf_read import GgufTokenizer, load_model, open_gguf
from halfbyte.ship.gguf_vocab import vocabulary
from halfbyte.ship.gguf_write import Label, write_adapter, write_model
from halfbyte.ship.gotemplate import Frame
from halfbyte.ship.reopen import reopen
from halfbyte.ship.weights import StoredWeights, Weights

MODEL_GGUF: Final = "model.gguf"
ADAPTER_GGUF: Final = "adapter.gguf"
# vLLM takes no other maximum (vllm/config/lora.py, MaxLoRARanks).
_SCRIPT: Final = """\
#!/bin/sh
# Serves the base and its adapters; what is given to this script goes to vLLM.
cd "$(dirname "$0")" || exit 1
{line}
"""
_VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is shipped: the files beside the weights, the model's config folder, and its label.

    `companions.base` is the transformers folder whose config.json holds for the weights.
    """

    companions: Companions
    label: Label

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        return AutoConfig.from_pretrained(
            self.companions.base, local_files_only=True, trust_remote_code=False
        )


def export_peft(
    adapter: Path, out: Path, shipment: Shipment, open_base: Callable[[], PreTrainedModel]
) -> Exported:
    """The adapter in PEFT's format, with tokenizer, template, generation config and card.

    `open_base` loads the base it is tried on.

    Raises:
        IntegrityError: the adapter folder is not one we can use.
    """
    Adapter(adapter)  # every check, before anything is written
    with atomic_folder(out) as temp:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(adapter / name, temp / name)
        shipment.companions.write_tokenizer(temp)

    def open_model() -> PreTrainedModel:
        from peft import PeftModel

        model: Any = PeftModel.from_pretrained(open_base(), str(out))
        return cast("PreTrainedModel", model.eval())  # it answers like one

    return Exported("peft", out, _names(out), _transformers_encoder(out), open_model)


def export_safetensors(merged: Path, out: Path, shipment: Shipment) -> Exported:
    """A merged (or fully trained) model as a transformers folder."""
    weights = sorted(merged.glob("*.safetensors*"))
    if not weights:
        raise IntegrityError(f"{merged}: holds no merged weights")
    if merged.resolve() != out.resolve():
        with atomic_folder(out) as temp:
            for path in [*weights, *merged.glob("merge-report.json")]:
                shutil.copyfile(path, temp / path.name)
            shutil.copyfile(merged / "config.json", temp / "config.json")
            shipment.companions.write_tokenizer(temp)

    return Exported(
        "safetensors", out, _names(out), _transformers_encoder(out), lambda: reopen(out)
    )


def export_gguf(weights: Weights, out: Path, shipment: Shipment, kind: str = "q8_0") -> Exported:
    """A whole model for llama.cpp: `model.gguf` in `out`.

    `weights` may be a merged folder's, or adapters and base summed as they are read.

    Raises:
        InputError: an architecture, tokenizer or type that GGUF export does not know.
    """
    config = shipment.config
    with atomic_folder(out) as temp:
        notes = _write_gguf(temp / MODEL_GGUF, weights, shipment, kind)
        _write_card(temp, shipment)
    return Exported(
        "gguf",
        out,
        _names(out),
        _gguf_encoder(out / MODEL_GGUF),
        lambda: load_model(out / MODEL_GGUF, config),
        notes,
    )


def export_lora_gguf(adapter: Path, out: Path, shipment: Shipment) -> Exported:
    """The adapter alone for llama.cpp: `adapter.gguf`, applied with `--lora` to the base's GGUF.

    Raises:
        InputError: DoRA, or an architecture that GGUF export does not know.
    """
    with atomic_folder(out) as temp:
        write_adapter(temp / ADAPTER_GGUF, Adapter(adapter), shipment.config, shipment.label)
        shipment.companions.write_tokenizer(temp)
    note = "apply it to a GGUF of the very base it was trained on: llama-cli -m BASE --lora FILE"
    return Exported("gguf", out, _names(out), _transformers_encoder(out), None, (note,))


def export_ollama(weights: Weights, out: Path, shipment: Shipment, kind: str = "q8_0") -> Exported:
    """A GGUF with a Modelfile: `ollama create NAME -f Modelfile` in `out`.

    The model is merged: Ollama 0.34.1 and later refuse ADAPTER lines.

    Raises:
        InputError: the chat template has no counterpart in Ollama's language.
    """
    config = shipment.config
    with atomic_folder(out) as temp:
        notes = _write_gguf(temp / MODEL_GGUF, weights, shipment, kind)
        tokenizer = GgufTokenizer(open_gguf(temp / MODEL_GGUF))
        frame = _frame(tokenizer)
        (temp / "Modelfile").write_text(_modelfile(frame, tokenizer, shipment), encoding="utf-8")
        _write_card(temp, shipment)
    return Exported(
        "ollama",
        out,
        _names(out),
        lambda messages: tokenizer.encode_prompt(frame.render(messages)),
        lambda: load_model(out / MODEL_GGUF, config),
        notes,
    )


def _frame(tokenizer: GgufTokenizer) -> Frame:
    if tokenizer.template is None:
        raise InputError("Ollama: the model has no chat template")
    source = tokenizer.template
    begin = tokenizer.marks.get("bos_token", "") if tokenizer.adds_bos else ""
    return Frame.of(lambda messages: _render(source, messages, tokenizer.marks), begin)


def _modelfile(frame: Frame, tokenizer: GgufTokenizer, shipment: Shipment) -> str:
    stops = [tokenizer.piece(index) for index in shipment.companions.chat.stop_ids]
    stops += shipment.companions.chat.stop_strings
    lines = [
        f"# {shipment.label.name}, trained from {shipment.label.base}",
        f"FROM ./{MODEL_GGUF}",
        f'TEMPLATE """{frame.go_template()}"""',
        *(f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops)),
        "PARAMETER temperature 0",
        # llama.cpp's default penalizes repetition, which training never saw
        "PARAMETER repeat_penalty 1.0",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def export_vllm(
    adapters: dict[str, Path], base: str, out: Path, shipment: Shipment, quantized: bool = False
) -> Exported:
    """Adapters by name for vLLM: their folders and `serve.sh` with the `vllm serve` line.

    `base`: a hub id or folder that vLLM loads. `quantized`: the adapters were trained on a 4-bit
    base, and vLLM is told to hold it so.

    Raises:
        InputError: an adapter of a form vLLM refuses.
    """
    opened = {name: Adapter(folder) for name, folder in adapters.items()}
    for name, adapter in opened.items():
        _require_vllm(name, adapter)
    rank = max(adapter.rank for adapter in opened.values())
    limit = next((size for size in _VLLM_RANKS if size >= rank), None)
    if limit is None:
        raise InputError(f"vLLM: rank {rank} is above its limit of {_VLLM_RANKS[-1]}")
    with atomic_folder(out) as temp:
        for name, folder in adapters.items():
            (temp / name).mkdir()
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(folder / file, temp / name / file)
        shipment.companions.write_tokenizer(temp)
        line = vllm_line(list(adapters), base, limit, quantized)
        (temp / "serve.sh").write_text(_SCRIPT.format(line=line), encoding="utf-8")
        (temp / "serve.sh").chmod(0o755)
    return Exported("vllm", out, _names(out), _transformers_encoder(out))


def vllm_line(names: Sequence[str], base: str, max_rank: int, quantized: bool) -> str:
    """The command that serves `base` and the adapters in folders of these names, beside it."""
    parts = ["exec", "vllm", "serve", base, "--tokenizer", ".", "--enable-lora"]
    parts += ["--max-lora-rank", str(max_rank), "--chat-template", f"./{TEMPLATE}"]
    if quantized:
        parts += ["--quantization", "bitsandbytes"]
    parts += ["--lora-modules", *(f"{name}=./{name}" for name in names)]
    return f'{shlex.join(parts)} "$@"'


def _require_vllm(name: str, adapter: Adapter) -> None:
    faults = []
    if adapter.config.use_dora:
        faults.append("it is a DoRA adapter")
    if not adapter.uniform:
        faults.append("its layers differ in rank or alpha")
    if faults:
        raise InputError(
            f"vLLM: cannot serve {name}: {' and '.join(faults)}",
            "Merge it (halfbyte merge) and serve the merged folder.",
        )


def _write_gguf(path: Path, weights: Weights, shipment: Shipment, kind: str) -> tuple[str, ...]:
    """Write it; what llama.cpp will do otherwise comes back."""
    companions = shipment.companions
    tokenizer = AutoTokenizer.from_pretrained(
        companions.tokenizer, local_files_only=True, trust_remote_code=False
    )
    rows = weights.shape("model.embed_tokens.weight")[0]
    vocab = vocabulary(tokenizer, rows, companions.template(), companions.chat.stop_ids)
    write_model(path, weights, shipment.config, vocab, shipment.label, kind)
    return (*gguf_shapes.notes(shipment.config), *vocab.notes)


def _write_card(folder: Path, shipment: Shipment) -> None:
    if shipment.companions.card:
        (folder / CARD).write_text(shipment.companions.card, encoding="utf-8")


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _transformers_encoder(folder: Path) -> Callable[[Sequence[Message]], Sequence[int]]:
    """Chats as whoever loads the exported tokenizer encodes them."""

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(messages: Sequence[Message]) -> Sequence[int]:
        ids: Any = tokenizer.apply_chat_template(
            _turns(messages), add_generation_prompt=True, return_dict=False
        )
        return [int(index) for index in ids]

    return encode


def _gguf_encoder(path: Path) -> Callable[[Sequence[Message]], Sequence[int]]:
    tokenizer = GgufTokenizer(open_gguf(path))
    source = tokenizer.template
    if source is None:
        raise InputError("GGUF: the model has no chat template")
    return lambda messages: tokenizer.encode_prompt(_render(source, messages, tokenizer.marks))


def _render(source: str, messages: Sequence[Message], marks: dict[str, str]) -> str:
    """The prompt's text by a chat template, in transformers' own sandbox."""
    arguments: dict[str, Any] = {"add_generation_prompt": True, **marks}
    try:
        found: Any = render_jinja_template([_turns(messages)], chat_template=source, **arguments)
    except TemplateError as error:
        raise InputError(f"the chat template refuses these messages: {error}") from None
    return str(found[0][0])  # the first of all texts, beside the places of their answers


def stored(folder: Path) -> StoredWeights:
    """A transformers folder's weights, to be exported."""
    return StoredWeights.of_folder(folder)
