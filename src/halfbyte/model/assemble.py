"""From a base's files to the state transformers fills a model with, quantized where asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from halfbyte.config import Config
from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.bases import Base
from halfbyte.model.compute import Compute, choose, choose_device, whole_precision
from halfbyte.model.quantize import Quantization, QuantizedTensor, Recipe
from halfbyte.model.stream import StoredTensor
from halfbyte.model.targets import linear_layers

# The constants bitsandbytes stores beside a quantized weight: they have types of their own.
_CONSTANTS: Final = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB")


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
    if config.method == "full":
        return Form(place, whole_precision(config.model.compute), torch.float32)
    compute = choose(config.model.compute, place)
    quantization = config.model.quantization if config.method == "qlora" else None
    return Form(place, compute, compute.dtype, quantization, config.model.double_quant)


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


def stored_quantization(base: Base, config: PretrainedConfig) -> dict[str, Any] | None:
    """What config.json says about weights that are quantized in the files; None if they are not.

    Raises:
        InputError: quantized by something other than bitsandbytes.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    table: dict[str, Any] = given if isinstance(given, dict) else given.to_dict()
    method = str(table.get("quant_method", "bitsandbytes"))
    if "bitsandbytes" not in method.lower():
        raise InputError(
            f"{base.folder}: its weights are quantized with {method}, which cannot be trained on",
            "Give the original model; method=qlora quantizes it on the way in.",
        )
    return table


def quantized_state(
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


def cast_state(state: dict[str, StoredTensor], dtype: torch.dtype) -> dict[str, Any]:
    """The state of quantized files with its other weights handed out in this type.

    transformers leaves them in the file's type, whatever it is asked for.
    """
    return {
        key: item if key.rpartition(".")[2] in _CONSTANTS else replace(item, cast=dtype)
        for key, item in state.items()
    }


def quantizable(kind: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, nn.Module]:
    """Full name → layer (without weights) of the linear layers that quantization covers."""
    with torch.device("meta"):
        model = kind(config)
    return linear_layers(model)
