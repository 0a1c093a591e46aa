"""merge-report.json: what was measured of each candidate, and why one was kept or none was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from halfbyte.errors import IntegrityError
from halfbyte.run.files import sha256_of, write_atomic
from halfbyte.ship.fidelity import Fidelity, Limits

if TYPE_CHECKING:
    from halfbyte.ship.merge import MergePlan, Proof

REPORT: Final = "merge-report.json"


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Frobenius norms of one linear layer's weight and of what is done to it.

    `quantization`: of the difference between the original weight and the one merged into (0 when
    merging into the original). `rounding`: of what casting the sum to the stored type loses.
    """

    weight: float
    delta: float
    quantization: float
    rounding: float = 0.0

    @classmethod
    def of(cls, original: Tensor, held: Tensor, delta: Tensor) -> LayerNorms:
        """From float32 matrices of one shape."""
        return cls(_norm(original), _norm(delta), _norm(original - held))

    def cast(self, whole: Tensor, dtype: torch.dtype) -> LayerNorms:
        """The same, with what casting `whole` to `dtype` loses."""
        return replace(self, rounding=_norm(whole - whole.to(dtype).to(whole.dtype)))


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix.double()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate: how far it is from base + adapter, and its layers' norms."""

    fidelity: Fidelity
    layers: tuple[tuple[str, LayerNorms], ...]

    @property
    def nearness(self) -> tuple[float, float, float]:
        """To be compared: equal choices first, then equal answers; a smaller drift breaks ties."""
        one = self.fidelity
        return one.choices, one.answers, -abs(one.drift)

    def share(self, part: str) -> float:
        """A part's norm over the delta's, over all layers (root of sums of squares)."""
        changed = [norms for _, norms in self.layers if norms.delta > 0]
        total = math.sqrt(sum(norms.delta**2 for norms in changed))
        lost = math.sqrt(sum(getattr(norms, part) ** 2 for norms in changed))
        return lost / total if total else 0.0


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The whole finding. `outcomes`: by form, with the type it was stored in where
    that is not the base's (`dequantized-float16`). `kept`: the one that was written, or None when
    the merge was refused."""

    base: str
    adapters: tuple[tuple[str, float, str], ...]
    reference_perplexity: float
    outcomes: Mapping[str, Outcome]
    limits: Limits
    kept: str | None
    forced: bool

    @classmethod
    def of(
        cls, plan: MergePlan, perplexity: float, outcomes: Mapping[str, Outcome], proof: Proof
    ) -> MergeReport:
        """Choose the nearest candidate, and keep it if it is faithful or the user insists."""
        best = max(outcomes, key=lambda form: outcomes[form].nearness)
        faithful = not proof.limits.broken_by(outcomes[best].fidelity)
        adapters = tuple(
            (str(folder), weight, sha256_of(folder / "adapter_model.safetensors"))
            for folder, weight in plan.adapters.items()
        )
        return cls(
            base=str(plan.base),
            adapters=adapters,
            reference_perplexity=perplexity,
            outcomes=outcomes,
            limits=proof.limits,
            kept=best if faithful or proof.force else None,
            forced=proof.force and not faithful,
        )

    @property
    def quantization_share(self) -> float:
        """The quantization error's norm over the adapter's delta's (0 without quantization)."""
        return max(outcome.share("quantization") for outcome in self.outcomes.values())

    def lines(self) -> list[str]:
        """A table of the candidates in plain text."""
        rows = [f"base + adapter: perplexity {self.reference_perplexity:.4f}"]
        for form, outcome in self.outcomes.items():
            one = outcome.fidelity
            faults = self.limits.broken_by(one)
            into, _, stored = form.partition("-")
            where = f"{into} weights, stored in {stored}" if stored else f"{into} weights"
            rows.append(
                f"into the {where}: perplexity {one.perplexity:.4f} ({one.drift:+.4f} nats "
                f"a token), {one.choices:.2%} equal choices, {one.same_answers} of {one.rows} "
                f"answers the same ({one.answers:.1%} of tokens): "
                + ("beyond " + ", ".join(faults) if faults else "faithful")
            )
        if self.quantization_share:
            rows.append(
                f"the quantization error is {self.quantization_share:.1f} times the adapter's delta"
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, layers included, in JSON's types."""
        return {
            "kept": self.kept,
            "forced": self.forced,
            "base": self.base,
            "adapters": [
                {"folder": folder, "weight": weight, "sha256": digest}
                for folder, weight, digest in self.adapters
            ],
            "limits": asdict(self.limits),
            "reference": {"perplexity": self.reference_perplexity},
            "candidates": {
                form: {
                    **asdict(outcome.fidelity),
                    "faithful": not self.limits.broken_by(outcome.fidelity),
                    "quantization_over_delta": outcome.share("quantization"),
                    "rounding_over_delta": outcome.share("rounding"),
                    "layers": {name: asdict(norms) for name, norms in outcome.layers},
                }
                for form, outcome in self.outcomes.items()
            },
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_atomic(path, json.dumps(self.to_json(), indent=2) + "\n")


class MergeRefusedError(IntegrityError):
    """No candidate does what base + adapter did; `report` has the numbers."""

    def __init__(self, report: MergeReport) -> None:
        super().__init__(
            "merge refused: no merged model does what base + adapter does on the held-out rows:",
            report.lines(),
            "Ship the adapter beside its base (halfbyte export --to peft), store the merge with "
            "--dtype float32, or take the nearest one all the same with --force.",
        )
        self.report = report
