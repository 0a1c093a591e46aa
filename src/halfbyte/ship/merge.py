"""Merging adapters into their base: both honest ways are written, measured, and one is kept.

A merge into the original weights gives another model than base + adapter when the adapter was
trained on a quantized base: the quantization error the adapter had learned to live with is gone.
A merge into the dequantized weights keeps it. Which is nearer is measured, never assumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from halfbyte.errors import InputError
from halfbyte.model.adapter_config import WEIGHTS_FILE
from halfbyte.run.files import atomic_folder, require_space, sha256_of, writing
from halfbyte.ship.companions import Companions
from halfbyte.ship.deltas import Part, open_parts
from halfbyte.ship.fidelity import Limits, Scored, compare
from halfbyte.ship.quantize import Linear, Quantized, linear_layers, oriented
from halfbyte.ship.report import REPORT, LayerNorms, MergeRefusedError, MergeReport, Outcome
from halfbyte.ship.weights import NotFiniteError, Slot, StoredWeights, write_weights

Form = Literal["original", "dequantized"]
FORMS: Final[tuple[Form, ...]] = ("dequantized", "original")


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What to merge.

    `base`: a transformers folder. `adapters`: folder → weight in the sum of deltas. `quantized`:
    how the adapters' training held the base; None where it was not quantized. `dtype`: the type
    to store; None keeps each tensor's own, and tries float16 too where answers then differ: it
    rounds eight times finer than bfloat16, and is as large. `forms`: the candidates; both by
    default.
    """

    base: Path
    adapters: Mapping[Path, float]
    quantized: Quantized | None = None
    dtype: torch.dtype | None = None
    forms: tuple[Form, ...] = FORMS


@dataclass(frozen=True, slots=True)
class Proof:
    """How a merge is judged.

    `reference` scores base + adapters as trained; `candidate` scores a merged folder, on the same
    rows. `force` writes the nearest candidate even when none is faithful; the report says so.
    """

    reference: Callable[[], Scored]
    candidate: Callable[[Path], Scored]
    limits: Limits = field(default_factory=Limits)
    force: bool = False


class MergedWeights:
    """A base's weights with adapters added, in float32, one at a time as they are read.

    `norms` fills with each linear layer's measures as it is read.

    Raises:
        IntegrityError: an adapter does not fit the base.
    """

    def __init__(
        self, base: Path, parts: Sequence[Part], form: Form, quantized: Quantized | None = None
    ) -> None:
        if form == "dequantized" and quantized is None:
            raise InputError("merge: the base was not quantized, so there is nothing to dequantize")
        self.base = StoredWeights.of_folder(base)
        self.norms: dict[str, LayerNorms] = {}
        self._parts = parts
        self._quantized = quantized if form == "dequantized" else None
        layers = _present(linear_layers(base), self.base)
        for part in parts:
            part.adapter.require_fit(layers, self.base)
        self._layers = {layer.weight: (module, layer) for module, layer in layers.items()}

    def names(self) -> tuple[str, ...]:
        """The base's tensors."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape: the base's."""
        return self.base.shape(name)

    def read(self, name: str) -> Tensor:
        """A merged weight in float32; a tensor that nothing changes in its stored type."""
        stored = self.base.read(name)
        if name not in self._layers:
            return stored
        module, layer = self._layers[name]
        parts = [part for part in self._parts if module in part.adapter.modules]
        if not parts and self._quantized is None:
            return stored
        original = oriented(stored, layer.transposed).float()
        held = self._quantized.round_trip(original).float() if self._quantized else original
        delta = torch.zeros_like(held)
        for part in parts:
            delta.add_(part.adapter.factors(module).added(held), alpha=part.weight)
        self.norms[name] = LayerNorms.of(original, held, delta)
        return oriented(held + delta, layer.transposed)


def _present(layers: Mapping[str, Linear], base: StoredWeights) -> dict[str, Linear]:
    """The layers whose weights the base stores, under the names it stores them by.

    Some hub folders leave out the outermost module's name (`h.0…` for `transformer.h.0…`).
    """
    names = set(base.names())
    found = {}
    for module, layer in layers.items():
        for name in (layer.weight, layer.weight.partition(".")[2]):
            if name in names:
                found[module] = Linear(name, layer.transposed)
                break
    return found


def write_merged(
    weights: MergedWeights, folder: Path, dtype: torch.dtype | None, companions: Companions
) -> None:
    """Write merged weights into an empty folder that plain transformers opens."""
    base = weights.base
    slots = {
        name: Slot(dtype or base.dtype(name), base.shape(name), base.file(name))
        for name in base.names()
    }

    def make(name: str) -> Tensor:
        whole = weights.read(name)
        if name in weights.norms:
            weights.norms[name] = weights.norms[name].cast(whole, slots[name].dtype)
        return whole

    write_weights(folder, slots, make)
    companions.write(folder, dtype)


def merge(plan: MergePlan, out: Path, companions: Companions, proof: Proof) -> MergeReport:
    """Merge, measure each candidate against base + adapters, and keep the nearer one in `out`.

    `out` appears whole or not at all. `merge-report.json` is left in it, or beside it when the
    merge is refused.

    Raises:
        MergeRefusedError: no candidate is faithful; the report is in it.
        IntegrityError: an adapter or the base is damaged, or they do not fit.
        ResourceError: the disk is too small.
    """
    parts = open_parts(plan.adapters)
    forms = [form for form in plan.forms if form == "original" or plan.quantized is not None]
    if not forms:
        raise InputError("merge: the base was not quantized, so there is nothing to dequantize")
    needed = _size(plan) * (len(forms) + 1)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, needed, "the merge")
    outcomes: dict[str, Outcome] = {}
    with atomic_folder(out, needed) as temp:  # first: a folder that cannot be written says so now
        reference = proof.reference()

        def measure(form: Form, dtype: torch.dtype | None, label: str) -> None:
            folder = temp / label
            folder.mkdir()
            weights = MergedWeights(plan.base, parts, form, plan.quantized)
            write_merged(weights, folder, dtype, companions)
            fidelity = compare(reference, proof.candidate(folder))
            outcomes[label] = Outcome(fidelity, tuple(weights.norms.items()))

        for form in forms:
            measure(form, plan.dtype, form)
        best = max(forms, key=lambda form: outcomes[form].nearness)
        if plan.dtype is None and outcomes[best].fidelity.differs and _is_bfloat16(plan.base):
            with suppress(NotFiniteError):  # a weight beyond float16's range: it stays bfloat16
                measure(best, torch.float16, f"{best}-float16")
        report = MergeReport.of(plan, reference.perplexity, outcomes, proof)
        if report.kept is None:
            report.write(out.with_name(f"{out.name}-{REPORT}"))
            raise MergeRefusedError(report)
        _promote(temp / report.kept, temp)
        report.write(temp / REPORT)
    return report


def merged_from(folder: Path) -> tuple[Form, dict[Path, float]]:
    """What a merged folder was made from, by its report: the form of the base, and the adapters
    with their weights; no adapters where one of them is not there any more as it was."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    form: Form = "dequantized" if report["kept"].startswith("dequantized") else "original"
    parts = {}
    for one in report["adapters"]:
        weights = Path(one["folder"]) / WEIGHTS_FILE
        if not weights.is_file() or sha256_of(weights) != one["sha256"]:
            return form, {}
        parts[Path(one["folder"])] = float(one["weight"])
    return form, parts


def _is_bfloat16(base: Path) -> bool:
    weights = StoredWeights.of_folder(base)
    return any(weights.dtype(name) == torch.bfloat16 for name in weights.names())


def _promote(kept: Path, temp: Path) -> None:
    """Make the kept candidate the folder's content, and drop the others."""
    for other in temp.iterdir():
        if other != kept:
            shutil.rmtree(other)
    for path in kept.iterdir():
        path.replace(temp / path.name)
    kept.rmdir()


def _size(plan: MergePlan) -> int:
    base = StoredWeights.of_folder(plan.base)
    return sum(
        Slot(plan.dtype or base.dtype(name), base.shape(name), "").size for name in base.names()
    )
