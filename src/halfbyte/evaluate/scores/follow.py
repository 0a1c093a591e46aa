"""Instruction adherence: constraints found in the row, each checked by rule under its own name.

A constraint is read from the row's `constraints` column where it has one, else from the words of
its prompt. What the reference itself breaks was not asked for: such a reading is dropped.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import jsonschema
import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

from halfbyte.errors import InputError
from halfbyte.evaluate.lexicon import LANGUAGES
from halfbyte.evaluate.quantities import quantities
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.labels import OTHER, predicted_label
from halfbyte.evaluate.scores.registry import Kind, Score, make_score, register, score
from halfbyte.evaluate.text import bullets, sentences, step_numbers, words

_GROUP: Final = "instructions"
Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Constraint:
    """One thing asked of the answer: its `name`, what it asks for in words, and the check."""

    name: str
    wish: str
    holds: Check


# how many of what: the name of the constraint, and how to count it in an answer
_COUNTERS: Final[dict[str, tuple[str, Callable[[str], int]]]] = {
    "word": ("words", lambda text: len(words(text))),
    "sentence": ("sentences", lambda text: len(sentences(text))),
    "step": ("steps", lambda text: len(step_numbers(text)) or bullets(text)),
    "bullet": ("bullets", lambda text: bullets(text) or len(step_numbers(text))),
}
_LIMITS: Final[dict[str, Callable[[int, int], bool]]] = {
    "at most": lambda count, number: 0 < count <= number,
    "under": lambda count, number: 0 < count < number,
    "at least": operator.ge,
    "over": operator.gt,
    "exactly": operator.eq,
}
_COUNT: Final = re.compile(
    r"(?P<less>\b(?:at most|no more than|not more than|up to|within|a maximum of|maximum)\s+)?"
    r"(?P<under>\b(?:under|fewer than|less than|below)\s+)?"
    r"(?P<more>\b(?:at least|no fewer than|a minimum of|minimum)\s+)?"
    r"(?P<over>\b(?:more than|over)\s+)?"
    r"(?P<exact>\b(?:exactly|in|using|with|of|a|give|list|write|into|as)\s+)?"
    r"(?P<single>\bsingle\s+|\bone[ -])?(?P<number>\b\d{1,4}|\b[a-z]+)?[ -]?"
    r"(?:(?:short|clear|simple|numbered|brief|complete|full|easy)[ ,]+)*"
    r"\b(?P<unit>word|sentence|step|bullet)(?:s\b|\b)(?: points?\b)?"
    r"(?P<post>\s+or (?:less|fewer|more)\b|\s+(?:maximum|max|at most|at least)\b)?",
    re.IGNORECASE,
)
_WITH_QUOTED: Final = (
    r"\b[^.\n\"“'‘`]{0,40}\bwith\b[^.\n\"“'‘`]{0,25}"
    r"[\"“'‘`](?P<text>[^\"”'’`\n]{1,80})[\"”'’`]"
)
_BEGIN: Final = re.compile(rf"\b(?:start|begin)s?{_WITH_QUOTED}", re.IGNORECASE)
_END: Final = re.compile(rf"\b(?:end|finish)(?:es|s)?{_WITH_QUOTED}", re.IGNORECASE)
_JSON: Final = re.compile(
    r"\b(?:valid |as |in |a |only )JSON\b|\bJSON (?:object|array|format|list)\b", re.IGNORECASE
)
_LANGUAGE: Final = re.compile(
    r"\b(?:answer|reply|respond|write|say|translate|explain|put|rewrite|describe|tell)\b[^.?!\n]{0,60}?"
    r"\b(?:in|into|to)\s+(?P<language>english|german|french|spanish|hinglish|hindi)\b",
    re.IGNORECASE,
)
_SCRIPT: Final = re.compile(
    r"\bin (?:the )?(?P<script>latin|roman|devanagari|cyrillic|arabic|greek) "
    r"(?:letters|script|alphabet)\b",
    re.IGNORECASE,
)
_CASE: Final = re.compile(
    r"\bin (?:all )?(?P<case>capital letters|capitals|upper ?case|lower ?case|small letters)\b",
    re.IGNORECASE,
)
_LETTERS: Final = {
    name: regex.compile(rf"\p{{{script}}}")
    for name, script in {
        "latin": "Latin",
        "roman": "Latin",
        "devanagari": "Devanagari",
        "cyrillic": "Cyrillic",
        "arabic": "Arabic",
        "greek": "Greek",
    }.items()
}
_FENCE: Final = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.IGNORECASE)


def constraints_of(row: Row) -> tuple[Constraint, ...]:
    """Every constraint of the row, at most one of each name.

    A `constraints` column is a mapping of names to what they ask: `words`, `sentences`, `steps` and
    `bullets` to a number or a text such as "at most 50"; `json` to true or a JSON schema;
    `language`, `script`, `case`, `starts_with`, `ends_with` to a text.

    Raises:
        InputError: for a name in the column that no rule has.
    """
    stated = row.extra.get("constraints")
    key = json.dumps(stated, sort_keys=True) if isinstance(stated, Mapping) else ""
    found = _found(row.prompt, row.reference, key)
    if not row.labels or predicted_label(Answer(row.reference), row) == OTHER:
        return found
    wish = f"one of {', '.join(row.labels)}"
    label = Constraint("label", wish, lambda text: predicted_label(Answer(text), row) != OTHER)
    return (label, *found)


@lru_cache(maxsize=4096)
def _found(prompt: str, reference: str, stated: str) -> tuple[Constraint, ...]:
    if stated:
        return tuple(_stated(name, value) for name, value in json.loads(stated).items())
    by_name: dict[str, Constraint] = {}
    for constraint in _read(prompt):
        if constraint.holds(reference):
            by_name.setdefault(constraint.name, constraint)
    return tuple(by_name.values())


def _stated(name: str, value: Any) -> Constraint:
    if name == "json":
        return _json(value if isinstance(value, Mapping) else None)
    if name in {entry[0] for entry in _COUNTERS.values()}:
        unit = name.removesuffix("s")
        match = _COUNT.search(f"{value} {unit}s")
        constraint = _counted(match) if match else None
        if constraint is not None:
            return constraint
    makers = {
        "language": _language,
        "script": _script,
        "case": _case,
        "starts_with": _starts,
        "ends_with": _ends,
    }
    if name in makers and isinstance(value, str):
        return makers[name](value.lower() if name in {"language", "script", "case"} else value)
    names = ", ".join(("json", *(entry[0] for entry in _COUNTERS.values()), *makers))
    raise InputError(
        f"constraints: {name}: {value!r} is nothing that can be checked", f"There are: {names}"
    )


def _read(prompt: str) -> Iterator[Constraint]:
    if _JSON.search(prompt):
        yield _json(None)
    for match in _COUNT.finditer(prompt):
        constraint = _counted(match)
        if constraint is not None:
            yield constraint
    for pattern, group, make in (
        (_LANGUAGE, "language", _language),
        (_SCRIPT, "script", _script),
        (_CASE, "case", _case),
    ):
        for match in pattern.finditer(prompt):
            yield make(match[group].lower())
    for pattern, ask in ((_BEGIN, _starts), (_END, _ends)):
        for match in pattern.finditer(prompt):
            yield ask(match["text"])


def _counted(match: re.Match[str]) -> Constraint | None:
    name, count = _COUNTERS[match["unit"].lower()]
    limit, number = _limit(match), _number(match)
    if limit is None or number is None:
        return None
    holds = _LIMITS[limit]
    return Constraint(name, f"{limit} {number} {name}", lambda text: holds(count(text), number))


def _limit(match: re.Match[str]) -> str | None:
    """Which of `_LIMITS` the words around a number ask for; None where they ask for nothing."""
    post = (match["post"] or "").lower()
    if match["less"] or any(word in post for word in ("less", "fewer", "max", "most")):
        return "at most"
    if match["more"] or "more" in post or "least" in post:
        return "at least"
    if match["under"]:
        return "under"
    if match["over"]:
        return "over"
    return "exactly" if match["exact"] or match["single"] else None


def _number(match: re.Match[str]) -> int | None:
    if match["single"]:
        return 1
    found = quantities(match["number"] or "", words=True)
    return int(found[0].value) if len(found) == 1 else None


def _json(schema: Mapping[str, Any] | None) -> Constraint:
    def holds(text: str) -> bool:
        fenced = _FENCE.match(text)
        try:
            tree = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return schema is None or jsonschema.Draft202012Validator(schema).is_valid(tree)

    return Constraint("json", "valid JSON" if schema is None else "JSON of the schema", holds)


def _language(name: str) -> Constraint:
    return Constraint("language", f"in {name}", lambda text: language_of(text) == name)


def language_of(text: str) -> str | None:
    """The language most of the text's common words belong to: english, german, french, spanish,
    hinglish (Hindi words in Latin letters, at least one in ten) or hindi (Devanagari); None where
    none is known."""
    if _mostly(_LETTERS["devanagari"], text):
        return "hindi"
    spoken = words(text)
    counts = {name: sum(word in known for word in spoken) for name, known in LANGUAGES.items()}
    if spoken and counts["hinglish"] * 10 >= len(spoken):
        return "hinglish"
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


def _script(name: str) -> Constraint:
    pattern = _LETTERS.get(name)
    if pattern is None:
        raise InputError(f"script: {name} is not known", f"Known: {', '.join(_LETTERS)}")
    return Constraint("script", f"in {name} letters", lambda text: _mostly(pattern, text))


def _mostly(pattern: Any, text: str) -> bool:
    """At least 90 % of the letters fit."""
    letters = [char for char in text if char.isalpha()]
    return bool(letters) and sum(bool(pattern.match(char)) for char in letters) >= 0.9 * len(
        letters
    )


def _case(name: str) -> Constraint:
    upper = "cap" in name or "upper" in name
    wish = "in capital letters" if upper else "in small letters"
    return Constraint("case", wish, str.isupper if upper else str.islower)


def _starts(text: str) -> Constraint:
    wanted = text.strip().lower()
    return Constraint(
        "starts_with", f"starts with {text!r}", lambda a: a.strip().lower().startswith(wanted)
    )


def _ends(text: str) -> Constraint:
    wanted = text.strip().lower().rstrip(".!")
    last = wanted.split(" ")[0] if "…" in wanted or "..." in wanted else wanted
    return Constraint(
        "ends_with",
        f"ends with {text!r}",
        lambda a: last in (a.strip().lower().splitlines() or [""])[-1],
    )


@score(Kind(_GROUP), applies=lambda row: bool(constraints_of(row)))
def instructions(answer: Answer, row: Row) -> float:
    """Share of the row's constraints that the answer keeps, 0 to 1: a closed label set, valid JSON,
    limits of words or sentences, a number of steps or bullets, language, script, case, how it
    starts or ends. Constraints come from the row's `constraints` column or, by rule, its prompt.
    Verifiable instructions as in IFEval, Zhou et al. 2023, arXiv:2311.07911."""
    wanted = constraints_of(row)
    return sum(one.holds(answer.text) for one in wanted) / len(wanted)


def _follows(name: str, wish: str) -> Score:
    def chosen(row: Row) -> Constraint | None:
        return next((one for one in constraints_of(row) if one.name == name), None)

    def measure(answer: Answer, row: Row) -> float:
        wanted = chosen(row)
        assert wanted is not None  # `applies` has seen it
        return float(wanted.holds(answer.text))

    measure.__name__ = f"follows_{name}"
    measure.__doc__ = f"1 if the answer {wish}, else 0. Rows that ask for it; see `instructions`."
    kind = Kind(_GROUP, binary=True)
    return make_score(measure, kind, lambda row: chosen(row) is not None)


for _name, _wish in {
    "label": "gives a label of the closed set",
    "json": "is valid JSON (of the schema, where the row has one; a code fence is allowed)",
    "words": "keeps the number of words asked for",
    "sentences": "keeps the number of sentences asked for",
    "steps": "has the number of steps asked for",
    "bullets": "has the number of bullets asked for",
    "language": "is in the language asked for (English, German, French, Spanish, Hindi, Hinglish)",
    "script": "is in the script asked for (nine letters of ten)",
    "case": "is in the letter case asked for",
    "starts_with": "starts as asked",
    "ends_with": "has what was asked for in its last line",
}.items():
    register(_follows(_name, _wish))
