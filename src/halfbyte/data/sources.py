"""Sources: from what a recipe calls its data to files, and to their rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halfbyte.data.example_json import dump_example
from halfbyte.data.readers import SUFFIXES, Raw, read_file
from halfbyte.errors import DataError, MissingError

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_BUILT_IN: Final = "builtin:"
# part of a folder → the beginnings of its file names
_PARTS: Final = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}
# A data set on the hub as files; loading scripts (.py) and pickles are never fetched or run.
HUB_FILES: Final = tuple(f"*{suffix}" for suffix in SUFFIXES)


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one kind: the files they stand in, or the name of built-in data."""

    name: str
    files: tuple[Path, ...] = ()
    built_in: str = ""

    def rows(self) -> Iterator[Raw]:
        """Every row, with its place."""
        if self.built_in:
            for number, line in enumerate(_built_in_lines(self.built_in), 1):
                yield Raw(self.name, number, json.loads(line))
        for path in self.files:
            yield from read_file(path)

    def digest(self) -> str:
        """sha256 of its bytes."""
        total = hashlib.sha256()
        if self.built_in:
            total.update(b"\n".join(_built_in_lines(self.built_in)))
        for path in self.files:
            total.update(path.name.encode() + b"\0")
            try:
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        return total.hexdigest()


def find_sources(train: str, valid: str | None) -> tuple[Source, Source | None]:
    """Where the training rows and the held-out rows stand (None: to be split off).

    Raises:
        DataError: no such file; a folder without data.
        MissingError: a hub data set that is not on this machine.
    """
    source = find_source(train, "train")
    if valid is not None:
        return source, find_source(valid, "valid")
    folder = _folder(train)
    if folder is not None:
        files = _part(folder, "valid") or _part(folder, "test")
        if files:
            return source, Source(f"{train} ({files[0].name})", files)
    return source, None


def find_source(name: str, part: str = "train") -> Source:
    """The rows that `name` stands for; of a folder, those of this part.

    Raises:
        DataError: no such file; a folder without data.
        MissingError: a hub data set that is not on this machine.
    """
    if name.startswith(_BUILT_IN):
        return _built_in(name)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{name}: a data file ends in {', '.join(SUFFIXES)}, not {path.suffix or 'nothing'}"
            )
        return Source(name, (path,))
    folder = _folder(name)
    if folder is None:
        raise DataError(
            f"{name}: no such file or folder",
            hint="A hub data set is written owner/name, built-in data builtin:NAME.",
        )
    others = [kind for kind in ("valid", "test") if kind != part]
    order = [part] if part == "train" else [part, *others]
    files = next((found for kind in order if (found := _part(folder, kind))), ())
    if not files and not any(_part(folder, kind) for kind in _PARTS):
        files = _data_files(folder)  # a folder of plain files: all of them
    if not files:
        raise DataError(
            f"{name}: no {part} rows in this folder",
            hint=f"It should hold {part}.jsonl (or {', '.join(SUFFIXES[2:])}).",
        )
    return Source(name, files)


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not path.exists() and path.suffix.lower() not in SUFFIXES and _HUB_ID.fullmatch(name):
        return _hub_folder(name)
    return None


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, repo_type="dataset", local_files_only=True, allow_patterns=list(HUB_FILES)
        )
    except LocalEntryNotFoundError:
        raise MissingError(
            f"{name}: no such file or folder, and no hub data set of this name is on this machine",
            f"Fetch it: halfbyte data pull {name}",
        ) from None
    return Path(found)


def _data_files(folder: Path) -> tuple[Path, ...]:
    places = [folder, folder / "data"]
    files = [path for place in places if place.is_dir() for path in place.iterdir()]
    return tuple(
        sorted(path for path in files if path.suffix.lower() in SUFFIXES and path.is_file())
    )


def _part(folder: Path, part: str) -> tuple[Path, ...]:
    # train.jsonl, train-00000-of-00002.parquet
    name = re.compile(rf"({'|'.join(_PARTS[part])})([-_.].*)?", re.IGNORECASE)
    return tuple(path for path in _data_files(folder) if name.fullmatch(path.stem))


def _built_in(name: str) -> Source:
    from halfbyte.data.builtin import BUILTINS

    short = name.removeprefix(_BUILT_IN)
    if short not in BUILTINS:
        known = ", ".join(f"{_BUILT_IN}{each}" for each in BUILTINS)
        raise DataError(f"{name}: no such built-in data", hint=f"There is {known}.")
    return Source(name, built_in=short)


def _built_in_lines(name: str) -> list[bytes]:
    from halfbyte.data.builtin import load_builtin

    return [dump_example(example) for example in load_builtin(name)]
