"""Building encoded data: read, check, split, audit, encode, each a pass over rows on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from halfbyte.config import DataSettings
from halfbyte.data.audit import Audit, Part, audit
from halfbyte.data.encoded import Block, EncodedSet, EncodedWriter
from halfbyte.data.example_json import load_example
from halfbyte.data.faults import Fault, FaultLog
from halfbyte.data.fit import Losses, fit
from halfbyte.data.jinja_sandbox import Refusal, Rendered
from halfbyte.data.records import Encoded
from halfbyte.data.report import Report, SetReport
from halfbyte.data.sources import Source
from halfbyte.data.split import choose_held_out
from halfbyte.data.stage import Reading, Staged, stage
from halfbyte.data.templates import Template
from halfbyte.data.tokens import Tokens
from halfbyte.data.workers import in_order
from halfbyte.errors import DataError

Progress = Callable[[str, int, int], None]  # what is being done, rows done, rows in all
REPORT: Final = "report.json"
_REJECTS: Final = "rejects.jsonl"
_BATCH: Final = 256  # rows that are encoded at once
_QUOTED: Final = "rows quote control tokens: they are encoded as text, not as marks"
_UNTRAINED: Final = "0 trained tokens"


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch of rows, encoded; `kept` and `faults` name them by their places in the batch."""

    kept: list[int]
    block: Block
    faults: list[tuple[int, Fault]]
    losses: Losses
    quoting: int


@dataclass(frozen=True, slots=True)
class Build:
    """Makes the folder of encoded rows that these settings ask for."""

    settings: DataSettings
    template: Template
    progress: Progress = silent

    def into(self, temp: Path, final: Path, train: Source, valid: Source | None) -> None:
        """Fill the folder `temp`, which will be called `final`.

        Raises:
            DataError: faults in the data, or nothing to train.
            IntegrityError: a hostile template.
        """
        with self._faults(temp) as faults:
            parts = self._parts(train, valid, temp, faults)
            found, kept = self._audited(*parts)
            sets = self._encode_all({"train": kept, "valid": parts[1]}, temp, faults)
        report = Report(
            template=self.template.name,
            train=sets["train"],
            valid=sets["valid"],
            duplicates=found.duplicates,
            leakage=found.leakage,
            leaks_dropped=len(parts[0].rows) - len(kept.rows),
            bad=dict(faults.counts),
            rejects=str(final / _REJECTS) if faults else None,
            notes=faults.notes,
        )
        (temp / REPORT).write_text(report.to_json(), encoding="utf-8")

    def rows_into(self, temp: Path, source: Source) -> None:
        """Fill the folder `temp` with the rows of one source, all of them.

        Raises:
            DataError: faults in the data, or no rows.
            IntegrityError: a hostile template.
        """
        with self._faults(temp) as faults:
            staged = stage(source, self._reading(), temp / "staged", faults)
            self._settle(faults, staged.name, staged.rows)
            sets = self._encode_all({"rows": _whole(staged)}, temp, faults)
        (temp / REPORT).write_text(sets["rows"].to_json(), encoding="utf-8")

    @contextmanager
    def _faults(self, temp: Path) -> Iterator[FaultLog]:
        with (temp / _REJECTS).open("wb") as rejects:
            yield FaultLog(rejects if self.settings.skip_bad else None)
        for path in temp.glob("staged*"):
            path.unlink()

    def _reading(self, limit: int | None = None) -> Reading:
        given = self.settings
        return Reading(given.format, given.columns, given.system, limit)

    def _parts(
        self, train: Source, valid: Source | None, temp: Path, faults: FaultLog
    ) -> tuple[Part, Part]:
        """The training rows and the held-out rows, read and checked."""
        self.progress("reading", 0, 0)
        staged = stage(train, self._reading(self.settings.limit), temp / "staged-train", faults)
        if valid is None:
            self._settle(faults, train.name, staged.rows)
            out = choose_held_out(staged.prompt_keys, self.settings.valid_size)
            every = np.arange(len(staged))
            return Part(staged, every[~out]), Part(staged, every[out])
        held = stage(valid, self._reading(), temp / "staged-valid", faults)
        self._settle(faults, f"{train.name}, {valid.name}", staged.rows + held.rows)
        return _whole(staged), _whole(held)

    def _settle(self, faults: FaultLog, name: str, rows: int) -> None:
        if faults and not self.settings.skip_bad:
            raise faults.error(rows, name)

    def _audited(self, train: Part, valid: Part) -> tuple[Audit, Part]:
        """What the audit found, and the training rows that stay."""
        self.progress("auditing", 0, 0)
        found = audit(train, valid)
        if len(found.leaking) and self.settings.leakage == "fail":
            raise DataError(
                f"{len(found.leaking):,} of {len(train.rows):,} training rows stand in the "
                "held-out rows:",
                [f"{match.row} = {match.other}" for match in found.leakage.first],
                "Remove them, or leave them out with data.leakage=drop.",
            )
        if self.settings.leakage == "report":
            return found, train
        return found, Part(train.staged, np.setdiff1d(train.rows, found.leaking))

    def _encode_all(
        self, parts: Mapping[str, Part], temp: Path, faults: FaultLog
    ) -> dict[str, SetReport]:
        """Encode each part into a folder of its name; the faults of all of them are one error."""
        losses = {name: self._encode(part, temp / name, faults) for name, part in parts.items()}
        names = ", ".join(dict.fromkeys(part.staged.name for part in parts.values()))
        self._settle(faults, names, sum(len(part.rows) for part in parts.values()))
        reports = {}
        for name, part in parts.items():
            rows = EncodedSet(temp / name)
            if not len(rows):
                raise self._nothing_left(part, losses[name])
            source, form = part.staged.name, str(part.staged.format)
            reports[name] = SetReport.of(source, form, rows, losses[name])
        return reports

    def _encode(self, part: Part, folder: Path, faults: FaultLog) -> Losses:
        staged, losses = part.staged, Losses()
        starts = range(0, len(part.rows), _BATCH)
        with EncodedWriter(folder) as writer:
            for start, done in zip(
                starts, in_order(partial(self._encoded, part), starts), strict=True
            ):
                self.progress("encoding", start, len(part.rows))
                faults.note(_QUOTED, done.quoting)
                losses += done.losses
                indices = part.rows[start : start + _BATCH]
                for place, fault in done.faults:
                    index = int(indices[place])
                    faults.add(fault.at(staged.where(index)), json.loads(staged.lines[index]))
                kept = indices[done.kept]
                writer.extend(
                    done.block,
                    staged.lines.some(kept),
                    staged.places[kept, 1].tolist(),
                    staged.prompt_keys[kept].tolist(),
                )
        self.progress("encoding", len(part.rows), len(part.rows))
        return losses

    def _nothing_left(self, part: Part, losses: Losses) -> DataError:
        return DataError(
            f"{part.staged.name}: {_UNTRAINED}: of {len(part.rows):,} rows "
            f"{losses.rows_dropped:,} are longer than data.max_length={self.settings.max_length}, "
            "and none is left",
            hint="Raise data.max_length, or set data.too_long=cut_prompt.",
        )

    def _encoded(self, part: Part, start: int) -> _Done:
        """The batch of rows that begins there; a forked process may do it."""
        lines = part.staged.lines.some(part.rows[start : start + _BATCH])
        examples = [load_example(line) for line in lines]
        rendered = self.template.render_many(examples, self.settings.train_on)
        kept: dict[int, Encoded] = {}
        faults, losses = [], Losses()
        for place, row in enumerate(self.template.label(rendered)):
            fault = row if isinstance(row, Fault) else self._fault(row)
            if fault is not None:
                faults.append((place, fault))
                continue
            assert isinstance(row, Encoded)
            fitting = fit(
                row, self.settings.max_length, self.settings.too_long, self.template.tokens.bos
            )
            losses.note(row, fitting)
            if fitting is not None:
                kept[place] = fitting
        quoting = sum(_quotes_marks(text) for _, text in rendered)
        return _Done(list(kept), Block.of(list(kept.values())), faults, losses, quoting)

    def _fault(self, row: Encoded) -> Fault | None:
        limit = self.settings.max_length
        if not np.count_nonzero(row.trained):  # five times quicker than any()
            return Fault(_UNTRAINED, "no token of it would be trained")
        if len(row) > limit and self.settings.too_long == "fail":
            return Fault("too long", f"{len(row):,} ids, data.max_length is {limit:,}")
        return None


def _quotes_marks(text: Rendered | Refusal) -> bool:
    return isinstance(text, Rendered) and Tokens.is_guarded(text.text)


def _whole(staged: Staged) -> Part:
    return Part(staged, np.arange(len(staged)))
