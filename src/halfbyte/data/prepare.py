"""Preparing: from settings to encoded rows on disk, checked, split, audited and counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from halfbyte.config import DataSettings
from halfbyte.data.build import REPORT, Build, Progress, silent
from halfbyte.data.encoded import EncodedSet
from halfbyte.data.report import Report
from halfbyte.data.sources import find_sources
from halfbyte.data.templates import Template
from halfbyte.errors import IntegrityError, ResourceError
from halfbyte.run.files import atomic_folder, remove_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Everything a training or an evaluation needs of its data.

    `hashes`: sha256 of the data's bytes (`train`, `valid`), the template and the tokenizer, and of
    all that shapes the encoded rows (`encoded`).
    """

    train: EncodedSet
    valid: EncodedSet
    template: Template
    report: Report
    hashes: Mapping[str, str]


def prepare(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Prepared:
    """Read, check, split, audit and encode the rows, or take them from the cache.

    The cache's key covers the data's bytes, the tokenizer, the template, every setting that shapes
    a row, and the code of this layer. Processes that prepare the same data wait for the first.

    Raises:
        DataError: faults in the data, all of them in one error; or nothing is left to train.
        MissingError: a hub data set that is not on this machine.
        IntegrityError: a hostile template.
        ResourceError: the disk is full, or the cache cannot be written.
    """
    train, valid = find_sources(settings.train, settings.valid)
    template = Template.load(settings.template, tokenizer)
    hashes = {
        "train": train.digest(),
        "valid": valid.digest() if valid else "",
        "template": template.hash,
        "tokenizer": template.tokens.fingerprint,
    }
    hashes["encoded"] = _key(settings, hashes)
    folder = cache_dir / "encoded" / hashes["encoded"][:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            found = _open(folder)
            if found is None:
                build = Build(settings, template, progress or silent)
                with atomic_folder(folder) as temp:
                    build.into(temp, folder, train, valid)
                found = _open(folder)
    except PermissionError as error:
        raise ResourceError(
            f"{error.filename}: the cache cannot be written: {error.strerror}",
            "Set HALFBYTE_CACHE to a folder that can be.",
        ) from None
    assert found is not None
    return Prepared(*found[:2], template, found[2], hashes)


def _key(settings: DataSettings, hashes: Mapping[str, str]) -> str:
    shaping = settings.model_dump(mode="json", exclude={"train", "valid", "template"})
    parts = [dict(hashes), shaping, _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    """sha256 of this layer's own code: a mended mask rule is another rule."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _open(folder: Path) -> tuple[EncodedSet, EncodedSet, Report] | None:
    """What the cache holds; None (and nothing there any more) if it is absent or damaged."""
    if not folder.is_dir():
        return None
    try:
        report = Report.from_json((folder / REPORT).read_bytes())
        return EncodedSet(folder / "train"), EncodedSet(folder / "valid"), report
    except (OSError, ValueError, IntegrityError):
        remove_folder(folder)
        return None
