"""What becomes of rows that are too long. Answers and their end marks are never cut."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np

from halfbyte.data.records import Encoded

TooLong = Literal["drop", "cut_prompt", "fail"]


@dataclass(slots=True)
class Losses:
    """What too long rows cost: rows and tokens left out, and tokens cut from those kept."""

    rows_dropped: int = 0
    tokens_dropped: int = 0
    rows_cut: int = 0
    tokens_cut: int = 0
    trained_cut: int = 0

    def __iadd__(self, more: Losses) -> Self:
        """Those of other rows as well."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(more, one.name))
        return self

    def note(self, whole: Encoded, kept: Encoded | None) -> None:
        """Count what became of one row."""
        if kept is None:
            self.rows_dropped += 1
            self.tokens_dropped += len(whole)
        elif len(kept) < len(whole):
            self.rows_cut += 1
            self.tokens_cut += len(whole) - len(kept)
            self.trained_cut += int(whole.trained.sum()) - int(kept.trained.sum())


def fit(row: Encoded, max_length: int, policy: TooLong, bos: int | None) -> Encoded | None:
    """The row within `max_length` ids, or None where it has to be left out.

    With `cut_prompt` the ids on the prompt's left go, but for a BOS at its beginning, and at
    least one stays before the last answer. A row whose answer alone is too long is left out.
    """
    if len(row) <= max_length:
        return row
    if policy != "cut_prompt" or not row.prompt_length:
        return None
    keep = int(row.ids[0] == bos)
    begin = len(row) - max_length + keep  # the first id that stays, beside the BOS
    if begin > row.prompt_length - (1 - keep):
        return None
    trained = np.concatenate([row.trained[:keep], row.trained[begin:]])
    trained[0] = False
    ids = np.concatenate([row.ids[:keep], row.ids[begin:]])
    return Encoded(ids, trained, row.prompt_length - (begin - keep))
