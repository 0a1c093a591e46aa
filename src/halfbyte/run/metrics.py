"""metrics.jsonl: one event a line, append-only, each step once however often a run was stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from halfbyte.run.files import write_atomic, writing

Record = dict[str, Any]


class MetricsLog:
    """The open end of a metrics file; each `append` reaches the operating system at once.

    A line that survives a killed process or a full disk is whole, except perhaps the last: opening
    mends that.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            keep_lines(path, lambda _: True)
        self._path = path
        # without a buffer: what could not be written is not tried once more in the end
        self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one event. Numbers that are not finite become null: JSON has no word for them.

        Raises:
            ResourceError: the disk is full, or refuses to be written.
        """
        line = memoryview(json.dumps(_finite(record), allow_nan=False).encode() + b"\n")
        with writing(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path) -> Iterator[Record]:
    """The events of a metrics file in order; a torn last line is left out. No file: no events."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            record = _parsed(line)
            if record is not None:
                yield record


def rewind(path: Path, step: int | None, drop: Collection[str] = ()) -> int:
    """Forget every event after `step` (None: all), as a resume at that step will repeat them.

    `drop`: kinds of events that are forgotten at `step` itself too. Returns how many went.
    """

    def stays(record: Record) -> bool:
        at = int(record.get("step", 0))
        return step is not None and (at < step or (at == step and record.get("event") not in drop))

    return keep_lines(path, stays)


def keep_lines(path: Path, wanted: Callable[[Record], bool]) -> int:
    """Rewrite the file with the whole lines whose record is `wanted`; returns how many went."""
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if (record := _parsed(line)) is not None and wanted(record)]
    if len(kept) != len(lines):
        write_atomic(path, "".join(kept))
    return len(lines) - len(kept)


def _parsed(line: str) -> Record | None:
    if not line.endswith("\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
