"""Loading a base: full, 16-bit or quantized on the way in, every weight accounted for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import bitsandbytes
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from halfbyte.config import Config
from halfbyte.errors import IntegrityError
from halfbyte.model.bases import Base, load_model_config
from halfbyte.model.compute import Compute, choose, choose_device
from halfbyte.model.quantize import Quantization, QuantizedTensor, Recipe
from halfbyte.model.stream import Faults, StoredTensor, stored_tensors
from halfbyte.model.targets import linear_layers

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Form:
    """How a base is held in memory and computed with.

    `weights`: the type of its unquantized weights (all of them without `quantization`; norms,
    embeddings and head with it). `compute`: the type of matrix products.
    """

    device: torch.device
    compute: Compute
    weights: torch.dtype
    quantization: Quantization | None = None
    double_quant: bool = True

    @property
    def recipe(self) -> Recipe | None:
        """How its linear layers are quantized; None if they are not."""
        if self.quantization is None:
            return None
        return Recipe(self.quantization, self.double_quant, self.weights)


def form_of(config: Config, device: str = "auto") -> Form:
    """The form a config asks for, on this device."""
    place = choose_device(device)
    compute = choose(config.model.compute, place)
    if config.method == "full":
        # AdamW's steps are smaller than bf16's spacing: trained weights stay float32, and
        # products run under autocast where `compute` is narrower
        return Form(place, compute, torch.float32)
    quantization = config.model.quantization if config.method == "qlora" else None
    return Form(place, compute, compute.dtype, quantization, config.model.double_quant)


def load_base(base: Base, form: Form) -> PreTrainedModel:
    """The base's model on its device, in eval mode; quantized weights are frozen.

    Weights are read one at a time and quantized before the next: memory peaks at what the model
    keeps, plus one weight.

    Raises:
        IntegrityError: its files are damaged, hostile, or not the weights its config names.
    """
    config = load_model_config(base)
    kind = causal_class(base, config)
    faults = Faults()
    stored = stored_tensors(base.weights, faults)
    state: dict[str, Any] = dict(stored)
    options: dict[str, Any] = {}
    if form.recipe is not None and not is_quantized(config):
        parts = _quantized_state(kind, config, form, stored)
        if parts is None:
            options["quantization_config"] = BitsAndBytesConfig(**form.recipe.config())
        else:
            config.quantization_config = form.recipe.config()
            state = parts
    try:
        loaded: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=form.weights,
            device_map={"": str(form.device)},
            output_loading_info=True,
            **options,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        faults.raise_if_any(base.folder)
        raise IntegrityError(f"{base.folder}: cannot be loaded: {error}") from None
    faults.raise_if_any(base.folder)
    model: PreTrainedModel
    model, info = loaded
    _require_all(base, info)
    return _finished(model, base, form)


def is_quantized(config: PretrainedConfig) -> bool:
    """Whether the files hold quantized weights already."""
    return getattr(config, "quantization_config", None) is not None


def causal_class(base: Base, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class for this base.

    Raises:
        IntegrityError: it is not a causal language model.
    """
    try:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise IntegrityError(
            f"{base.folder}: a model of type {config.model_type} does not generate text from left "
            "to right",
            hint="Choose a causal language model; `halfbyte models list` shows some.",
        ) from None
    found: type[PreTrainedModel] = kind
    return found


def _quantized_state(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    form: Form,
    state: dict[str, StoredTensor],
) -> dict[str, Any] | None:
    """The state with every linear layer's weight replaced by its quantized parts.

    None where the files name the weights otherwise than the model does: transformers then renames
    and quantizes them itself.
    """
    recipe = form.recipe
    assert recipe is not None
    result: dict[str, Any] = {key: replace(item, cast=form.weights) for key, item in state.items()}
    for name, layer in quantizable(kind, config).items():
        key = f"{name}.weight"
        if key not in state:  # GPT-2's own files leave the prefix out
            key = key.removeprefix(f"{kind.base_model_prefix}.")
        if key not in state:
            return None
        del result[key]
        quantized = QuantizedTensor(state[key], recipe, form.device, isinstance(layer, Conv1D))
        stem = key.removesuffix("weight")
        result.update({f"{stem}{suffix}": part for suffix, part in quantized.parts().items()})
    return result


def quantizable(
    kind: type[PreTrainedModel], config: PretrainedConfig
) -> dict[str, torch.nn.Module]:
    """Full name → layer (without weights) of the linear layers that quantization covers."""
    with torch.device("meta"):
        model = kind(config)
    return linear_layers(model)


def _require_all(base: Base, info: dict[str, Any]) -> None:
    """transformers only warns, and fills missing weights with random numbers."""
    faults = [f"{name}: missing from the files" for name in sorted(info["missing_keys"])]
    faults += [
        f"{name}: shape {list(found)}, expected {list(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    if faults:
        raise IntegrityError(
            f"{base.folder}: {len(faults)} weights do not fit its config.json:", faults[:_SHOWN]
        )


def _finished(model: PreTrainedModel, base: Base, form: Form) -> PreTrainedModel:
    # adapters record the name: the folder in a cache would mean nothing to anybody else
    model.name_or_path = base.name
    model.config.name_or_path = base.name
    if (base.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(
            base.folder, local_files_only=True
        )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = form.compute.dtype
            module.compute_type_is_set = True  # else it would follow the first input
    return model.eval()
