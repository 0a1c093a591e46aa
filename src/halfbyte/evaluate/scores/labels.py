"""Classification: answers from a closed set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from halfbyte.evaluate.records import Answer, Column, Row, ScoreInfo
from halfbyte.evaluate.scores.registry import Kind, score
from halfbyte.evaluate.text import contains_words, final_answer, squad_normal, words

_GROUP = "classification"
_CHOICES: Final = re.compile(r"([^.?!:;\n]*\bor\b[^.?!\n]*)\?")
_BETWEEN: Final = re.compile(r",\s*(?:or\b)?|\bor\b")
OTHER: Final = "(none)"  # an answer that names no label, or several


def gold_label(row: Row) -> str | None:
    """The label the reference stands for; None where the row has no closed set."""
    return _read_label(row.reference, row) if row.labels else None


def predicted_label(answer: Answer, row: Row) -> str:
    """The label the answer gives, or `(none)`.

    Where the reference ends with a final answer line, only that line of the answer counts;
    elsewhere the answer is the label, or begins with it, or names exactly one of the set.
    """
    return _read_label(answer.text, row) or OTHER


def _read_label(text: str, row: Row) -> str | None:
    if final_answer(row.reference) is not None:
        text = final_answer(text) or ""
    given = squad_normal(text)
    by_name = {squad_normal(label): label for label in row.labels}
    if given in by_name:
        return by_name[given]
    spoken = words(text)
    # longest first: "not good" begins with "not good", not with "not"
    for label in sorted(row.labels, key=lambda label: -len(words(label))):
        name = words(label)
        if name and spoken[: len(name)] == name:
            return label
    named = [label for label in row.labels if contains_words(words(label), spoken)]
    longest = [a for a in named if not any(a != b and _within(a, b) for b in named)]
    return longest[0] if len(longest) == 1 else None


def _within(short: str, long: str) -> bool:
    return contains_words(words(short), words(long)) and words(short) != words(long)


@score(Kind(_GROUP, binary=True), applies=lambda row: gold_label(row) is not None)
def label_accuracy(answer: Answer, row: Row) -> float:
    """1 if the answer gives the reference's label of the closed set, else 0. Read from the final
    answer line where the reference has one, else from an answer that is, begins with, or names
    exactly one label. Rows with a closed set."""
    return float(predicted_label(answer, row) == gold_label(row))


MACRO_F1: Final = ScoreInfo(
    name="macro_f1",
    group=_GROUP,
    better="higher",
    unit="share",
    binary=False,
    pool="macro_f1",
    definition="Mean over the labels of F1 (harmonic mean of precision and recall of that label), "
    "so that rare labels count as much as common ones; 0 to 1. An answer without a label is a miss "
    "and no false alarm. Per row: right or wrong. scikit-learn's f1_score(average='macro').",
)


def macro_f1_column(rows: Sequence[Row], answers: Sequence[Answer | None]) -> dict[str, Column]:
    """Macro-F1 over the union of the rows' label sets; empty where no row has one."""
    gold = [gold_label(row) for row in rows]
    names = sorted({label for label in gold if label is not None})
    places = {name: place for place, name in enumerate(names)}
    values = np.full(len(rows), np.nan)
    stats = np.zeros((len(rows), len(names), 3))
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        wanted = gold[number]
        if wanted is None or answer is None:
            continue
        given = predicted_label(answer, row)
        values[number] = float(given == wanted)
        if given == wanted:
            stats[number, places[wanted], 0] = 1
        else:
            stats[number, places[wanted], 2] = 1
            if given in places:
                stats[number, places[given], 1] = 1
    if np.isnan(values).all():
        return {}
    return {"macro_f1": Column(MACRO_F1, values, stats.reshape(len(rows), -1))}


def most_frequent(rows: Sequence[Row]) -> tuple[str, float] | None:
    """The most frequent label of these rows and its share of them, 0 to 1: what always giving it
    would score as label_accuracy. None where no row has a closed set."""
    gold = Counter(label for row in rows if (label := gold_label(row)) is not None)
    if not gold:
        return None
    label, count = gold.most_common(1)[0]
    return label, count / gold.total()


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often the rows of each label (down) were given each label (across, `(none)` last)."""

    labels: tuple[str, ...]
    given: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion(rows: Sequence[Row], answers: Sequence[Answer | None]) -> Confusion | None:
    """The confusion matrix of the answered rows with a closed set; None without any."""
    pairs = Counter(
        (gold, predicted_label(answer, row))
        for row, answer in zip(rows, answers, strict=True)
        if answer is not None and (gold := gold_label(row)) is not None
    )
    if not pairs:
        return None
    labels = sorted({label for row in rows for label in row.labels if gold_label(row) is not None})
    given = [*labels, OTHER] if any(label == OTHER for _, label in pairs) else labels
    counts = tuple(tuple(pairs[wanted, one] for one in given) for wanted in labels)
    return Confusion(tuple(labels), tuple(given), counts)


def closed_labels(references: Sequence[str], prompts: Sequence[str] = ()) -> tuple[str, ...]:
    """The closed set these references come from; empty if they come from none.

    A set is closed when its labels are short (five words at most), at most twenty, and each stands
    for ten references on average. Choices that the prompts spell out (`... sports, business or
    politics?`) belong to it although no reference has them; they alone make a set of two or more
    when the references are among them.
    """
    counts = Counter(reference.strip() for reference in references)
    if not counts or len(counts) > min(20, max(1, len(references) // 10)):
        return ()
    if any(not label or len(label.split()) > 5 or "\n" in label for label in counts):
        return ()
    labels = [label for label, _ in counts.most_common()]
    labels += _offered(prompts, {squad_normal(label) for label in labels})
    return tuple(labels) if len(labels) > 1 else ()


def _offered(prompts: Sequence[str], known: set[str]) -> list[str]:
    """The choices that nearly all prompts offer beyond `known`, if those are among them."""
    offers = Counter(tuple(map(str.lower, prompt_choices(prompt))) for prompt in prompts)
    if not offers:
        return []
    choices, count = offers.most_common(1)[0]
    # a text that comes before the question may hold an "or" of its own: hence not all
    if count < 0.8 * len(prompts) or not known <= {squad_normal(choice) for choice in choices}:
        return []
    return [choice for choice in choices if squad_normal(choice) not in known]


def prompt_choices(prompt: str) -> list[str]:
    """The choices of the last question of the form `... a, b or c?`; empty without one."""
    questions = [match[1] for match in _CHOICES.finditer(prompt)]
    if not questions:
        return []
    first, *others = [part.strip() for part in _BETWEEN.split(questions[-1]) if part.strip()]
    if not others or max(len(part.split()) for part in others) > 4:
        return []
    # the question runs into its first choice: as many words belong to it as to the middle one
    size = sorted(len(part.split()) for part in others)[(len(others) - 1) // 2]
    return [" ".join(first.split()[-size:]), *others]
