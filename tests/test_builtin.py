"""The built-in rows: made by the script beside them, right in what they say, and far apart."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from halfbyte.data import builtin
from halfbyte.data.builtin import BUILTINS, load_builtin
from halfbyte.data.builtin.make.tutor import MOST_ALIKE, triples, tutor_lines
from halfbyte.errors import DataError

FOLDER = Path(builtin.__file__).parent
ROWS = [json.loads(line) for line in (FOLDER / "tutor.jsonl").read_text("utf-8").splitlines()]
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "×": operator.mul,
    "÷": operator.floordiv,
}


def _of(*kinds: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["kind"] in kinds]


def _answer(row: dict[str, Any]) -> str:
    return row["response"].rsplit("\nAnswer: ", 1)[1]


def _prompt(row: dict[str, Any]) -> str:
    return f"{row.get('context', '')} {row['instruction']}"


def test_the_script_makes_the_file_again() -> None:
    """The shipped bytes are the script's, on any machine."""
    assert tutor_lines().encode() == (FOLDER / "tutor.jsonl").read_bytes()


def test_mix() -> None:
    """About 800 rows; what a small model can learn from few rows is most of them."""
    kinds = Counter(row["kind"] for row in ROWS)
    assert 750 <= len(ROWS) <= 850
    assert kinds["classification"] + kinds["context"] + kinds["conversion"] > len(ROWS) / 2
    assert set(kinds) == {
        "arithmetic",
        "classification",
        "context",
        "conversion",
        "history",
        "rate",
        "science",
    }


def test_form() -> None:
    """Two to four numbered steps, then the answer line, which is a key fact; nothing else."""
    for row in ROWS:
        *steps, last = row["response"].split("\n")
        assert 2 <= len(steps) <= 4
        assert all(step.startswith(f"{n}. ") for n, step in enumerate(steps, 1)), row
        assert last.startswith("Answer: ")
        assert _answer(row) in row["facts"]
        assert "{" not in _prompt(row) + row["response"]


def test_no_two_prompts_are_nearly_the_same() -> None:
    """Whatever the split, no held-out row has a near-duplicate among the training rows."""
    sets = [triples(_prompt(row)) for row in ROWS]
    worst = max(len(a & b) / len(a | b) for a, b in combinations(sets, 2))
    assert worst <= MOST_ALIKE


def test_calculations_are_right() -> None:
    """Each sum, product and quotient holds, its numbers are in the prompt, its result is used."""
    for row in _of("arithmetic", "rate", "conversion"):
        a, sign, b, result = re.search(r"(\d+) ([-+×÷]) (\d+) = (\d+)\.", row["response"]).groups()
        assert OPERATIONS[sign](int(a), int(b)) == int(result), row
        assert sign != "÷" or int(a) % int(b) == 0
        assert _answer(row).split()[0] == result
        if row["kind"] == "conversion":
            assert re.search(rf"\b{a}\b", row["instruction"])
            assert f" is {b} " in row["response"]
        else:
            assert {a, b} <= set(re.findall(r"\d+", row["instruction"])), row


def test_conversions_use_known_factors() -> None:
    """The rule of every conversion is one of these, and the answer has the unit asked for."""
    known = {
        "kilometre 1000 metres",
        "metre 100 centimetres",
        "centimetre 10 millimetres",
        "kilogram 1000 grams",
        "tonne 1000 kilograms",
        "litre 1000 millilitres",
        "hour 60 minutes",
        "minute 60 seconds",
        "day 24 hours",
        "week 7 days",
        "year 12 months",
        "decade 10 years",
        "century 100 years",
        "dollar 100 cents",
        "foot 12 inches",
        "yard 3 feet",
        "gallon 4 quarts",
        "quart 2 pints",
        "dozen 12 eggs",
    }
    used = set()
    for row in _of("conversion"):
        rule = re.match(r"1\. 1 (\w+) is (\d+) (\w+)\.", row["response"])
        used.add(" ".join(rule.groups()))
        assert _answer(row).split(maxsplit=1)[1] in row["instruction"]
    assert used == known


def test_labels() -> None:
    """The prompt names the whole closed set, the answer is one of it, the clue is in the text."""
    for row in _of("classification"):
        assert _answer(row) in row["labels"]
        assert all(label in row["instruction"] for label in row["labels"])
        clue = re.match(r'1\. The clue is "(.+)"\.\n', row["response"])[1]
        assert clue in row["instruction"]


def test_label_sets_are_balanced() -> None:
    """Guessing the commonest label of a set is right at most half of the time."""
    sets: dict[tuple[str, ...], Counter[str]] = {}
    for row in _of("classification"):
        sets.setdefault(tuple(row["labels"]), Counter())[_answer(row)] += 1
    assert len(sets) == 10
    for counts in sets.values():
        assert max(counts.values()) <= counts.total() / 2


def test_choices_do_not_give_the_answer_away() -> None:
    """In facts with two choices the right one is among them, first in about half of the rows."""
    first = 0
    rows = _of("science", "history")
    for row in rows:
        choices = row["instruction"].removesuffix("?").rpartition(": ")[2].split(" or ")
        assert _answer(row) in choices, row
        first += choices[0] == _answer(row)
    assert 0.35 < first / len(rows) < 0.65


def test_context_answers_stand_in_the_context() -> None:
    """What is quoted and what is answered come from the text, and the question does not say it."""
    for row in _of("context"):
        quote = re.match(r'1\. The text says "(.+)"\.\n', row["response"])[1]
        text = row["context"].lower()
        assert quote.lower() in text, row
        bare = re.sub(r"^(an?|the|in the) ", "", _answer(row).lower())
        assert bare in text, row
        assert bare not in row["instruction"].lower(), row


def test_retention_is_far_from_the_tutor() -> None:
    """General rows share neither the tutor's form nor a prompt near one of its prompts."""
    rows = load_builtin("retention")
    assert 145 <= len(rows) <= 160
    assert len({row.prompt for row in rows}) == len(rows)
    tutor = [triples(_prompt(row)) for row in ROWS]
    for row in rows:
        assert "Answer:" not in row.reference
        assert "\n" not in row.reference
        accepted = row.extra["references"]
        assert any(one.lower() in row.reference.lower() for one in accepted), row
        own = triples(row.prompt[0].content)
        assert all(len(own & other) < 0.4 * len(own | other) for other in tutor), row


def test_hinglish_is_short_chat_in_latin_letters() -> None:
    """One user message, one reply, no Devanagari, no message twice."""
    rows = load_builtin("hinglish")
    assert len({row.prompt for row in rows}) == len(rows) == 120
    for row in rows:
        assert [turn.role for turn in row.messages] == ["user", "assistant"]
        assert row.reference.isascii()
        assert 3 <= len(row.reference.split()) <= 45


def test_demo_has_one_prompt_of_each_kind() -> None:
    """A look at a model shows every kind of task once."""
    rows = load_builtin("demo")
    kinds = [row.extra["kind"] for row in rows]
    assert len(set(kinds)) == len(kinds) == 8
    assert sum(row.context is not None for row in rows) == 1


@pytest.mark.parametrize("name", BUILTINS)
def test_loading(name: str) -> None:
    """A built-in set gives examples in the file's order, with every other column in `extra`."""
    rows = load_builtin(name)
    raw = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert [row.messages[0].content for row in rows] == [row["instruction"] for row in raw]
    assert [row.context for row in rows] == [row.get("context") for row in raw]
    assert [row.extra.get("labels") for row in rows] == [row.get("labels") for row in raw]


def test_unknown_name() -> None:
    """An unknown set is an error that lists the known ones."""
    with pytest.raises(DataError, match=r"builtin:tutor, .*builtin:demo"):
        load_builtin("tutr")
