"""Every export is opened again and compared: token ids of twenty chats, then greedy answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from halfbyte.data.records import Message
from halfbyte.run.files import write_atomic
from halfbyte.ship.chats import Chat
from halfbyte.ship.fidelity import Answer, Ids, parting

REPORT: Final = "export-report.json"


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two sequences of ids first differ: `row` of the chats, `place` in its ids."""

    row: int
    place: int
    wanted: int | None
    got: int | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two lists of sequences agree; `equal` of `tokens` stand before the rows part."""

    rows: int
    same: int
    tokens: int
    equal: int
    first: Parting | None

    @classmethod
    def of(cls, wanted: Sequence[Sequence[int]], got: Sequence[Sequence[int]]) -> Agreement:
        """Compare row by row."""
        rows = [(tuple(one), tuple(two)) for one, two in zip(wanted, got, strict=True)]
        places = [parting(one, two) for one, two in rows]
        first = next(
            (
                Parting(row, place, _at(one, place), _at(two, place))
                for row, ((one, two), place) in enumerate(zip(rows, places, strict=True))
                if one != two
            ),
            None,
        )
        return cls(
            rows=len(rows),
            same=sum(one == two for one, two in rows),
            tokens=sum(max(len(one), len(two)) for one, two in rows),
            equal=sum(places),
            first=first,
        )

    @property
    def share(self) -> float:
        """Equal tokens over all."""
        return self.equal / self.tokens if self.tokens else 1.0

    def line(self) -> str:
        """In words, with the first place where they part."""
        text = f"{self.same} of {self.rows} the same, {self.share:.1%} of tokens"
        if self.first is not None:
            text += f"; first parting: chat {self.first.row + 1}, token {self.first.place + 1}"
        return text


def _at(ids: Ids, place: int) -> int | None:
    return ids[place] if place < len(ids) else None


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made, and how to open it again by its own files alone.

    `encode`: messages to the ids its reader would see. `open_model`: the model it holds; None
    where no reader of it runs in this process.
    """

    target: str
    folder: Path
    files: tuple[str, ...]
    encode: Callable[[Sequence[Message]], Sequence[int]]
    open_model: Callable[[], PreTrainedModel] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported and what opening it again showed."""

    target: str
    folder: str
    files: tuple[str, ...]
    ids: Agreement
    greedy: Agreement | None = None
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The findings in plain text."""
        rows = [f"{self.target}: {', '.join(self.files)} in {self.folder}"]
        rows.append(f"token ids of {self.ids.rows} chats: {self.ids.line()}")
        if self.greedy is not None:
            rows.append(f"greedy answers: {self.greedy.line()}")
        return [*rows, *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Trial:
    """What an export is compared with.

    `chats`: with the ids they had in training. `answers`: the shipped model's greedy answers to
    them, made before the export. `answer`: how a reopened model answers (the same limits).
    """

    chats: Sequence[Chat]
    answers: Sequence[Sequence[int]] | None = None
    answer: Answer | None = None


def check(exported: Exported, trial: Trial) -> ExportReport:
    """Open an export again, compare, and leave `export-report.json` beside it."""
    encoded = [tuple(exported.encode(chat.messages)) for chat in trial.chats]
    ids = Agreement.of([chat.ids for chat in trial.chats], encoded)
    greedy = None
    if exported.open_model and trial.answer and trial.answers is not None:
        model = exported.open_model()
        # the training's ids, so that a parting here is the weights' and not the tokenizer's
        greedy = Agreement.of(
            trial.answers, trial.answer(model, [chat.ids for chat in trial.chats])
        )
    report = ExportReport(
        target=exported.target,
        folder=str(exported.folder),
        files=exported.files,
        ids=ids,
        greedy=greedy,
        notes=exported.notes,
    )
    text = json.dumps(report.to_json(), indent=2) + "\n"
    write_atomic(exported.folder / REPORT, text)
    return report
