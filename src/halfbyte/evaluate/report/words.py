"""Word differences: which words of an answer the reference has in the same order."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Final, Literal

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

Mark = Literal["same", "off", "gap"]
_PIECE: Final = regex.compile(
    r"[\p{L}\p{M}\p{N}]+(?:['’.,][\p{L}\p{M}\p{N}]+)*|\s+|[^\s\p{L}\p{M}\p{N}]+"
)
_LONGEST: Final = 4000  # characters of an answer that are compared; the rest is shown plain


def word_differences(answer: str, reference: str) -> list[tuple[Mark, str]]:
    """The answer in pieces: `same` words stand in the reference in this order, `off` ones do not;
    white space and marks between them are `gap`. Joined they are the answer."""
    head, tail = answer[:_LONGEST], answer[_LONGEST:]
    pieces = _PIECE.findall(head)
    wanted = [piece.lower() for piece in _PIECE.findall(reference[:_LONGEST]) if _is_word(piece)]
    places = [place for place, piece in enumerate(pieces) if _is_word(piece)]
    given = [pieces[place].lower() for place in places]
    same: set[int] = set()
    for block in SequenceMatcher(None, given, wanted, autojunk=False).get_matching_blocks():
        same.update(places[block.a : block.a + block.size])
    marks: list[tuple[Mark, str]] = []
    for place, piece in enumerate(pieces):
        mark: Mark = "gap" if not _is_word(piece) else "same" if place in same else "off"
        # neighbours of one kind, and the gaps between them, make one mark
        if marks and (marks[-1][0] == mark):
            marks[-1] = (mark, marks[-1][1] + piece)
        else:
            marks.append((mark, piece))
    return _joined([*marks, ("gap", tail)] if tail else marks)


def _joined(marks: list[tuple[Mark, str]]) -> list[tuple[Mark, str]]:
    """A gap between two marks of one kind becomes part of them, unless it breaks the line."""
    found: list[tuple[Mark, str]] = []
    for kind, text in marks:
        if (
            kind != "gap"
            and len(found) > 1
            and found[-1][0] == "gap"
            and found[-2][0] == kind
            and "\n" not in found[-1][1]
        ):
            gap = found.pop()[1]
            found[-1] = (kind, found[-1][1] + gap + text)
        else:
            found.append((kind, text))
    return found


def _is_word(piece: str) -> bool:
    return piece[0].isalnum()
