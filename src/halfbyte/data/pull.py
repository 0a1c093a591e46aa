"""Fetching a data set from the hub: the only place of this layer that uses the network."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, snapshot_download
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

from halfbyte.data.sources import HUB_FILES
from halfbyte.errors import HalfbyteError, InputError, MissingError

_SECONDS: Final = 10.0  # until a hub that does not answer is given up


def pull(name: str, revision: str | None = None) -> Path:
    """Fetch a data set's files into the hub's cache, where its name is found from then on.

    Only JSON, JSONL, CSV and Parquet files are fetched: loading scripts are never run.

    Raises:
        MissingError: no network, or no permission.
        InputError: no such data set or revision, or one without such files.
    """
    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=_SECONDS)
        names = [file.rfilename for file in info.siblings or ()]
        if not any(Path(each).match(pattern) for each in names for pattern in HUB_FILES):
            raise InputError(
                f"{name}: holds no JSON, JSONL, CSV or Parquet files",
                "Export it as Parquet with the tool it was made for, and give that file.",
            )
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=list(HUB_FILES)
            )
        )
    except (HfHubHTTPError, TransportError, OSError, HFValidationError) as error:
        raise _explained(name, error) from None


def _explained(name: str, error: Exception) -> HalfbyteError:
    page = f"https://huggingface.co/datasets/{name}"
    if isinstance(error, GatedRepoError):
        return MissingError(
            f"{name}: its owner asks for an account that has accepted the terms",
            f"Accept them at {page}, then run `hf auth login`, then pull again.",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{name}: no such revision")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return InputError(
            f"{name}: the hub has no such data set, or hides it from you",
            f"Check the name at {page}; for a private one run `hf auth login` first.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return MissingError(f"{name}: HF_HUB_OFFLINE forbids fetching", "Unset it and pull again.")
    if isinstance(error, TransportError | LocalEntryNotFoundError):
        return MissingError(
            f"{name}: the hub cannot be reached: {error}",
            "Connect to the network and pull again, or copy the files here and give their folder.",
        )
    return MissingError(f"{name}: could not be fetched: {error}", "Try again later.")
