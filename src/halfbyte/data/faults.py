"""Faults of data: each with its place and its mend; the first are listed, all are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from halfbyte.errors import DataError

LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row: `kind` to count by, `detail` in full, `mend` the next move.

    `where`: `file:line`, or `file:line:column`.
    """

    kind: str
    detail: str
    mend: str = ""
    where: str = ""

    def at(self, where: str) -> Fault:
        """The same fault with its place, unless it knows it already."""
        return self if self.where else replace(self, where=where)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return place + self.detail + (f"; {self.mend}" if self.mend else "")


class FaultLog:
    """Collects the faults of a data set; where `rejects` is given, bad rows are written there."""

    def __init__(self, rejects: BinaryIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[Fault] = []
        self._notes: Counter[str] = Counter()
        self._rejects = rejects

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, fault: Fault, row: object = None) -> None:
        """Note a fault, and the row that has it."""
        self.counts[fault.kind] += 1
        if len(self.first) < LISTED:
            self.first.append(fault)
        if self._rejects is not None:
            record: Mapping[str, Any] = {
                "where": fault.where,
                "fault": str(replace(fault, where="")),
                "row": row,
            }
            self._rejects.write(json.dumps(record, default=str).encode() + b"\n")

    def note(self, what: str, rows: int = 1) -> None:
        """Count rows that are used, but not quite as they stand: `what` completes `12 …`."""
        if rows:
            self._notes[what] += rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noted, with its counts."""
        return tuple(f"{rows:,} {what}" for what, rows in self._notes.items())

    def error(self, rows: int, name: str) -> DataError:
        """All of it as one error; `rows`: how many there are, bad ones included."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        listed = [str(fault) for fault in self.first]
        if len(self) > len(listed):
            listed.append(f"… and {len(self) - len(listed):,} more")
        of = f"{len(self):,} of {rows:,} row{'s' if rows != 1 else ''}"
        alone = len(self.counts) == 1 and "0 trained tokens" in self.counts
        return DataError(
            f"{name}: 0 trained tokens in {of}:"
            if alone
            else f"{name}: {of} cannot be used ({kinds}):",
            listed,
            "Mend them, or leave them out with data.skip_bad=true (they are written to a file).",
        )
