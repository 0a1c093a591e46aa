"""Bases: from the name a user writes to a local transformers folder, without any network."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from halfbyte.errors import HalfbyteError, InputError, IntegrityError, MissingError
from halfbyte.model.cache import cache_dir, file_hash
from halfbyte.model.catalogue import CATALOGUE, Entry, find
from halfbyte.model.gguf_base import converted_folder, packaged_gguf
from halfbyte.model.untrusted import check_folder, is_complete, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Base", "cache_dir", "load_model_config", "load_tokenizer", "resolve"]

Kind = Literal["embedded", "hub", "folder", "gguf"]

# What the hub allows: owner/name, each of letters, digits, dot, dash and underscore.
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a base consists of; a snapshot is fetched and hashed by these patterns.
_TEXTS: Final = ("*.json", "*.jinja", "tokenizer.model")
FILES: Final = ("*.safetensors", *_TEXTS)


@dataclass(frozen=True, slots=True)
class Base:
    """A base that is here, ready to load.

    `name` is what adapters and receipts call it: the catalogue name, hub id or path. `folder` is
    a transformers folder (config.json, safetensors, tokenizer). `revision` is the hub commit.
    `source` is the .gguf file the folder was converted from.
    """

    name: str
    kind: Kind
    folder: Path
    revision: str | None = None
    source: Path | None = None

    @property
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files that hold its weights, in name order."""
        return weight_files(self.folder)

    def hashes(self) -> dict[str, str]:
        """File name → sha256 of every file that shapes it (remembered by size and time)."""
        files = {path for pattern in _TEXTS for path in self.folder.glob(pattern)}
        files.update(self.weights)
        return {path.name: file_hash(path) for path in sorted(files)}


def resolve(name: str, revision: str | None = None) -> Base:
    """Find a base by catalogue name, local folder, .gguf file or hub id, in this order.

    Nothing is fetched: a hub base must be in the hub's own cache already. A .gguf file is
    converted into the cache on first use.

    Raises:
        MissingError: it must be fetched first; the hint is the command.
        InputError: no such base, or a revision for something that has none.
        IntegrityError: the folder or file is not a model that may be opened.
    """
    entry = find(name)
    path = Path(name).expanduser()
    if revision is not None and ((entry and entry.package) or path.exists()):
        raise InputError(
            f"{name}: model.revision is for hub ids; this base is a local file",
            "Remove model.revision from the recipe.",
        )
    if entry is not None and entry.package and name == entry.name:
        gguf = packaged_gguf(entry)
        return Base(entry.name, "embedded", converted_folder(gguf), source=gguf)
    if entry is not None:
        return _from_hub(entry.hub, revision, entry)
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.is_dir():
        check_folder(path)
        return Base(str(path.resolve()), "folder", path.resolve())
    if is_hub_id(name):
        return _from_hub(name, revision, None)
    raise _unknown(name, path)


def is_hub_id(name: str) -> bool:
    """Whether this is how the hub writes a model's name: owner/name."""
    return bool(_HUB_ID.fullmatch(name))


def is_here(entry: Entry) -> bool:
    """Whether a base of the catalogue can be used without fetching anything."""
    try:
        if entry.package:
            packaged_gguf(entry)
        else:
            _from_hub(entry.hub, None, entry)
    except HalfbyteError:
        return False
    return True


def _from_gguf(path: Path) -> Base:
    if not path.is_file():
        raise MissingError(f"{path}: no such file", "Check the path of the .gguf file.")
    path = path.resolve()
    return Base(str(path), "gguf", converted_folder(path), source=path)


def _from_hub(hub: str, revision: str | None, entry: Entry | None) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = f"halfbyte models pull {entry.name if entry else hub}"
    if revision:
        wanted += f" --revision {revision}"
    try:
        folder = Path(
            snapshot_download(
                hub, revision=revision, local_files_only=True, allow_patterns=list(FILES)
            )
        )
    except HFValidationError as error:
        raise InputError(f"{hub}: not a hub id: {error}") from None
    except LocalEntryNotFoundError:
        at = f" at revision {revision}" if revision else ""
        raise MissingError(
            f"{hub}{at}: this base is not on this machine yet", f"Fetch it: {wanted}"
        ) from None
    if not is_complete(folder):
        raise MissingError(f"{hub}: only parts of it are on this machine", f"Fetch it: {wanted}")
    check_folder(folder)
    return Base(hub, "hub", folder, revision=folder.name)


def _unknown(name: str, path: Path) -> InputError:
    if path.is_file():
        return InputError(
            f"{name}: a base is a folder or a .gguf file, not a {path.suffix or 'plain'} file",
            "Give the folder that holds config.json and the .safetensors files.",
        )
    near = difflib.get_close_matches(name, [entry.name for entry in CATALOGUE], n=1, cutoff=0.6)
    guess = f"; did you mean {near[0]}?" if near else ""
    return InputError(
        f"{name}: no such base{guess}",
        "`halfbyte models list` shows the known ones; a hub id (owner/name), a local folder or a "
        ".gguf file will do too.",
    )


def load_model_config(base: Base) -> PretrainedConfig:
    """The transformers config of a base.

    Raises:
        IntegrityError: it is not readable, or of an architecture transformers does not know, or of
            an encoder.
    """
    from transformers import AutoConfig

    path = base.folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError) as error:
        raise _unusable(path, error) from None
    two_parts = getattr(config, "is_encoder_decoder", False)
    if not getattr(config, "is_decoder", True) and not two_parts:
        raise IntegrityError(
            f"{path}: a model of type {config.model_type} reads texts in both directions and does "
            "not generate them",
            hint="Give a causal language model.",
        )
    return config


def _unusable(path: Path, error: Exception) -> IntegrityError:
    from transformers import CONFIG_MAPPING, __version__

    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if not isinstance(kind, str) or kind in CONFIG_MAPPING:
        return IntegrityError(f"{path}: cannot be used: {error}")
    return IntegrityError(
        f"{path}: transformers {__version__} knows no model of type {kind}",
        hint="A newer one may: pip install -U transformers.",
    )


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; where it names no pad token, an existing one serves.

    No token is ever added: that would resize the embeddings. Labels and attention come from
    lengths, so that a pad token equal to the end mark does no harm.

    Raises:
        IntegrityError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception for bad files
        raise IntegrityError(f"{base.folder}: its tokenizer cannot be read: {error}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer
