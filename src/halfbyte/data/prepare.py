"""Preparing: from settings to encoded rows on disk, checked, split, audited and counted."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import filelock

from halfbyte.config import DataSettings
from halfbyte.data.build import REPORT, Build, Progress, silent
from halfbyte.data.encoded import EncodedSet
from halfbyte.data.report import Report, SetReport
from halfbyte.data.sources import find_source, find_sources
from halfbyte.data.templates import Template
from halfbyte.errors import ResourceError
from halfbyte.run.files import atomic_folder, remove_folder, remove_leftovers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_FOLDER: Final = "encoded"


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


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """One source, encoded whole; `digest`: sha256 of its bytes."""

    rows: EncodedSet
    template: Template
    report: SetReport
    digest: str


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
    build = Build(settings, template, progress or silent)

    def opened(folder: Path) -> Prepared:
        report = Report.from_json((folder / REPORT).read_bytes())
        # the same rows may stand in a file of another name by now
        report = replace(report, train=replace(report.train, source=train.name))
        sets = EncodedSet(folder / "train"), EncodedSet(folder / "valid")
        return Prepared(*sets, template, report, hashes)

    return _cached(
        cache_dir / _FOLDER / hashes["encoded"][:32],
        lambda temp, final: build.into(temp, final, train, valid),
        opened,
    )


def prepare_rows(
    name: str, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, cache_dir: Path
) -> PreparedRows:
    """Read, check and encode one source whole (held-out rows to score, say), with the same cache.

    `name` stands for `settings.train`; what concerns splitting and leakage is not used.

    Raises:
        DataError, MissingError, ResourceError: as `prepare`.
    """
    source = find_source(name, "valid")
    template = Template.load(settings.template, tokenizer)
    digest = source.digest()
    hashes = {"rows": digest, "template": template.hash, "tokenizer": template.tokens.fingerprint}
    build = Build(settings, template)

    def opened(folder: Path) -> PreparedRows:
        report = SetReport.from_json((folder / REPORT).read_bytes())
        rows = EncodedSet(folder / "rows")
        return PreparedRows(rows, template, replace(report, source=name), digest)

    return _cached(
        cache_dir / _FOLDER / _key(settings, hashes)[:32],
        lambda temp, _: build.rows_into(temp, source),
        opened,
    )


def _cached(folder: Path, fill: Callable[[Path, Path], None], opened: Callable[[Path], T]) -> T:
    """What the folder holds; filled first where it is absent or damaged.

    Processes that want the same folder wait for the first.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            if folder.is_dir():
                try:
                    return opened(folder)
                except (OSError, ValueError, EOFError):
                    remove_folder(folder)
            remove_leftovers(folder)
            with atomic_folder(folder) as temp, _few_collections():
                fill(temp, folder)
            return opened(folder)
    except PermissionError as error:
        raise ResourceError(
            f"{error.filename}: the cache cannot be written: {error.strerror}",
            "Set HALFBYTE_CACHE to a folder that can be.",
        ) from None


@contextmanager
def _few_collections() -> Iterator[None]:
    """What there is now is not searched for garbage: with torch loaded that takes 0.1 s a time,
    and in a forked process it copies all of its memory.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
