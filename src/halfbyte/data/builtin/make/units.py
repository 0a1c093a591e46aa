"""Conversion rows: one unit into another by one easy factor."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from halfbyte.data.builtin.make.row import NAMES, Row, rounds


@dataclass(frozen=True, slots=True)
class Pair:
    """One `large` is `factor` of `small`; `wholes` are the amounts of the large unit to use.

    `asks` set the amount {n} of unit {a} in a scene and want unit {b}.
    """

    large: tuple[str, str]
    small: tuple[str, str]
    factor: int
    wholes: tuple[int, ...]
    asks: tuple[str, ...]


_LENGTH: Final = (
    "A shelf is {n} {a} long. Give its length in {b}.",
    "{name} cuts {n} {a} of ribbon. What is that in {b}?",
)
_WAY: Final = (
    "The path around the lake is {n} {a} long. What is that in {b}?",
    "{name} walks {n} {a} to school. Give the distance in {b}.",
)
_MASS: Final = (
    "A bag of rice weighs {n} {a}. What does it weigh in {b}?",
    "The recipe asks for {n} {a} of flour. Give that in {b}.",
)
_VOLUME: Final = (
    "A jug holds {n} {a} of lemonade. Express this in {b}.",
    "{name} pours {n} {a} of water into a tank. How much is that in {b}?",
)
_TIME: Final = (
    "The film lasts {n} {a}. How long is that in {b}?",
    "{name} practised the drums for {n} {a}. Give the time in {b}.",
)
_LONG_TIME: Final = (
    "The ship was at sea for {n} {a}. How long is that in {b}?",
    "A bridge took {n} {a} to build. Give this time in {b}.",
)
_TO_NINE: Final = tuple(range(2, 10))

PAIRS: Final = (
    Pair(("kilometre", "kilometres"), ("metre", "metres"), 1000, _TO_NINE, _WAY),
    Pair(("metre", "metres"), ("centimetre", "centimetres"), 100, _TO_NINE, _LENGTH),
    Pair(
        ("centimetre", "centimetres"),
        ("millimetre", "millimetres"),
        10,
        (*_TO_NINE, 12, 15),
        _LENGTH,
    ),
    Pair(("kilogram", "kilograms"), ("gram", "grams"), 1000, _TO_NINE, _MASS),
    Pair(
        ("tonne", "tonnes"),
        ("kilogram", "kilograms"),
        1000,
        _TO_NINE,
        ("A truck carries {n} {a} of sand. How much is that in {b}?",),
    ),
    Pair(("litre", "litres"), ("millilitre", "millilitres"), 1000, _TO_NINE, _VOLUME),
    Pair(("hour", "hours"), ("minute", "minutes"), 60, (2, 3, 4, 5), _TIME),
    Pair(("minute", "minutes"), ("second", "seconds"), 60, (2, 3, 4, 5), _TIME),
    Pair(("day", "days"), ("hour", "hours"), 24, (2, 3), _LONG_TIME),
    Pair(("week", "weeks"), ("day", "days"), 7, _TO_NINE, _LONG_TIME),
    Pair(("year", "years"), ("month", "months"), 12, (2, 3, 4, 5), _LONG_TIME),
    Pair(("decade", "decades"), ("year", "years"), 10, _TO_NINE, _LONG_TIME),
    Pair(
        ("century", "centuries"),
        ("year", "years"),
        100,
        (2, 3, 4, 5, 6),
        ("A castle has stood for {n} {a}. How long is that in {b}?",),
    ),
    Pair(
        ("dollar", "dollars"),
        ("cent", "cents"),
        100,
        _TO_NINE,
        (
            "A sandwich costs {n} {a}. What is the price in {b}?",
            "{name} saved {n} {a}. Give the sum in {b}.",
        ),
    ),
    Pair(("foot", "feet"), ("inch", "inches"), 12, (2, 3, 4, 5), _LENGTH),
    Pair(("yard", "yards"), ("foot", "feet"), 3, _TO_NINE, _LENGTH),
    Pair(("gallon", "gallons"), ("quart", "quarts"), 4, _TO_NINE, _VOLUME),
    Pair(("quart", "quarts"), ("pint", "pints"), 2, _TO_NINE, _VOLUME),
    Pair(
        ("dozen", "dozen"),
        ("egg", "eggs"),
        12,
        (2, 3, 4, 5),
        (
            "The baker orders {n} {a} eggs. How many {b} is that?",
            "How many {b} are {n} {a}?",
            "{name} buys {n} {a} eggs. Count the {b}.",
        ),
    ),
)

_ASKS: Final = (
    "Convert {n} {a} to {b}.",
    "How many {b} are in {n} {a}?",
    "Change {n} {a} into {b}.",
    "What is {n} {a} in {b}?",
    "Write {n} {a} as {b}.",
)


def conversion_rows(rng: random.Random) -> Iterator[Row]:
    """An endless stream: pairs in turn, two in three from large to small, one back."""
    asks = {pair.large: rounds(_asks(pair), 300, rng) for pair in PAIRS}
    while True:
        for pair in rng.sample(PAIRS, len(PAIRS)):
            whole = rng.choice(pair.wholes)
            ask = asks[pair.large].pop()
            yield _row(pair, whole, ask, rng)


def _asks(pair: Pair) -> tuple[str, ...]:
    """A dozen counts things, so it cannot be "converted"; the others can."""
    return pair.asks if pair.large[0] == "dozen" else (*pair.asks, *_ASKS, *pair.asks)


def _row(pair: Pair, whole: int, ask: str, rng: random.Random) -> Row:
    part = whole * pair.factor
    down = rng.random() < 2 / 3 or pair.large[0] == "dozen"
    given, wanted = (pair.large[1], pair.small[1]) if down else (pair.small[1], pair.large[1])
    start, result = (whole, part) if down else (part, whole)
    sign = "×" if down else "÷"
    answer = f"{result} {wanted}"
    rule = f"1 {pair.large[0]} is {pair.factor} {pair.small[1]}"
    return Row(
        kind="conversion",
        instruction=ask.format(n=start, a=given, b=wanted, name=rng.choice(NAMES)),
        steps=(f"{rule}.", f"{start} {sign} {pair.factor} = {result}."),
        answer=answer,
        facts=(rule, answer),
    )
