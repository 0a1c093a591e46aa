"""The user's cache: where it is, how a folder gets into it whole or not at all, and file hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Final

import filelock
import platformdirs

from halfbyte.errors import MissingError, ResourceError

CACHE_VARIABLE: Final = "HALFBYTE_CACHE"
_LOCK_SECONDS: Final = 600.0  # converting a 7B .gguf takes minutes; longer means a hung process
_CHUNK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def cache_dir() -> Path:
    """The folder for converted and quantized bases: `HALFBYTE_CACHE`, or the platform's own."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("halfbyte"))


def build_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, calling `build(temporary)` first if it is not there yet.

    Two processes never build the same folder, and nobody ever sees a half-built one: the
    temporary folder stands beside it and is renamed in one step.

    Raises:
        MissingError: the cache cannot be written, or another process holds its lock too long.
        ResourceError: the disk is full; nothing is left behind.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock", timeout=_LOCK_SECONDS):
            if not folder.is_dir():
                _build_locked(folder, build)
    except filelock.Timeout:
        raise MissingError(
            f"{folder}: another process has been preparing this for {_LOCK_SECONDS:.0f} s",
            f"If none is running, remove {folder}.lock and try again.",
        ) from None
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"{folder}: the disk is full: {error}",
                f"Make room, or set {CACHE_VARIABLE} to a folder on another disk.",
            ) from None
        raise MissingError(
            f"{folder}: the cache cannot be written: {error}",
            f"Set {CACHE_VARIABLE} to a folder with space that you may write to.",
        ) from None
    return folder


def _build_locked(folder: Path, build: Callable[[Path], None]) -> None:
    for stale in folder.parent.glob(f".{escape(folder.name)}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a process that was killed
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    )
    try:
        build(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        temporary.chmod(0o755)  # mkdtemp makes it private; a shared cache is read by others
        temporary.rename(folder)
        _flush(folder.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """The file's sha256, remembered under its size and time of change.

    Hashing reads about 1 GB/s: a 7B base would cost half a minute at every start.
    """
    real = path.resolve()
    stat = real.stat()
    key = hashlib.sha256(f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_dir() / "hashes" / f"{key[:32]}.json"
    try:
        known = json.loads(memo.read_text())["sha256"]
        if isinstance(known, str) and len(known) == 64:
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not hashed yet, or an unreadable note: hash again
    digest = hashlib.sha256()
    with real.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    _remember(memo, digest.hexdigest())
    return digest.hexdigest()


def _remember(memo: Path, digest: str) -> None:
    temporary = memo.with_suffix(f".{os.getpid()}.tmp")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"sha256": digest}))
        temporary.replace(memo)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only cache: the next start hashes again
