"""Every error a user can meet, with its exit code; each message says what, where, and what next.

HalfbyteError
├── InputError      exit 2   what the user gave is wrong
│   ├── NoRunError           the name of a run that is nowhere (a MissingError too)
│   ├── ConfigError          a recipe or an override; holds every fault found
│   ├── DataError            a data file or its rows
│   └── IntegrityError       a file that is not what it should be: damaged, foreign or hostile
├── ResourceError   exit 3   memory or disk does not suffice, or is not ours to write
├── MissingError    exit 4   a base, a package or a result that must be fetched or made first
├── TrainingError   exit 5   a training that cannot go on (non-finite losses)
├── GateError       exit 6   the evidence asked for by `--require` is not there
└── Interrupted     exit 130 or 143   stopped by SIGINT or SIGTERM, after saving
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "DataError",
    "GateError",
    "HalfbyteError",
    "InputError",
    "IntegrityError",
    "Interrupted",
    "MissingError",
    "NoRunError",
    "ResourceError",
    "TrainingError",
]


class HalfbyteError(Exception):
    """The root: `message` says what happened and where, `hint` the next move."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InputError(HalfbyteError):
    """What the user gave is wrong."""

    exit_code = 2


class _Faults(InputError):
    """An input error that lists several faults, all found in one pass."""

    def __init__(self, message: str, faults: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {fault}" for fault in faults)]), hint)
        self.faults = tuple(faults)


class ConfigError(_Faults):
    """A recipe or an override is wrong; every fault is listed at once."""


class DataError(_Faults):
    """A data file or its rows are wrong; the first faults are listed, the rest counted."""


class IntegrityError(_Faults):
    """A file is damaged, foreign or hostile; nothing of it was used."""


class ResourceError(HalfbyteError):
    """Memory or disk does not suffice, or the disk refuses to be written."""

    exit_code = 3


class MissingError(HalfbyteError):
    """Something must be fetched, installed or made first; the hint is the command that does it."""

    exit_code = 4


class NoRunError(InputError, MissingError):
    """There is no such run: a wrong name, for whoever gave it; missing, for who looked for it."""


class TrainingError(HalfbyteError):
    """The training cannot go on; the hint names the last good checkpoint."""

    exit_code = 5


class GateError(_Faults):
    """A condition of `--require` does not hold."""

    exit_code = 6


class Interrupted(HalfbyteError):
    """Stopped by a signal after a full checkpoint; `signal` is its number."""

    def __init__(self, message: str, hint: str, signal: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal
