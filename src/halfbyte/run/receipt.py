"""receipt.json: what a run was made from, so that a resume can refuse anything else."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from halfbyte.errors import InputError, IntegrityError
from halfbyte.run.files import write_atomic

# What can change the numbers of a training, beside our own code.
PACKAGES: Final = (
    "halfbyte",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "numpy",
)
# Fields whose change leaves the training the same, up to rounding: noted, never refused.
_NOTED: Final = ("versions", "threads", "device", "processes")
# Settings that say where, how often and how much at once, not what is learned. The paths of data
# are among them because the hashes of the data decide.
_FREE: Final = (
    "config.name",
    "config.runs",
    "config.eval",
    "config.data.train",
    "config.data.valid",
    "config.train.keep",
    "config.train.memory_limit",
    "config.train.micro_batch",
    "config.train.micro_tokens",
    "config.train.save_every",
    "config.train.tensorboard",
    "config.train.threads",
)
# `arrangement`: a resume may choose another one, and computes the same.
_UNCOMPARED: Final = ("created", "resumed", "arrangement")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of the packages that shape a training, and of Python."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not what it was; `refuses` when a resume must not go on with it."""

    field: str
    before: Any
    now: Any
    refuses: bool

    def __str__(self) -> str:
        return f"{self.field}: was {_short(self.before)}, is {_short(self.now)}"


@dataclass(frozen=True, slots=True)
class Resumption:
    """One `resume`: when (ISO 8601), from which step, what differed, and whether it was forced."""

    time: str
    step: int
    forced: bool = False
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a run was made from.

    - `base`, `revision`: name and pinned commit; `base_files`: file name to sha256.
    - `data`: the part a file plays (`train`, `valid`) to the sha256 of its bytes.
    - `template`: the hash of the chat template. `config`: every setting, as a tree.
    - `versions`: package to version. `threads`: CPU threads. `device`: in words.
    - `created`: ISO 8601 time. `arrangement`: how much is computed at once, and what memory that
      was expected to take, in bytes.
    """

    base: str
    revision: str | None
    base_files: Mapping[str, str]
    data: Mapping[str, str]
    template: str
    config: Mapping[str, Any]
    seed: int
    threads: int
    device: str
    created: str
    processes: int = 1
    versions: Mapping[str, str] = field(default_factory=package_versions)
    resumed: tuple[Resumption, ...] = ()
    arrangement: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_atomic(path, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """Read it back.

        Raises:
            IntegrityError: it is missing, or not a receipt.
        """
        try:
            tree = json.loads(path.read_bytes())
            resumed = tuple(
                Resumption(**{**one, "differences": tuple(one["differences"])})
                for one in tree.pop("resumed")
            )
            return cls(**tree, resumed=resumed)
        except FileNotFoundError:
            raise IntegrityError(f"{path}: missing: the folder's training never started") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{path}: not a receipt: {error}") from None

    def changed_files(self, now: Mapping[str, str]) -> list[str]:
        """The names of the base's files that are not, in `now` (name to sha256), what they were."""
        return sorted(name for name, was in self.base_files.items() if now.get(name) != was)

    def differences(self, now: Receipt) -> list[Difference]:
        """Every field of `now` that is not what it was here, nested fields by dotted name."""
        before, after = dict(_leaves(self._compared())), dict(_leaves(now._compared()))
        return [
            Difference(name, before.get(name), after.get(name), _refuses(name))
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]

    def check(self, now: Receipt, *, force: bool = False) -> list[Difference]:
        """What differs, unless it forbids to go on.

        Raises:
            InputError: a changed base, data, template or setting, without `force`; lists each.
        """
        found = self.differences(now)
        severe = [difference for difference in found if difference.refuses]
        if severe and not force:
            lines = "\n".join(f"  {difference}" for difference in severe)
            raise InputError(
                f"The run was made from something else; {len(severe)} differences:\n{lines}",
                "Restore what it was made from, start a new run, or resume with --force "
                "(the receipt will say so).",
            )
        return found

    def with_resumption(self, resumption: Resumption, now: Receipt | None = None) -> Receipt:
        """The receipt after one more resume.

        `now`: what the run is made from since then, if it was forced over differences: the next
        resume compares with that. The birth and all resumes stay.
        """
        resumed = (*self.resumed, resumption)
        return replace(now or self, created=self.created, resumed=resumed)

    def _compared(self) -> dict[str, Any]:
        return {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in _UNCOMPARED
        }


def _refuses(name: str) -> bool:
    if name.partition(".")[0] in _NOTED:
        return False
    return not any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:24]}…{text[-8:]}"
