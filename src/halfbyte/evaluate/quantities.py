"""Numbers as people write them: 1,234 and 1234.0 and 12k and ½ are read as values with units."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose
from typing import Final

_DIGITS: Final = (
    r"\d{1,3}(?:[,\u00a0\u202f]\d{2,3})*[,\u00a0\u202f]\d{3}(?:\.\d+)?"  # 1,234.5 and 1,00,000
    r"|\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w))?|\.\d+"
)
_NUMBER: Final = re.compile(
    rf"(?P<sign>(?<![\w)\]])[-−+])?(?P<currency>[$€£₹¥]\s?)?(?<![\d.])(?P<digits>{_DIGITS})"
    r"(?P<half>[½¼¾⅓⅔])?(?P<ordinal>(?:st|nd|rd|th)\b)?"
    r"(?:\s?(?P<scale>k|thousand|million|billion|lakhs?|crores?)\b)?"
    r"(?:\s?(?P<percent>%|percent\b|per cent\b)"
    r"|[\s-]?(?P<unit>[^\W\d_]+(?:²|³|/[^\W\d_]+)?|°[CF]))?",
    re.IGNORECASE,
)
_FRACTIONS: Final = {"½": 0.5, "¼": 0.25, "¾": 0.75, "⅓": 1 / 3, "⅔": 2 / 3}
_SCALES: Final = {
    "k": 1e3,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "lakh": 1e5,
    "lakhs": 1e5,
    "crore": 1e7,
    "crores": 1e7,
}
_SMALL: Final = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS: Final = {word: float(value) for value, word in enumerate(_SMALL)} | {
    word: 10.0 * value for value, word in enumerate(_TENS, 2)
}
_NUMBER_WORD: Final = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[ -](?P<one>{'|'.join(_SMALL[1:10])}))?"
    rf"|(?P<small>{'|'.join(_SMALL)}))\b(?P<hundred>[ -]hundred\b)?",
    re.IGNORECASE,
)
# what one unit is called; the first name is the one that is compared
_UNIT_NAMES: Final = (
    "km kilometer kilometers kilometre kilometres kms",
    "m meter meters metre metres",
    "cm centimeter centimeters centimetre centimetres",
    "mm millimeter millimeters millimetre millimetres",
    "mi mile miles",
    "ft foot feet",
    "in inch inches",
    "yd yard yards",
    "kg kilogram kilograms kilo kilos kgs",
    "g gram grams gm gms",
    "mg milligram milligrams",
    "lb lbs pound pounds",
    "oz ounce ounces",
    "t tonne tonnes ton tons",
    "l liter liters litre litres",
    "ml milliliter milliliters millilitre millilitres",
    "gal gallon gallons",
    "s sec secs second seconds",
    "min mins minute minutes",
    "h hr hrs hour hours",
    "d day days",
    "wk week weeks",
    "mo month months",
    "yr yrs year years",
    "km/h kmh kph",
    "mph mi/h",
    "m/s mps",
    "°c celsius",
    "°f fahrenheit",
    "dollar dollars usd",
    "cent cents",
    "euro euros eur",
    "rupee rupees inr rs",
    "w watt watts",
    "kw kilowatt kilowatts",
    "kwh",
    "j joule joules",
    "n newton newtons",
    "v volt volts",
    "a amp amps ampere amperes",
    "hz hertz",
    "kb kilobyte kilobytes",
    "mb megabyte megabytes",
    "gb gigabyte gigabytes",
    "m² sqm",
    "km²",
    "cm²",
    "m³",
    "cm³",
)
_UNITS: Final = {name: names.split()[0] for names in _UNIT_NAMES for name in names.split()}
_CURRENCY: Final = {"$": "dollar", "€": "euro", "₹": "rupee"}
_NOT_UNITS: Final = frozenset({"a", "in", "d", "t", "mo"})  # words more often than units


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit's common name (empty without one); `start:stop` is where it stands."""

    value: float
    unit: str
    start: int
    stop: int

    def matches(self, other: Quantity) -> bool:
        """The same value, however written; units differ only where both have one."""
        same = isclose(self.value, other.value, rel_tol=1e-12, abs_tol=1e-12)
        return same and (not self.unit or not other.unit or self.unit == other.unit)


def quantities(text: str, *, words: bool = False) -> list[Quantity]:
    """Every number in `text` with its unit; with `words`, number words (up to 99 hundred) too."""
    found = [_read(match) for match in _NUMBER.finditer(text)]
    if words:
        found += _number_words(text)
    return found


def single_quantity(text: str) -> Quantity | None:
    """The quantity that the whole text is, but for a closing point; None if it is none."""
    bare = text.strip().rstrip(".").strip()
    match = _NUMBER.match(bare)
    if match is None:
        return None
    quantity = _read(match)
    return quantity if quantity.stop == len(bare) else None


def _read(match: re.Match[str]) -> Quantity:
    value = float(re.sub("[,\u00a0\u202f]", "", match["digits"]))
    value += _FRACTIONS.get(match["half"] or "", 0.0)
    stop = match.end("half") if match["half"] else match.end("digits")
    if match["ordinal"]:
        stop = match.end("ordinal")
    if match["scale"]:
        value *= _SCALES[match["scale"].lower()]
        stop = match.end("scale")
    if match["sign"] in {"-", "−"}:
        value = -value
    unit = _CURRENCY.get((match["currency"] or "").strip(), "")
    if match["percent"]:
        unit, stop = "%", match.end("percent")
    elif match["unit"]:
        name = _unit(match["unit"], apart=match.start("unit") > stop)
        if name:
            unit, stop = name, match.end("unit")
    return Quantity(value, unit, match.start(), stop)


def _unit(text: str, apart: bool) -> str:
    """The unit's common name, or nothing: "5 A" has one, "5 a day" and "the 80s" have none."""
    low = text.lower()
    if text != "A" and (low in _NOT_UNITS or (low == "s" and not apart)):
        return ""
    return _UNITS.get(low, "")


def _number_words(text: str) -> Iterator[Quantity]:
    for match in _NUMBER_WORD.finditer(text):
        first = (match["tens"] or match["small"]).lower()
        value = _WORDS[first] + (_WORDS[match["one"].lower()] if match["one"] else 0.0)
        if match["hundred"]:
            value *= 100
        yield Quantity(value, "", match.start(), match.end())
