"""A source as a table of examples, without a tokenizer: for looking, splitting and converting."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from halfbyte.config import DataSettings
from halfbyte.data.faults import FaultLog
from halfbyte.data.formats import Format, FormatName
from halfbyte.data.records import Example
from halfbyte.data.sources import find_source
from halfbyte.data.split import Keys
from halfbyte.data.stage import Reading, Staged, stage
from halfbyte.data.writers import Row, to_row
from halfbyte.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Checked rows; they wait on disk while the table is open. `bad`: rows left out by kind of
    fault."""

    _staged: Staged
    notes: tuple[str, ...]
    bad: Mapping[str, int]

    @property
    def format(self) -> Format:
        """How the rows were read."""
        return self._staged.format

    @property
    def prompt_keys(self) -> Keys:
        """uint64 [n]: equal for rows with the same prompt."""
        return self._staged.prompt_keys

    def __len__(self) -> int:
        return len(self._staged)

    def example(self, index: int) -> Example:
        """Row `index`."""
        return self._staged.example(index)

    def where(self, index: int) -> str:
        """Its place, `file:line`."""
        return self._staged.where(index)

    def rows(self, form: FormatName, indices: Sequence[int] | None = None) -> Iterator[Row]:
        """The rows (of these indices) in a format.

        Raises:
            DataError: a row that the format cannot hold.
        """
        for index in range(len(self)) if indices is None else indices:
            try:
                yield to_row(self.example(index), form)
            except DataError as error:
                raise DataError(f"{self.where(index)}: {error.message}", hint=error.hint) from None


@contextmanager
def read_table(name: str, settings: DataSettings, limit: int | None = None) -> Iterator[Table]:
    """Read a source with these settings' format, columns, limit and `skip_bad`.

    Raises:
        DataError: faults in the data, all of them in one error.
        MissingError: a hub data set that is not on this machine.
    """
    reading = Reading(settings.format, settings.columns, settings.system, limit or settings.limit)
    faults = FaultLog()
    with tempfile.TemporaryDirectory() as folder:
        staged = stage(find_source(name), reading, Path(folder) / "staged", faults)
        if faults and not settings.skip_bad:
            raise faults.error(staged.rows, name)
        yield Table(staged, faults.notes, dict(faults.counts))
