"""Quantized forms kept in the cache: written once, tensor by tensor, opened in seconds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from halfbyte.errors import InputError
from halfbyte.model.assemble import Form, causal_class, quantized_state, stored_quantization
from halfbyte.model.bases import Base, load_model_config
from halfbyte.model.cache import build_folder, cache_dir
from halfbyte.model.quantize import Recipe
from halfbyte.model.stream import Faults, stored_tensors

_FORMAT: Final = 1  # a change in what we write must not meet folders made before it
_SHARD: Final = 1 << 29  # bytes in one file: what is held in memory while it is written
_COPIED: Final = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "*.jinja")


def find_kept(base: Base, recipe: Recipe) -> Path | None:
    """The folder with this base quantized so, if `keep` has made it.

    The base's files are hashed only where a form of that name exists at all.
    """
    root = _root()
    if not any(root.glob(f"{_slug(base)}-*-{_tag(recipe)}")):
        return None
    folder = root / _name(base, recipe)
    return folder if folder.is_dir() else None


def keep(base: Base, form: Form) -> Path:
    """Quantize a base into the cache and return the folder; plain transformers opens it too.

    Memory peaks at about half a GB, whatever the size of the base.

    Raises:
        InputError: nothing is to be quantized, or the base is quantized already.
        IntegrityError: its files are damaged.
        MissingError: the cache cannot be written.
    """
    if form.recipe is None:
        raise InputError("method lora or full: only qlora holds a base quantized")
    if stored_quantization(base, load_model_config(base)) is not None:
        raise InputError(f"{base.name}: its files are quantized already", "Use it as it is.")
    folder = _root() / _name(base, form.recipe)
    return build_folder(folder, lambda target: _write(base, form, target))


def _write(base: Base, form: Form, target: Path) -> None:
    config = load_model_config(base)
    kind = causal_class(base, config)
    faults = Faults()
    state = quantized_state(kind, config, form, stored_tensors(base.weights, faults))
    if state is None or form.recipe is None:
        raise InputError(
            f"{base.name}: transformers renames this architecture's weights while it loads them, "
            "so they cannot be kept quantized",
            "Train it as it is: every start quantizes it again.",
        )
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(state.items()), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        faults.raise_if_any(base.folder)
    index = {"metadata": {}, "weight_map": dict(sorted(places.items()))}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config.quantization_config = form.recipe.config()
    config.dtype = form.weights
    config.architectures = [kind.__name__]
    config.save_pretrained(target)
    for pattern in _COPIED:
        for path in base.folder.glob(pattern):
            shutil.copyfile(path, target / path.name)


def _shards(items: Iterable[tuple[str, Any]]) -> Iterator[dict[str, torch.Tensor]]:
    """Read the weights one by one and hand them out by the half GB."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, stored in items:
        tensor = stored[...].cpu().contiguous()
        shard[name] = tensor
        size += tensor.nbytes
        if size >= _SHARD:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _root() -> Path:
    return cache_dir() / "quantized"


def _name(base: Base, recipe: Recipe) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(base.hashes().items()):
        if name.endswith(".safetensors") or name == "config.json":
            digest.update(f"{name}\0{value}\n".encode())
    return f"{_slug(base)}-{digest.hexdigest()[:12]}-{_tag(recipe)}"


def _slug(base: Base) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", base.name.lower())[-60:].strip("-.")


def _tag(recipe: Recipe) -> str:
    double = "-double" if recipe.double_quant and recipe.quantization != "int8" else ""
    dtype = str(recipe.dtype).removeprefix("torch.")
    return f"{recipe.quantization}{double}-{dtype}-{_FORMAT}"
