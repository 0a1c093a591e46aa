"""Loading a base: full, 16-bit or quantized on the way in, every weight accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from halfbyte.config import Config
from halfbyte.errors import IntegrityError
from halfbyte.model.bases import Base
from halfbyte.model.compute import Compute, choose, choose_device

Quantization = Literal["nf4", "fp4", "int8"]


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
    """The base's model on its device, in eval mode; a quantized base is frozen.

    Raises:
        IntegrityError: its files are damaged, hostile, or not the weights its config names.
    """
    options: dict[str, Any] = {}
    if form.quantization is not None:
        options["quantization_config"] = _bitsandbytes(form)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=form.weights,
            device_map={"": str(form.device)},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise IntegrityError(f"{base.folder}: cannot be loaded: {error}") from None
    model: PreTrainedModel
    model, info = loaded
    _require_all(base, info)
    # adapters record it: the folder in a cache would mean nothing to anybody else
    model.name_or_path = base.name
    return model.eval()


def _bitsandbytes(form: Form) -> BitsAndBytesConfig:
    if form.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=form.quantization,
        bnb_4bit_use_double_quant=form.double_quant,
        bnb_4bit_compute_dtype=form.compute.dtype,
    )


def _require_all(base: Base, info: dict[str, Any]) -> None:
    """transformers only warns and fills missing weights with random numbers."""
    faults = [f"{name}: missing from the files" for name in sorted(info["missing_keys"])]
    faults += [
        f"{name}: shape {list(found)}, expected {list(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    if faults:
        raise IntegrityError(
            f"{base.folder}: {len(faults)} weights do not fit its config.json:",
            faults[:3],
        )
