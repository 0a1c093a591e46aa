"""Adapter folders in PEFT's format: saved in a fixed order, checked whole before they are used."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.adapter_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    read_adapter_config,
)
from halfbyte.model.catalogue import find
from halfbyte.model.fast.weights import features
from halfbyte.model.targets import linear_layers
from halfbyte.model.untrusted import check_no_pickle, read_header

DEFAULT: Final = "default"
_PREFIX: Final = "base_model.model."  # PEFT's wrapper around the base
_SHOWN: Final = 3
Shapes = dict[str, tuple[int, ...]]


def save(model: PeftModel, folder: Path, name: str = DEFAULT) -> None:
    """Write one adapter as `adapter_model.safetensors` and `adapter_config.json`.

    Plain `PeftModel.from_pretrained` opens it. The same weights always give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # only the adapter's own: the whole state would unpack every quantized layer's constants
    mine = {key: value for key, value in model.named_parameters() if "lora_" in key}
    state = get_peft_model_state_dict(
        model, state_dict=mine, adapter_name=name, save_embedding_layers=False
    )
    tensors = {key: state[key].detach().cpu().contiguous() for key in sorted(state)}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(_as_json(model.peft_config[name]), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _as_json(config: PeftConfig) -> dict[str, Any]:
    table = {**config.to_dict(), "inference_mode": True}
    return {key: sorted(v) if isinstance(v, set) else v for key, v in table.items()}


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """One layer's part of an adapter: y += scaling * (x @ a.T) @ b.T.

    a: [rank, inputs]; b: [outputs, rank]; magnitude: DoRA's [outputs], None without it.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFile:
    """An adapter folder that was read and found good for a model."""

    settings: AdapterConfig
    state: dict[str, torch.Tensor]

    def layer(self, name: str) -> LoraWeights | None:
        """The part of the layer of this name, if it has one."""
        given, key = self.settings, f"{_PREFIX}{name}"
        if f"{key}.lora_A.weight" not in self.state:
            return None
        a, b = self.state[f"{key}.lora_A.weight"], self.state[f"{key}.lora_B.weight"]
        alpha_key = get_pattern_key(list(given.alpha_pattern), name)
        alpha = given.alpha_pattern.get(alpha_key, given.lora_alpha)
        rank = math.sqrt(len(a)) if given.use_rslora else len(a)
        return LoraWeights(a, b, alpha / rank, self.state.get(f"{key}.lora_magnitude_vector"))


def read(model: PreTrainedModel | PeftModel, folder: Path) -> AdapterFile:
    """The adapter of a folder; ours, or one trained by plain PEFT.

    Everything is checked: its config under our own schema, the base it was trained on, the weights'
    names and shapes against the model's layers, and that they are finite.

    Raises:
        IntegrityError: with the first three faults.
    """
    settings = read_adapter_config(folder)
    _require_base(folder, settings, model)
    weights = _weights_file(folder)
    _require_fit(weights, expected_shapes(model, settings))
    state = load_file(weights)
    _require_finite(weights, state)
    return AdapterFile(settings, state)


def load(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    name: str = DEFAULT,
    *,
    trainable: bool = False,
) -> PeftModel:
    """Put the adapter of a folder on a base, under a name.

    On any fault of `read` the model is as it was. A model that already carries adapters gets one
    more; the new one is not made active.

    Raises:
        IntegrityError: as `read`.
        InputError: the name is taken.
    """
    if isinstance(model, PeftModel) and name in model.peft_config:
        raise InputError(f"{folder}: an adapter called {name!r} is loaded already")
    found = read(model, folder)
    config = found.settings.to_peft()
    config.inference_mode = not trainable
    register_fast_layers(config)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        peft_model = model
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        peft_model = PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=True)
    set_peft_model_state_dict(peft_model, found.state, adapter_name=name)
    return peft_model


def register_fast_layers(config: LoraConfig) -> None:
    """Let PEFT build our LoRA layer for the layer types it covers (DoRA stays PEFT's own)."""
    if config.use_dora or importlib.util.find_spec("halfbyte.model.fast") is None:
        return
    mapping = importlib.import_module("halfbyte.model.fast.linear").custom_modules()
    config._register_custom_module(mapping)  # noqa: SLF001  PEFT documents it under this name


def expected_shapes(model: PreTrainedModel | PeftModel, settings: AdapterConfig) -> Shapes:
    """The weights an adapter with this config has on this model: name in the file → shape."""
    config = settings.to_peft()
    layers = linear_layers(model)
    if settings.target_modules == "all-linear":
        chosen = layers
    else:
        chosen = {
            name: layer
            for name, layer in layers.items()
            if check_target_module_exists(config, name) is True
        }
    expected: Shapes = {}
    for name, layer in chosen.items():
        rank_key = get_pattern_key(list(settings.rank_pattern), name)
        rank = settings.rank_pattern.get(rank_key, settings.r)
        wide, high = features(layer)
        expected[f"{_PREFIX}{name}.lora_A.weight"] = (rank, wide)
        expected[f"{_PREFIX}{name}.lora_B.weight"] = (high, rank)
        if settings.use_dora:
            expected[f"{_PREFIX}{name}.lora_magnitude_vector"] = (high,)
    return expected


def _weights_file(folder: Path) -> Path:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        check_no_pickle(folder)
        raise IntegrityError(f"{folder}: has no {WEIGHTS_FILE}")
    return weights


def _require_base(folder: Path, settings: AdapterConfig, model: nn.Module) -> None:
    """Refuse an adapter that names another base; paths say nothing on another machine."""
    trained_on = _canonical(settings.base_model_name_or_path)
    here = _canonical(getattr(model, "name_or_path", None))
    if trained_on and here and trained_on != here:
        raise IntegrityError(
            f"{folder}: was trained on {settings.base_model_name_or_path}, not on {here}",
            hint=f"Load it on its own base: model.base={settings.base_model_name_or_path}",
        )


def _canonical(name: str | None) -> str | None:
    """A hub id for what the catalogue knows, the name of another hub id; None for paths."""
    if not name:
        return None
    if entry := find(name):
        return entry.hub
    return None if Path(name).is_absolute() or Path(name).exists() or name.count("/") != 1 else name


def _require_fit(weights: Path, expected: Shapes) -> None:
    found = {name: info.shape for name, info in read_header(weights).tensors.items()}
    faults = list(_differences(found, expected))
    if faults:
        raise IntegrityError(
            f"{weights}: does not fit this base ({len(faults)} of {len(expected)} weights differ):",
            faults[:_SHOWN],
            "Nothing was loaded. Check that the adapter belongs to this base, and is whole.",
        )


def _differences(found: Shapes, expected: Shapes) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in found:
            yield f"{name}: missing"
        elif found[name] != shape:
            yield f"{name}: shape {list(found[name])}, expected {list(shape)}"
    for name in found:
        if name not in expected:
            yield f"{name[:200]}: no such layer in the base, or not one of target_modules"


def _require_finite(weights: Path, state: dict[str, torch.Tensor]) -> None:
    bad = [
        name
        for name, tensor in state.items()
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all()
    ]
    if bad:
        raise IntegrityError(
            f"{weights}: {len(bad)} weights hold NaN, infinity or no numbers:", bad[:_SHOWN]
        )
