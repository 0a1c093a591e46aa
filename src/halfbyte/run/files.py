"""Files and folders that appear whole or not at all: temp name, fsync, one rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from halfbyte.errors import HalfbyteError, InputError, ResourceError
from halfbyte.run import failpoints

TEMP_PREFIX: Final = ".tmp-"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHUT: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_NO_PLACE: Final = {
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder has this name",
    errno.ENAMETOOLONG: "the name is too long",
}
_BLOCK: Final = 1 << 20


class HashingFile:
    """A binary file open for writing that knows the sha256 and the length of what went in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        failpoints.reach("write")
        self._file.write(data)
        self._hash.update(data)
        self.length += len(data)

    @property
    def sha256(self) -> str:
        """Of all that was written, in hexadecimal."""
        return self._hash.hexdigest()


def write_atomic(path: Path, content: bytes | str | Callable[[HashingFile], None]) -> None:
    """Give `path` new content: after a crash it holds the old or the new, never a part.

    `content` is text, bytes, or a function that writes into an open file. The folder is made.

    Raises:
        ResourceError, InputError: as `writing`; what was there before is untouched.
    """
    temp = _temp_beside(path)
    with writing(path), _gone_on_failure(temp):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durable(temp, content)
        temp.replace(path)
        sync_path(path.parent)


def write_durable(path: Path, content: bytes | str | Callable[[HashingFile], None]) -> HashingFile:
    """Write a new file and push it to the disk; its hash and length are in what is returned."""
    with path.open("wb") as raw:
        file = HashingFile(raw)
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
        raw.flush()
        os.fsync(raw.fileno())
    return file


@contextmanager
def writing(path: Path, *, needed: int = 0, hint: str = "") -> Iterator[None]:
    """A block that writes `path`: what the system refuses of it becomes an error of ours.

    `needed`: bytes the block is going to write, for the message of a full disk. `hint`: where else
    it could write.

    Raises:
        ResourceError: the disk is full, or refuses to be written.
        InputError: nothing can have this path: a file is in the way, or the name is too long.
    """
    try:
        yield
    except OSError as error:
        failure = _failure(path, needed, hint, error)
        if failure is None:
            raise
        raise failure from error


@contextmanager
def atomic_folder(target: Path, needed: int = 0) -> Iterator[Path]:
    """A temp folder to fill; when the block ends it becomes `target` (an older one is replaced).

    Every file of it is pushed to the disk before the rename. A failure removes the temp folder.
    `needed`: bytes the block is going to write, for the message of a full disk.

    Raises:
        ResourceError, InputError: as `writing`; what was there before is untouched.
    """
    temp = _temp_beside(target)
    with writing(target, needed=needed), _gone_on_failure(temp):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        temp.mkdir()
        yield temp
        sync_tree(temp)
        failpoints.reach("folder.rename")
        if target.exists():  # a folder cannot be renamed onto one that has files
            remove_folder(target)
        temp.replace(target)
        failpoints.reach("folder.renamed")
        sync_path(target.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder; half-deleted it has a temp name, so that nobody takes it for whole."""
    trash = _temp_beside(path)
    path.replace(trash)
    failpoints.reach("folder.trashed")
    shutil.rmtree(trash)


def remove_temporaries(folder: Path) -> list[Path]:
    """Delete what killed writers left anywhere under `folder`; returns what was deleted.

    Only for the holder of the folder's lock: a living writer's files look the same.
    """
    found = sorted(folder.rglob(f"{TEMP_PREFIX}*"))
    gone = [path for path in found if not any(parent in found for parent in path.parents)]
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return gone


def remove_leftovers(target: Path) -> None:
    """Delete what killed writers of `target` left beside it; only for the holder of its lock."""
    for path in target.parent.iterdir():
        if path.name.startswith(f"{TEMP_PREFIX}{target.name}-"):
            shutil.rmtree(path, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Push a file's content, or a folder's entries, to the disk: a rename is durable only then."""
    failpoints.reach("sync")
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Push every file and folder under `folder`, and itself, to the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync_path(path)
    sync_path(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """What all files under `folder` hold together, in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse before writing when `folder`'s disk has less than `needed` bytes free.

    Raises:
        ResourceError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{folder}: {purpose} needs {needed:,} bytes, the disk has {free:,} free",
            f"Free {needed - free:,} bytes there, or choose another folder with runs=PATH.",
        )


def _temp_beside(path: Path) -> Path:
    return path.with_name(f"{TEMP_PREFIX}{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextmanager
def _gone_on_failure(temp: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind; it goes on upwards
        with suppress(OSError):  # where nothing can be written nothing can be deleted either
            if temp.is_dir():
                shutil.rmtree(temp, ignore_errors=True)
            else:
                temp.unlink(missing_ok=True)
        raise


def _failure(path: Path, needed: int, hint: str, error: OSError) -> HalfbyteError | None:
    """What a failed write means to whoever chose `path`; None where it says nothing about it."""
    if error.errno in _FULL:
        folder = next(one for one in path.absolute().parents if one.exists())
        free = shutil.disk_usage(folder).free
        wants = f"{needed:,} bytes are needed, " if needed else ""
        return ResourceError(
            f"{path}: the disk is full: {wants}{free:,} are free ({error.strerror})",
            "What was saved before is intact. Free some space there, then run the command again.",
        )
    if _is_read(error, path):
        return None
    if error.errno in _SHUT:
        message = f"{path}: cannot be written: {error.strerror}"
        return ResourceError(message, hint or "Choose another place, or make this one writable.")
    if error.errno in _NO_PLACE:
        message = f"{path}: cannot be written: {_NO_PLACE[error.errno]}"
        return InputError(message, hint or "Choose another path.")
    return None


def _is_read(error: OSError, path: Path) -> bool:
    """Whether an error names a file that is neither `path`, a folder of it, nor its temp name."""
    if error.filename is None:
        return False
    place = Path(error.filename)
    temporary = any(part.startswith(TEMP_PREFIX) for part in place.parts)
    return not temporary and place not in (path, *path.parents)
