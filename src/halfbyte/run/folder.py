"""The run folder: the only place that knows which file of a run has which name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from halfbyte.errors import InputError, NoRunError
from halfbyte.run.files import remove_folder, remove_temporaries, write_atomic, writing
from halfbyte.run.lock import Holder, holder, locked

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LATEST: Final = "latest"
_STEP: Final = re.compile(r"step-(\d+)")


class RunFolder:
    """The paths of one run. Making one creates nothing; see `create` and `open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.config = self.path / "config.yaml"
        self.receipt = self.path / "receipt.json"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "train.log"
        self.loss_plot = self.path / "loss.svg"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.held_out = self.path / "held_out.jsonl"
        self.data_report = self.path / "data.json"
        self.rejects = self.path / "rejects.jsonl"
        self.eval = self.path / "eval"
        self.report = self.path / "report"
        self.merged = self.path / "merged"
        self.export = self.path / "export"
        self.lock_file = self.path / "lock"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    @classmethod
    def create(
        cls, runs: str | Path, name: str | None, config: str, stem: str = "run"
    ) -> RunFolder:
        """Make a new run folder that holds `config` (YAML text).

        Without a `name` it is called after `stem`, with a number added when that is taken.

        Raises:
            InputError: a run of this name exists, or the name is no file name.
            ResourceError: nothing can be written there.
        """
        runs = Path(runs)
        if name is not None:
            folder = cls(runs / _checked(name))
            if not _made(folder.path):
                raise _taken(folder)
        else:
            stem = _checked(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:90] or "run")
            folder = next(
                folder
                for number in range(1, 10_000)
                if _made((folder := cls(runs / (f"{stem}-{number}" if number > 1 else stem))).path)
            )
        write_atomic(folder.config, config)
        return folder

    @classmethod
    def open(cls, path_or_name: str | Path, runs: str | Path = "runs") -> RunFolder:
        """The run at a path (or at the path of something in it), or of this name under `runs`.

        Raises:
            NoRunError: there is none; the hint names similar ones.
        """
        given = Path(path_or_name)
        around = (given, *given.resolve().parents[:2]) if given.exists() else ()
        for candidate in (*around, Path(runs) / given):
            if (candidate / "config.yaml").is_file():
                return cls(candidate)
        known = [run.name for run in cls.all(runs)]
        near = difflib.get_close_matches(str(path_or_name), known, n=3, cutoff=0.4)
        raise NoRunError(
            f"{path_or_name}: no such run, neither as a path nor under {runs}/",
            f"Did you mean {' or '.join(near)}?" if near else "`halfbyte runs list` shows them.",
        )

    @classmethod
    def find(cls, path_or_name: str | Path, runs: str | Path = "runs") -> RunFolder:
        """As `open`; the name `latest` stands for the newest run under `runs`.

        Raises:
            NoRunError: there is none.
        """
        if str(path_or_name) != LATEST:
            return cls.open(path_or_name, runs)
        known = cls.all(runs)
        if not known:
            raise NoRunError(
                f"there is no run under {runs}/ yet", "`halfbyte train demo` makes one."
            )
        return known[-1]

    @classmethod
    def all(cls, runs: str | Path) -> list[RunFolder]:
        """Every run under `runs`, oldest first."""
        found = [path.parent for path in Path(runs).glob("*/config.yaml")]
        return [cls(path) for path in sorted(found, key=lambda path: (_born(path), path.name))]

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint at `step`; six digits, so that names sort like steps."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[tuple[int, Path]]:
        """Every checkpoint folder with its step, oldest first, whether it verifies or not."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else iter(())
        steps = ((_STEP.fullmatch(path.name), path) for path in found)
        return sorted((int(match[1]), path) for match, path in steps if match and path.is_dir())

    @contextmanager
    def lock(self) -> Iterator[Holder | None]:
        """Be the only writer for the block; what a killed one left unfinished is deleted first.

        Yields the dead process the lock was taken over from, if one left it.

        Raises:
            InputError: a living process uses the run; the message has its pid.
        """
        with locked(self.lock_file) as before:
            remove_temporaries(self.path)
            yield before

    def user(self) -> Holder | None:
        """The living process that uses this run now, if any."""
        return holder(self.lock_file)

    def remove(self) -> None:
        """Delete the run and everything in it.

        Raises:
            InputError: a living process uses it, or it is a link and its target is not ours.
        """
        if self.path.is_symlink():
            raise InputError(f"{self.path}: a link, not a run folder", "Remove the link yourself.")
        with self.lock(), writing(self.path):
            remove_folder(self.path)


def _taken(run: RunFolder) -> InputError:
    """The refusal of a name; to go on with a run is no way to train it on anything else."""
    if not run.config.is_file():
        return InputError(f"{run.path}: exists already, and is no run", "Choose another name=NAME.")
    if run.adapter.is_dir() or run.model.is_dir():
        return InputError(
            f"{run.path}: this run exists already, and is finished", "Choose another name=NAME."
        )
    return InputError(
        f"{run.path}: this run exists already, and is not finished",
        f"Choose another name=NAME; or go on with that run, on its own data and with its own "
        f"settings: halfbyte resume {run.path}",
    )


def _made(path: Path) -> bool:
    """Create the folder; False if something has that name. Two processes cannot both succeed."""
    with writing(path, hint="Set runs=PATH to a folder that can be written."):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            return False
    return True


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r}: not a run name",
            "Letters, digits, dot, dash and underscore, at most 100, beginning with one of the "
            "first two.",
        )
    return name


def _born(path: Path) -> float:
    return (path / "config.yaml").stat().st_mtime
