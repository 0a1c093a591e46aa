"""Arithmetic and rate rows: word problems whose answers are computed here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from halfbyte.data.builtin.make.row import NAMES, Row, rounds

_THINGS: Final = [
    "apples",
    "shells",
    "stamps",
    "coins",
    "beads",
    "cards",
    "pencils",
    "marbles",
    "buttons",
    "books",
    "eggs",
    "roses",
    "stickers",
    "balloons",
    "cookies",
    "bricks",
    "feathers",
    "keys",
    "lamps",
    "chairs",
    "postcards",
    "pears",
    "tiles",
    "candles",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem over {a} and {b}; `sign` joins them, `think` says why, `unit` ends the answer.

    `-` and `÷` problems put the larger number in {a}, and `÷` always comes out whole. `ones` are
    the likely values of a rate (per hour, each, ...): the first factor or the quotient.
    """

    sign: str
    text: str
    think: str
    unit: str = ""
    ones: tuple[int, ...] = tuple(range(2, 10))


P = Problem
ARITHMETIC: Final = (
    P(
        "+",
        "{name} has {a} {things} and buys {b} more. How many {things} are there now?",
        "Buying more means adding.",
    ),
    P(
        "+",
        "A box holds {a} red {things} and {b} blue ones. How many are in the box?",
        "Both colours count, so add.",
    ),
    P(
        "+",
        "{name} found {a} {things} on Monday and {b} on Tuesday. Find the total.",
        "A total is a sum.",
    ),
    P(
        "+",
        "There are {a} children on the bus, and {b} get on. How many ride now?",
        "Getting on means adding.",
    ),
    P(
        "+",
        "One tower has {a} blocks, the next has {b} more than that. How high is the next tower?",
        "More than means adding.",
    ),
    P(
        "+",
        "{name} is {a} years old. How old will {name} be in {b} years?",
        "Years to come are added.",
    ),
    P(
        "+",
        "{name} read {a} pages before lunch and {b} after it. How many pages is that?",
        "Both parts count, so add.",
    ),
    P(
        "-",
        "{name} had {a} {things} and gave {b} to a friend. How many are left?",
        "Giving away means subtracting.",
    ),
    P(
        "-",
        "Of {a} {things} in the basket, {b} are broken. How many are whole?",
        "Take the broken ones away.",
    ),
    P(
        "-",
        "{name} has {a} {things}, {name2} has {b}. How many more does {name} have?",
        "How many more asks for a difference.",
    ),
    P(
        "-",
        "A book has {a} pages, and {name} has read {b}. How many pages remain?",
        "What remains is a difference.",
    ),
    P(
        "-",
        "The shop had {a} {things} this morning and sold {b}. How many can still be sold?",
        "Sold things are subtracted.",
    ),
    P(
        "-",
        "It is {a} degrees at noon and {b} degrees cooler at night. How warm is the night?",
        "Cooler means subtracting.",
    ),
    P(
        "-",
        "A rope was {a} metres long. {name} cut off {b} metres. How many metres are left?",
        "Cutting off means subtracting.",
    ),
    P(
        "×",
        "There are {a} bags with {b} {things} in each. How many {things} are there?",
        "Equal groups are multiplied.",
    ),
    P(
        "×",
        "{name} plants {a} rows of {b} trees. How many trees is that?",
        "Rows of equal length are multiplied.",
    ),
    P(
        "×",
        "One packet has {b} {things}. How many are in {a} packets?",
        "Equal packets are multiplied.",
    ),
    P(
        "×",
        "A hall has {a} tables with {b} seats at each. How many people can sit?",
        "The same seats at each table: multiply.",
    ),
    P(
        "×",
        "{name} does {a} push-ups a day for {b} days. How many is that?",
        "The same every day: multiply.",
    ),
    P(
        "×",
        "Find the area of a floor {a} metres by {b} metres, in square metres.",
        "Area is length times width.",
    ),
    P(
        "÷",
        "{name} shares {a} {things} equally among {b} friends. How many does each get?",
        "Sharing equally means dividing.",
    ),
    P(
        "÷",
        "{a} {things} are packed into boxes of {b}. How many boxes are full?",
        "Packing in groups means dividing.",
    ),
    P(
        "÷",
        "A ribbon of {a} metres is cut into {b} equal parts. How many metres is one part?",
        "Equal parts mean dividing.",
    ),
    P(
        "÷",
        "{a} players form teams of {b}. How many teams are there?",
        "Making groups means dividing.",
    ),
    P(
        "÷",
        "{name} puts {a} {things} on {b} shelves, the same on each. How many are on one shelf?",
        "The same on each means dividing.",
    ),
    P(
        "÷",
        "It takes {b} eggs to bake one cake. How many cakes can {name} bake with {a} eggs?",
        "Groups of eggs: divide.",
    ),
)

_FAST: Final = (20, 30, 40, 50, 60, 70, 80, 90)
_EASY: Final = (5, 6, 7, 8, 9, 10, 11, 12)

RATES: Final = (
    P(
        "×",
        "A train goes {a} km per hour for {b} hours. How far does it go?",
        "Distance is speed times time.",
        " km",
        _FAST,
    ),
    P(
        "×",
        "{name} cycles {b} hours at {a} km per hour. Find the distance.",
        "Distance is speed times time.",
        " km",
        _EASY,
    ),
    P(
        "×",
        "{name} earns {a} dollars an hour. What is the pay for {b} hours?",
        "Pay is rate times hours.",
        " dollars",
        _EASY,
    ),
    P(
        "×",
        "One ticket costs {a} dollars. What do {b} tickets cost?",
        "Cost is price times number.",
        " dollars",
    ),
    P(
        "×",
        "A tap gives {a} litres a minute. How much flows in {b} minutes?",
        "Amount is rate times time.",
        " litres",
        _EASY,
    ),
    P(
        "×",
        "A printer prints {a} pages a minute. How many pages come out in {b} minutes?",
        "Amount is rate times time.",
        " pages",
        _FAST,
    ),
    P(
        "×",
        "{name} reads {a} pages a day. How much is read in {b} days?",
        "Amount is rate times days.",
        " pages",
        _EASY,
    ),
    P(
        "×",
        "Paint costs {a} dollars a litre. Find the price of {b} litres.",
        "Cost is price times amount.",
        " dollars",
    ),
    P(
        "÷",
        "A bus drives {a} km in {b} hours. What is its speed?",
        "Speed is distance divided by time.",
        " km per hour",
        _FAST,
    ),
    P(
        "÷",
        "{b} notebooks cost {a} dollars together. What is the price of one?",
        "The price of one is cost divided by number.",
        " dollars",
    ),
    P(
        "÷",
        "{name} fills {a} bottles in {b} minutes. How many is that per minute?",
        "Per minute means divided by minutes.",
        " bottles",
        _EASY,
    ),
    P(
        "÷",
        "{name} earned {a} dollars in {b} hours. What is the pay for one hour?",
        "The hourly pay is money divided by hours.",
        " dollars",
        _EASY,
    ),
    P(
        "÷",
        "A pump moves {a} litres in {b} minutes. Find its rate.",
        "Rate is amount divided by time.",
        " litres per minute",
        _FAST,
    ),
    P(
        "÷",
        "A snail crawls {a} cm in {b} minutes. How far does it get in one minute?",
        "The way in one minute is distance divided by time.",
        " cm",
    ),
)


def _numbers(problem: Problem, rng: random.Random) -> tuple[int, int, int]:
    """Two small numbers and the result of joining them with the problem's sign."""
    if problem.sign == "+":
        a, b = rng.randint(4, 30), rng.randint(2, 9)
        return a, b, a + b
    if problem.sign == "-":
        a, b = rng.randint(11, 30), rng.randint(2, 9)
        return a, b, a - b
    one, two = rng.choice(problem.ones), rng.randint(2, 6)
    return (one, two, one * two) if problem.sign == "×" else (one * two, two, one)


def problem_rows(kind: str, rng: random.Random) -> Iterator[Row]:
    """An endless stream of `arithmetic` or `rate` rows, the wordings in turn."""
    problems = {"arithmetic": ARITHMETIC, "rate": RATES}[kind]
    while True:
        for problem in rounds(problems, len(problems), rng):
            a, b, result = _numbers(problem, rng)
            name, name2 = rng.sample(NAMES, 2)
            things = rng.choice(_THINGS)
            answer = f"{result}{problem.unit}"
            yield Row(
                kind=kind,
                instruction=problem.text.format(a=a, b=b, name=name, name2=name2, things=things),
                steps=(problem.think, f"{a} {problem.sign} {b} = {result}."),
                answer=answer,
                facts=(answer,),
            )
