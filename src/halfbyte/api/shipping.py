"""Shipping a run: merged with proof, or exported and opened again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from halfbyte.api.opening import Opened, find_run, open_run, run_config
from halfbyte.data import Encoded, load_example
from halfbyte.data.fit import fit
from halfbyte.errors import InputError
from halfbyte.infer import Engine, Request, Sampling
from halfbyte.model.catalogue import find
from halfbyte.model.load import Form
from halfbyte.run import RunFolder
from halfbyte.ship.chats import chats
from halfbyte.ship.check import Exported, ExportReport, Trial, check
from halfbyte.ship.companions import ChatForm, Companions
from halfbyte.ship.deltas import open_parts
from halfbyte.ship.export import (
    Shipment,
    export_gguf,
    export_lora_gguf,
    export_ollama,
    export_peft,
    export_safetensors,
    export_vllm,
    stored,
)
from halfbyte.ship.fidelity import Ids, score
from halfbyte.ship.gguf_write import Label
from halfbyte.ship.merge import FORMS, MergedWeights, MergePlan, Proof, merged_from
from halfbyte.ship.merge import Form as MergeForm
from halfbyte.ship.merge import merge as merge_adapters
from halfbyte.ship.quantize import Quantized
from halfbyte.ship.reopen import reopen
from halfbyte.ship.report import MergeReport
from halfbyte.ship.weights import Weights

_ANSWER: Final = 64  # tokens of a greedy answer that is compared


@dataclass(frozen=True, slots=True)
class Merging:
    """How to merge.

    `out`: the folder (None: the run's own). `into`: `original`, `dequantized` or `auto` (both are
    measured, the nearer one is kept). `dtype`: what sums are stored in (None: as the base's
    files). `adapters`: other runs whose adapters are added, with weights; `weight`: that of the
    run's own. `rows`: held-out rows measured. `force`: keep the nearest merge even if none is
    faithful.
    """

    out: Path | None = None
    into: str = "auto"
    dtype: str | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    rows: int = 50
    force: bool = False


@dataclass(frozen=True, slots=True)
class Exporting:
    """What to export.

    `to`: `peft`, `safetensors`, `gguf`, `ollama` or `vllm`. `out`: the folder (None: the run's
    own). `kind`: how a GGUF's matrices are held. `adapter_only`: a GGUF of the adapter alone.
    `answers`: compare greedy answers, not only token ids.
    """

    to: str
    out: Path | None = None
    kind: str = "q8_0"
    adapter_only: bool = False
    answers: bool = True


def merge(run: str | Path, how: Merging | None = None, runs: str | Path = "runs") -> MergeReport:
    """Merge a run's adapter (and others', with weights) into its base, and measure the result.

    Raises:
        InputError: a fully trained run, or forms the training did not have.
        MergeRefusedError: no merge does what base + adapter does; the report is in it.
    """
    how = how or Merging()
    opened = open_run(run, runs)
    folder = _with_adapter(opened)
    _require_same_base(opened, how.adapters, runs)
    parts = {folder.adapter: how.weight}
    parts |= {find_run(name, runs).adapter: share for name, share in how.adapters.items()}
    plan = MergePlan(
        opened.base.folder,
        parts,
        _quantized(opened.form),
        None if how.dtype is None else getattr(torch, how.dtype),
        FORMS if how.into == "auto" else (cast("MergeForm", how.into),),
    )
    held_out = _held_out(opened, how.rows)
    reply = partial(_answer, opened)
    summed = _summed(opened, parts)
    proof = Proof(
        lambda: score(summed, held_out, reply),
        lambda merged: score(reopen(merged), held_out, reply),
        force=how.force,
    )
    return merge_adapters(plan, how.out or folder.merged, _companions(opened), proof)


def export(run: str | Path, how: Exporting, runs: str | Path = "runs") -> ExportReport:
    """Export a run and open it again: token ids of twenty chats, and greedy answers, are compared
    with the run's own.

    Raises:
        InputError: a target this run cannot be exported to.
        MergeRefusedError: the target needs a merge, and none is faithful.
    """
    opened = open_run(run, runs)
    assert opened.run is not None
    target = how.out or opened.run.export / (f"{how.to}-adapter" if how.adapter_only else how.to)
    exported = _exported(opened, how, target)
    asked = chats(opened.template.encode_prompt)
    replies = None
    if how.answers and exported.open_model is not None:
        replies = _answer(opened, cast("PreTrainedModel", opened.model), [c.ids for c in asked])
    return check(exported, Trial(asked, replies, partial(_answer, opened)))


def _require_same_base(opened: Opened, names: Mapping[str, float], runs: str | Path) -> None:
    """Adapters can only be added up on the base they were all trained on."""
    for name in names:
        other = run_config(find_run(name, runs)).model
        if other != opened.config.model:
            raise InputError(
                f"{name}: trained on {other.base}, not on {opened.base.name} in the same form",
                "Merge each run by itself: halfbyte merge RUN",
            )


def _exported(opened: Opened, how: Exporting, out: Path) -> Exported:
    assert opened.run is not None
    run = opened.run
    shipment = Shipment(_companions(opened), Label(run.name, opened.base.name))
    if how.to == "peft":
        return export_peft(_with_adapter(opened).adapter, out, shipment, partial(_bare, opened))
    if how.to == "vllm":
        adapters = {run.name: _with_adapter(opened).adapter}
        quantized = opened.form.quantization is not None
        return export_vllm(adapters, _loadable(opened), out, shipment, quantized)
    if how.adapter_only:
        return export_lora_gguf(_with_adapter(opened).adapter, out, shipment)
    merged = _merged(opened)
    if how.to == "safetensors":
        return export_safetensors(merged, out, shipment)
    make = export_ollama if how.to == "ollama" else export_gguf
    return make(_sums(opened, merged), out, shipment, how.kind)


def _loadable(opened: Opened) -> str:
    """What other engines load the base by: its hub id, else its folder."""
    entry = find(opened.base.name)
    return entry.hub if entry is not None else str(opened.base.name)


def _merged(opened: Opened) -> Path:
    """The whole model's folder; a run that was not merged yet is merged now, with proof."""
    assert opened.run is not None
    if opened.adapter is None:
        return opened.run.model
    if not opened.run.merged.is_dir():
        merge(opened.run.path)
    return opened.run.merged


def _sums(opened: Opened, merged: Path) -> Weights:
    """The merged weights in float32, added up again as they are read: what is quantized from them
    is rounded once, not twice. Where adapters are gone or changed, what the merge stored."""
    if opened.adapter is None:
        return stored(merged)
    form, parts = merged_from(merged)
    if not parts:
        return stored(merged)
    return MergedWeights(opened.base.folder, open_parts(parts), form, _quantized(opened.form))


def _with_adapter(opened: Opened) -> RunFolder:
    assert opened.run is not None
    if opened.adapter is None:
        raise InputError(
            f"{opened.name}: trained with method full: it has no adapter",
            f"Its whole model is {opened.run.model}; export --to safetensors or gguf.",
        )
    return opened.run


def _quantized(form: Form) -> Quantized | None:
    if form.quantization is None:
        return None
    return Quantized(form.quantization, form.double_quant, form.compute.dtype)


def _companions(opened: Opened) -> Companions:
    assert opened.run is not None
    template = opened.template
    chat = ChatForm(template.source, template.stop_ids, template.stop_strings)
    result = opened.run.model if opened.adapter is None else opened.run.adapter
    card = (result / "README.md").read_text(encoding="utf-8")
    return Companions(opened.base.folder, result, chat, card)


def _held_out(opened: Opened, rows: int) -> list[Encoded]:
    """The first held-out rows that fit, as in training."""
    assert opened.run is not None
    lines = opened.run.held_out.read_bytes().splitlines()
    data, template = opened.config.data, opened.template
    encoded = template.encode_many([load_example(line) for line in lines], data.train_on)
    kept = (
        fit(one, data.max_length, data.too_long if data.too_long == "cut_prompt" else "drop", None)
        for one in encoded
        if isinstance(one, Encoded)
    )
    return [one for one in kept if one is not None][:rows]


def _summed(opened: Opened, parts: Mapping[Path, float]) -> PreTrainedModel:
    """Base + adapters as loaded: what a merge has to do. Several are added up by PEFT."""
    model = opened.model
    if len(parts) > 1 or set(parts.values()) != {1.0}:
        assert isinstance(model, PeftModel)
        names = []
        for number, folder in enumerate(parts):
            names.append(f"part-{number}")
            model.load_adapter(str(folder), names[-1])
        weights = list(parts.values())
        model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
        model.set_adapter("sum")
        model.eval()
    return cast("PreTrainedModel", model)  # PEFT's wrap answers like one


def _bare(opened: Opened) -> PreTrainedModel:
    from halfbyte.model.load import load_base

    return load_base(opened.base, opened.form)


def _answer(opened: Opened, model: PreTrainedModel, prompts: Sequence[Ids]) -> list[Ids]:
    """Greedy answers of any model in this run's form of speaking."""
    active = model.active_adapter if isinstance(model, PeftModel) else None
    sampling = Sampling(max_new_tokens=_ANSWER, stop_ids=opened.template.stop_ids)
    requests = [Request(tuple(ids), sampling, active) for ids in prompts]
    done = Engine(model, opened.tokenizer).generate(requests)
    return [one.ids for one in done]
