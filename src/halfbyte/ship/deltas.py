"""Adapters as what they add to each weight: LoRA, rsLoRA and DoRA, read without a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.adapter_config import WEIGHTS_FILE, AdapterConfig, read_adapter_config
from halfbyte.ship.quantize import Linear
from halfbyte.ship.weights import StoredWeights

_KEY: Final = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?"
)
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's adapter: the delta is scale * B @ A, of shape [out, in].

    `a`: float32 [rank, in]. `b`: float32 [out, rank]. `magnitude`: float32 [out] with DoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def added(self, weight: Tensor) -> Tensor:
        """What the adapter adds to a float32 weight [out, in].

        With DoRA (arXiv:2402.09353) the sum's rows are rescaled to the learned magnitudes, so
        that the result depends on the weight.
        """
        delta = (self.b @ self.a).mul_(self.scale)
        if self.magnitude is None:
            return delta
        whole = weight + delta
        norms = torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        return whole.mul_(self.magnitude[:, None] / norms).sub_(weight)


class Adapter:
    """An adapter folder in PEFT's format, its factors read layer by layer.

    Raises:
        IntegrityError: files that are damaged, or say something we do not support.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: AdapterConfig = read_adapter_config(folder)
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise IntegrityError(
                f"{folder}: has no {WEIGHTS_FILE}: not an adapter in PEFT's format"
            )
        self._weights = StoredWeights([path])
        self._keys = _parts(path, self._weights.names(), self.config.use_dora)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the layers it changes."""
        return tuple(self._keys)

    def shapes(self, module: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of a layer's A and B."""
        keys = self._keys[module]
        return self._weights.shape(keys["lora_A"]), self._weights.shape(keys["lora_B"])

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(self._weights.shape(keys["lora_A"])[0] for keys in self._keys.values())

    @property
    def uniform(self) -> bool:
        """Whether every layer has the config's own rank and alpha."""
        ranks = {self._weights.shape(keys["lora_A"])[0] for keys in self._keys.values()}
        return ranks == {self.config.r} and not self.config.alpha_pattern

    def factors(self, module: str) -> Factors:
        """One layer's factors, in float32."""
        keys = self._keys[module]
        a = self._weights.read(keys["lora_A"]).float()
        b = self._weights.read(keys["lora_B"]).float()
        mark = keys.get("lora_magnitude_vector")
        magnitude = self._weights.read(mark).float().reshape(-1) if mark else None
        return Factors(a, b, self.scale(module, a.shape[0]), magnitude)

    def scale(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732)."""
        alpha = _by_pattern(self.config.alpha_pattern, module, self.config.lora_alpha)
        return alpha / (math.sqrt(rank) if self.config.use_rslora else rank)

    def require_fit(self, layers: Mapping[str, Linear], base: StoredWeights) -> None:
        """Refuse a base that this adapter was not made for.

        Raises:
            IntegrityError: with the first three mismatches.
        """
        faults = list(self._mismatches(layers, base))
        if faults:
            raise IntegrityError(
                f"{self.folder}: {len(faults)} of {len(self._keys)} layers do not fit the base:",
                faults[:_SHOWN],
                f"It says it was trained on {self.config.base_model_name_or_path}.",
            )

    def _mismatches(self, layers: Mapping[str, Linear], base: StoredWeights) -> Iterator[str]:
        for module, keys in self._keys.items():
            if module not in layers:
                yield f"{module}: the base has no such linear layer"
                continue
            a, b = (self._weights.shape(keys[part]) for part in ("lora_A", "lora_B"))
            stored = base.shape(layers[module].weight)
            wanted = stored[::-1] if layers[module].transposed else stored
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != wanted:
                yield f"{module}: A {a} and B {b} for a weight of {wanted}"


def _parts(path: Path, names: Sequence[str], dora: bool) -> dict[str, dict[str, str]]:
    """Module → part → the tensor's name in the file; every tensor must be one of the parts."""
    found: dict[str, dict[str, str]] = {}
    faults = []
    for name in names:
        match = _KEY.fullmatch(name)
        if match is None:
            faults.append(f"{name[:200]}: not a part of a LoRA layer")
            continue
        found.setdefault(match["module"], {})[match["part"]] = name
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    for module, parts in found.items():
        if set(parts) != wanted:
            faults.append(
                f"{module}: has {', '.join(sorted(parts))}, not {', '.join(sorted(wanted))}"
            )
    if faults:
        raise IntegrityError(f"{path}: {len(faults)} faults:", faults[:_SHOWN])
    return found


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value for a module: PEFT's patterns name a module, or the end of its name."""
    for key, value in pattern.items():
        if module == key or module.endswith(f".{key}"):
            return value
    return default


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter with its weight in a linear combination of deltas."""

    adapter: Adapter
    weight: float = 1.0


def open_parts(folders: Mapping[Path, float]) -> tuple[Part, ...]:
    """Open adapters with their weights.

    Raises:
        InputError: none, or a weight that is no finite number.
        IntegrityError: a folder that is no adapter we can use.
    """
    if not folders:
        raise InputError("merge: no adapter was given", "Name a run, or an adapter folder.")
    for folder, weight in folders.items():
        if not math.isfinite(weight):
            raise InputError(f"{folder}: {weight} is not a weight", "Give a number, like 0.5.")
    return tuple(Part(Adapter(folder), weight) for folder, weight in folders.items())
