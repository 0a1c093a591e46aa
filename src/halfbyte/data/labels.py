"""Labels: which ids of a rendered row are its prompt's, and which are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from halfbyte.data.faults import Fault
from halfbyte.data.jinja_sandbox import Refusal, Rendered
from halfbyte.data.records import Encoded, Example
from halfbyte.data.tokens import Tokens, after
from halfbyte.data.wordcache import WIDTH, pack

TrainOn = Literal["answers", "all"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the answers of a row are.

    `cuts`: the indices of their messages. `weights`: theirs. `words`: the last word of each, which
    it must still have after rendering. `everything`: all is trained but answers of weight 0.
    """

    cuts: tuple[int, ...]
    weights: tuple[int, ...]
    words: tuple[str, ...]
    everything: bool

    @classmethod
    def of(cls, example: Example, train_on: TrainOn) -> Plan:
        """The answers whose places must be known, and always the last, for the prompt's end."""
        everything = train_on == "all" or example.text is not None
        last = len(example.messages) - 1
        answers = [
            (i, turn)
            for i, turn in enumerate(example.messages)
            if turn.role == "assistant" and (bool(turn.weight) != everything or i == last)
        ]
        return cls(
            tuple(i for i, _ in answers),
            tuple(turn.weight for _, turn in answers),
            tuple((turn.content.rsplit(None, 1) or [""])[-1][-32:] for _, turn in answers),
            everything,
        )


Planned = tuple[Plan, Rendered | Refusal]


def label_rows(
    rows: Sequence[Planned], tokens: Tokens, stop_ids: Sequence[int]
) -> list[Encoded | Fault]:
    """Encode rendered rows, in order.

    The ids of a prompt must begin its row's. The answer is what follows, through the first end
    mark (any of `stop_ids`; no text holds one, see `Tokens.guard`). What a template puts after the
    last end mark is dropped: no model ever sees it.
    """
    faults = {i: fault for i, (plan, row) in enumerate(rows) if (fault := _misrendered(plan, row))}
    fine = {
        i: row for i, (_, row) in enumerate(rows) if isinstance(row, Rendered) and i not in faults
    }
    common = {i: row for i, row in fine.items() if not Tokens.is_guarded(row.text)}
    found = tokens.packed([row.text for row in common.values()])
    ids = dict(zip(common, found, strict=True))
    starts = _starts(common, ids, tokens)
    for i in fine.keys() - common.keys():
        ids[i] = pack(tokens.guarded_ids(fine[i].text))
        prompts = [pack(tokens.guarded_ids(fine[i].text[:cut])) for cut in _cuts(fine[i])]
        starts[i] = [len(each) // WIDTH if ids[i].startswith(each) else -1 for each in prompts]
    return [
        faults[i] if i in faults else _labelled(plan, ids[i], starts[i], stop_ids)
        for i, (plan, _) in enumerate(rows)
    ]


def _starts(
    rows: Mapping[int, Rendered], ids: Mapping[int, bytes], tokens: Tokens
) -> dict[int, list[int]]:
    """For each row, where its answers begin among its ids; -1 where the ids do not agree."""
    places = [(i, tokens.prompt(row.text[:cut])) for i, row in rows.items() for cut in _cuts(row)]
    starts: dict[int, list[int]] = {i: [] for i in rows}
    for (i, _), length in zip(places, tokens.prompt_lengths(ids, places), strict=True):
        starts[i].append(length)
    return starts


def _labelled(
    plan: Plan, ids: bytes, starts: Sequence[int], stop_ids: Sequence[int]
) -> Encoded | Fault:
    if -1 in starts:
        return Fault(
            "prompt is not a prefix",
            "the prompt's ids do not begin the row's: prompt and answer merge into one token",
        )
    spans = [(start, _end(ids, start, stop_ids)) for start in starts]
    if any(end is None for _, end in spans):
        return Fault("no end mark", "there is no end mark after an answer")
    row = np.frombuffer(ids, "<i4")[: spans[-1][1] if spans else None]
    trained = np.full(len(row), plan.everything)
    for (start, end), weight in zip(spans, plan.weights, strict=True):
        trained[start:end] = bool(weight)
    trained[:1] = False  # nothing predicts the first
    prompt_length = spans[-1][0] if spans else 0
    return Encoded(row.astype(np.int32, copy=False), trained, prompt_length)


def _end(ids: bytes, start: int, stop_ids: Sequence[int]) -> int | None:
    """Just after the first end mark from `start` on."""
    places = [after(ids, stop, start) for stop in stop_ids]
    return min((place for place in places if place is not None), default=None)


def _cuts(row: Rendered) -> list[int]:
    return [cut for cut in row.prompts if isinstance(cut, int)]


def _misrendered(plan: Plan, row: Rendered | Refusal) -> Fault | None:
    if isinstance(row, Refusal):
        return Fault("refused by the template", f"the template refuses the row: {row.reason}")
    for prompt, word in zip(row.prompts, plan.words, strict=True):
        if not isinstance(prompt, int):
            return Fault(
                "prompt is not a prefix",
                "the template renders the row differently once the answer is known, so its prompt "
                "is not the beginning of the row; train only the last answer (weight 0 on the "
                "others), or choose another data.template",
            )
        if row.text.find(word, prompt) < 0:
            return Fault("answer lost", "the template leaves an answer out, or changes it")
    return None
