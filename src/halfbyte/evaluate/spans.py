"""What an answer states: quantities, dates, names, quoted words; and whether a text supports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

from halfbyte.evaluate.lexicon import NOT_NAMES
from halfbyte.evaluate.quantities import Quantity, quantities
from halfbyte.evaluate.text import contains_words, words

_MONTHS: Final = (
    "january february march april may june july august september october november december"
)
_MONTH: Final = {name[:3]: number for number, name in enumerate(_MONTHS.split(), 1)}
_MONTH_WORD: Final = (
    r"(?P<month>Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_YEAR: Final = r"(?:,? (?P<year>\d{4})\b)"
_DATES: Final = tuple(
    regex.compile(pattern)
    for pattern in (
        r"\b(?P<year>\d{4})-(?P<number>\d{1,2})-(?P<day>\d{1,2})\b",
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH_WORD}{_YEAR}?",
        rf"\b{_MONTH_WORD} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s?[:.]\d){_YEAR}?",
        r"\b(?P<day>\d{1,2})[/.](?P<number>\d{1,2})[/.](?P<year>\d{4})\b",
        rf"\b{_MONTH_WORD},? (?P<year>\d{{4}})\b",
    )
)
_CAPITAL: Final = r"\p{Lu}[\p{L}\p{M}\p{N}]*(?:['’\-][\p{L}\p{M}]+)*"
_NAME: Final = regex.compile(
    rf"(?<![\p{{L}}\p{{N}}]){_CAPITAL}"
    rf"(?:\.?[ \u00a0](?:(?:of|of the|de|del|van|von|der|la|le|al|bin)[ ])?{_CAPITAL})*"
)
_SENTENCE_START: Final = regex.compile(r"(?:^|[.!?।:…\n]|^\s*[-*•\d.)]+)[\s\"“'‘(*_#>]*$")
_QUOTE: Final = regex.compile(r"[\"“«]([^\"“”«»\n]{3,200})[\"”»]")
_LIST_NUMBER: Final = regex.compile(r"(?m)^[ \t*_#]*(?:step[ \t]+)?\d{1,3}[ \t]*[.):]", regex.I)

Date = tuple[int, int, int]
SpanKind = Literal["number", "date", "name", "quote", "text"]


@dataclass(frozen=True, slots=True)
class Span:
    """One thing stated: `text` is how it was written, one of the others what is compared: the
    `quantity`, the readings of a date as (year, month, day) with zeros for what it leaves out, or
    the `words` in lower case."""

    kind: SpanKind
    text: str
    quantity: Quantity | None = None
    dates: tuple[Date, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A text that is searched for spans: its words, quantities (number words too) and dates."""

    words: Sequence[str]
    quantities: Sequence[Quantity]
    dates: frozenset[Date]

    @classmethod
    def of(cls, text: str) -> Source:
        """Read `text` once for many look-ups."""
        dates, rest = _split_dates(text)
        readings = frozenset(reading for span in dates for reading in span.dates)
        return cls(words(text), [*quantities(text, words=True), *quantities(rest)], readings)

    def has(self, span: Span) -> bool:
        """Whether the span stands here, in whatever format."""
        if span.quantity is not None:
            return any(span.quantity.matches(other) for other in self.quantities)
        if span.dates:
            return any(_same_date(wanted, found) for wanted in span.dates for found in self.dates)
        wanted = [_bare(word) for word in span.words]
        return contains_words(wanted, [_bare(word) for word in self.words])


def read_fact(text: str) -> Span:
    """A fact as a row gives it: a date, a quantity, or words."""
    dates, rest = _split_dates(text)
    if dates and not words(rest):
        return dates[0]
    found = quantities(text)
    if len(found) == 1 and not words(text[: found[0].start] + text[found[0].stop :]):
        return Span("number", text, quantity=found[0])
    return Span("text", text, words=tuple(words(text)))


def stated(text: str, also: str = "") -> list[Span]:
    """The dates, quantities and names in `text`, each once, without the numbers of a list.

    A single capitalised word at the beginning of a sentence is a name only if it is written so in
    the middle of one, here or in `also`.
    """
    text = _LIST_NUMBER.sub(lambda match: " " * len(match[0]), text)
    dates, rest = _split_dates(text)
    spans: list[Span] = list(dates)
    for quantity in quantities(rest):
        written = rest[quantity.start : quantity.stop].strip()
        spans.append(Span("number", written, quantity=quantity))
    spans += [Span("name", name, words=tuple(words(name))) for name in _names(rest, also)]
    return _unique(spans)


def quoted(text: str) -> list[Span]:
    """Spans in double quotes with at least two words."""
    found = [Span("quote", m[1], words=tuple(words(m[1]))) for m in _QUOTE.finditer(text)]
    return _unique([span for span in found if len(span.words) > 1])


def _unique(spans: Sequence[Span]) -> list[Span]:
    seen: dict[object, Span] = {}
    for span in spans:
        quantity = span.quantity
        number = (quantity.value, quantity.unit) if quantity else None
        seen.setdefault((span.kind, number, span.dates, span.words), span)
    return list(seen.values())


def _bare(word: str) -> str:
    return word.removesuffix("'s").removesuffix("’s")


def _split_dates(text: str) -> tuple[list[Span], str]:
    """The dates in a text, and the text with them blanked out."""
    found = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            readings = _readings(match.groupdict())
            if readings:
                found.append(Span("date", match[0].strip(), dates=readings))
                text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    return found, text


def _readings(parts: dict[str, str | None]) -> tuple[Date, ...]:
    year = int(parts.get("year") or 0)
    day = int(parts.get("day") or 0)
    name, number = parts.get("month"), parts.get("number")
    if name:
        return ((year, _MONTH[name[:3].lower()], day),) if day <= 31 else ()
    month = int(number or 0)
    both = [(year, month, day), (year, day, month)]  # 3/4/2020 is read both ways
    return tuple(dict.fromkeys(r for r in both if 1 <= r[1] <= 12 and 1 <= r[2] <= 31))


def _same_date(wanted: Date, found: Date) -> bool:
    return all(not part or part == other for part, other in zip(wanted, found, strict=True))


def _names(text: str, also: str) -> Iterator[str]:
    known = {word for source in (text, also) for word in _inner_capitals(source)}
    for match in _NAME.finditer(text):
        name = _without_leading(match[0])
        if not name or (name.isupper() and len(name.split()) > 2):  # a shouted line
            continue
        first = name == match[0] and _starts_sentence(text, match.start())
        if not first or " " in name or name.lower() in known or _is_acronym(name):
            yield name


def _starts_sentence(text: str, place: int) -> bool:
    window = 16  # enough for a list's number and an opening quote
    before = text[max(0, place - window) : place]
    return bool(_SENTENCE_START.search("x" + before if place > window else before))


def _inner_capitals(text: str) -> Iterator[str]:
    """Words written with a capital in the middle of a sentence, in lower case."""
    for match in _NAME.finditer(text):
        if not _starts_sentence(text, match.start()):
            yield from (word.lower() for word in match[0].split())


def _is_acronym(name: str) -> bool:
    return len(name) > 1 and name.isupper()


def _without_leading(name: str) -> str:
    parts = name.replace(".", "").split()
    while parts and parts[0].lower() in NOT_NAMES:
        parts = parts[1:]
    while parts and (parts[-1].lower() in NOT_NAMES or len(parts[-1]) == 1):
        parts = parts[:-1]
    return " ".join(parts)
