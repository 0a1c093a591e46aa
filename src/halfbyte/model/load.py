"""Loading a base: full, 16-bit or quantized on the way in, every weight accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import bitsandbytes
import torch
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from halfbyte.errors import InputError, IntegrityError
from halfbyte.model.assemble import (
    Form,
    cast_state,
    causal_class,
    form_of,
    quantized_state,
    stored_quantization,
)
from halfbyte.model.bases import Base, load_model_config
from halfbyte.model.fast import alloc, weights
from halfbyte.model.fast.narrow import narrow
from halfbyte.model.kept import find_kept
from halfbyte.model.stream import Faults, stored_tensors

__all__ = ["Form", "form_of", "load_base"]

_SHOWN: Final = 3


def load_base(base: Base, form: Form) -> PreTrainedModel:
    """The base's model on its device, in eval mode; quantized weights are frozen.

    Weights are read one at a time and quantized before the next: memory peaks at what the model
    keeps, plus one weight. A quantized form kept in the cache (`halfbyte models quantize`) is
    opened instead.

    Raises:
        IntegrityError: its files are damaged, hostile, or not the weights its config names.
        InputError: full training of weights that are quantized in the files.
    """
    kept = find_kept(base, form.recipe) if form.recipe is not None else None
    source = base if kept is None else Base(base.name, base.kind, kept)
    loaded = _load(source, form)
    model: PreTrainedModel
    model, info = loaded
    _require_all(source, model, info)
    alloc.trim()
    return _finished(model, base, form)


def _load(base: Base, form: Form) -> Any:
    """The model, and transformers' account of what it found in the files."""
    config = load_model_config(base)
    kind = causal_class(base, config)
    faults = Faults()
    stored = stored_tensors(base.weights, faults)
    state: dict[str, Any] = dict(stored)
    options: dict[str, Any] = {}
    quantized = stored_quantization(base, config)
    if quantized is not None and form.recipe is None:
        raise InputError(
            f"{base.name}: its weights are quantized in the files",
            "Use method=qlora, or give the original model.",
        )
    if form.recipe is not None and quantized is None:
        parts = quantized_state(kind, config, form, stored)
        if parts is None:
            options["quantization_config"] = BitsAndBytesConfig(**form.recipe.config())
        else:
            config.quantization_config = form.recipe.config()
            state = parts
    elif quantized is not None:
        state = cast_state(stored, form.weights)
    try:
        with _silence():
            loaded = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=form.weights,
                device_map={"": str(form.device)},
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                **options,
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        faults.raise_if_any(base.folder)
        raise IntegrityError(f"{base.folder}: cannot be loaded: {error}") from None
    faults.raise_if_any(base.folder)
    return loaded


@contextmanager
def _silence() -> Iterator[None]:
    """No progress bar and no load report: what matters of them is raised as an error."""
    shown, level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _require_all(base: Base, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """transformers only warns, and fills missing weights with random numbers."""
    faults = [f"{name}: missing from the files" for name in sorted(info["missing_keys"])]
    faults += [
        f"{name}: shape {list(found)}, expected {list(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    faults += _misshapen(model)
    if faults:
        raise IntegrityError(
            f"{base.folder}: {len(faults)} weights do not fit its config.json:", faults[:_SHOWN]
        )


def _misshapen(model: PreTrainedModel) -> Iterator[str]:
    """4-bit weights of another shape than their layer's: packed, any shape looks alike."""
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = getattr(module.weight, "quant_state", None)
            expected = (module.out_features, module.in_features)
            if state is None:
                yield f"{name}.weight: its quantization constants are missing"
            elif tuple(state.shape) != expected:
                yield f"{name}.weight: shape {list(state.shape)}, expected {list(expected)}"


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
    weights.keep_as_quantized(model)
    if form.recipe is not None and form.weights == torch.float32:
        narrow(model)
        alloc.trim()
    return model.eval()
