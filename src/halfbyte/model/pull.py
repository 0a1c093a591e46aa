"""Fetching a base: the only part of the model layer that uses the network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError

from halfbyte.errors import HalfbyteError, InputError, MissingError, ResourceError
from halfbyte.model.bases import FILES, Base, is_hub_id, resolve
from halfbyte.model.catalogue import Entry, find

_SECONDS: Final = 15.0  # for the first answer of the hub; a download may take as long as it needs
_SPARE: Final = 1 << 30  # bytes of disk left free
_MARGIN: Final = 1.02


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    patterns: tuple[str, ...]
    bytes: int


def pull(name: str, revision: str | None = None) -> Base:
    """Fetch a base into the hub's cache and return it, ready to use without a network.

    An embedded base is converted into our cache. Only safetensors, configuration and tokenizer
    files are fetched.

    Raises:
        MissingError: no network, no permission, or a package to install first.
        InputError: no such base or revision, or none that can be opened safely.
        ResourceError: the disk is too small.
    """
    entry = find(name)
    if entry is not None and entry.package and name == entry.name:
        return resolve(name, revision)
    hub = entry.hub if entry is not None else name
    if Path(name).expanduser().exists():
        raise InputError(f"{name}: is here already", "Use it as model.base.")
    if not is_hub_id(hub):
        resolve(name)  # says what is wrong with the name
    try:
        listing = _listing(hub, revision)
        _require_space(hub, listing)
        snapshot_download(hub, revision=listing.commit, allow_patterns=list(listing.patterns))
        if revision is None:  # so that `main` is found without a network, too
            snapshot_download(hub, allow_patterns=["config.json"])
    except (HfHubHTTPError, TransportError, OSError, HFValidationError) as error:
        raise _explained(hub, entry, error) from None
    return resolve(hub, revision)


def _listing(hub: str, revision: str | None) -> _Listing:
    """Which files to fetch, decided from their names."""
    info = HfApi().model_info(hub, revision=revision, timeout=_SECONDS, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    weights = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
    if not weights:
        raise InputError(
            f"{hub}: has no safetensors weights; pickles are never opened",
            "Choose another copy of the model, one with .safetensors files.",
        )
    # some repositories hold the weights a second time, for another program
    main = [name for name in weights if name.startswith("model")] or weights
    others = [pattern for pattern in FILES if pattern != "*.safetensors"]
    total = sum(sizes[name] for name in main)
    return _Listing(str(info.sha), (*main, *others), total)


def _require_space(hub: str, listing: _Listing) -> None:
    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = round(listing.bytes * _MARGIN) + _SPARE
    if free < needed:
        raise ResourceError(
            f"{hub}: needs {needed / 1e9:.1f} GB on disk; {place} has {free / 1e9:.1f} GB free",
            "Make room, or set HF_HOME to a folder on another disk.",
        )


def _explained(hub: str, entry: Entry | None, error: Exception) -> HalfbyteError:
    page = f"https://huggingface.co/{hub}"
    hidden = isinstance(error, RepositoryNotFoundError)
    if isinstance(error, GatedRepoError) or (hidden and entry is not None and entry.gated):
        return MissingError(
            f"{hub}: its owner asks for an account that has accepted the licence",
            f"Accept it at {page}, then run `hf auth login`, then pull again.",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{hub}: no such revision", f"{page}/commits/main lists them.")
    if hidden or isinstance(error, HFValidationError):
        return InputError(
            f"{hub}: the hub has no such model, or hides it from you",
            f"Check the name at {page}; for a private model run `hf auth login` first.",
        )
    return MissingError(*_unreachable(hub, error))


def _unreachable(hub: str, error: Exception) -> tuple[str, str]:
    if isinstance(error, OfflineModeIsEnabled):
        return f"{hub}: HF_HUB_OFFLINE forbids fetching", "Unset it and pull again."
    if isinstance(error, HfHubHTTPError):
        return f"{hub}: the hub refuses: {error}", "Try again later."
    if isinstance(error, TransportError | LocalEntryNotFoundError):
        return (
            f"{hub}: the model hub cannot be reached: {error}",
            "Connect to the network and pull again, or copy the model's folder here and give its "
            "path as model.base. The base smollm2-135m needs no hub.",
        )
    return f"{hub}: could not be fetched: {error}", "Check the disk, then pull again."
