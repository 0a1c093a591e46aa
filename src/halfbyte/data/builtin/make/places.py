"""More short texts with places for names and numbers, and the questions they answer."""

from __future__ import annotations

from typing import Final

from halfbyte.data.builtin.make.scenes import Question, Scene

Q = Question
MORE_SCENES: Final = (
    Scene(
        "In the test, {name} heated the {colour} powder for {teen} minutes. It melted at "
        "{hundred} degrees.",
        (
            Q(
                "At how many degrees did it melt?",
                "melting point",
                "melted at {hundred} degrees",
                "{hundred} degrees",
            ),
            Q("How long was it heated?", "time", "for {teen} minutes", "{teen} minutes"),
            Q("Who did the test?", "person", "{name} heated", "{name}"),
        ),
    ),
    Scene(
        "Film night is on {day}. The film is about a {job} who loses a {thing} in {town}.",
        (
            Q("What is lost in the film?", "lost thing", "loses a {thing}", "a {thing}"),
            Q("Who is the film about?", "main person", "about a {job}", "a {job}"),
            Q("When is film night?", "day", "is on {day}", "{day}"),
        ),
    ),
    Scene(
        "{name} ran the {town} race in {tens} minutes, and {name2} was {small} minutes faster.",
        (
            Q("Who was faster?", "faster runner", "{name2} was {small} minutes faster", "{name2}"),
            Q("How long did {name} run?", "time", "in {tens} minutes", "{tens} minutes"),
            Q("In which town was the race?", "town", "the {town} race", "{town}"),
        ),
    ),
    Scene(
        "A boat named {name} sails from {town} every {day}. It carries {hundred} bags of {fruit}.",
        (
            Q("What does the boat carry?", "load", "bags of {fruit}", "bags of {fruit}"),
            Q("What is the boat's name?", "name", "named {name}", "{name}"),
            Q("From where does it sail?", "port", "sails from {town}", "{town}"),
        ),
    ),
    Scene(
        "At camp each child needs a {tool}. The walk is {teen} km long and ends at {late} by the "
        "{wood} bridge.",
        (
            Q("How long is the walk?", "length", "is {teen} km long", "{teen} km"),
            Q("What does each child need?", "thing", "needs a {tool}", "a {tool}"),
            Q("When does the walk end?", "time", "ends at {late}", "{late}"),
        ),
    ),
    Scene(
        "Lost: a {colour} {thing} with the name {surname} inside. Call {name} after {late}.",
        (
            Q("What was lost?", "lost thing", "a {colour} {thing}", "a {colour} {thing}"),
            Q("Which name is inside?", "name", "the name {surname}", "{surname}"),
            Q("Who should be called?", "person", "Call {name}", "{name}"),
        ),
    ),
    Scene(
        "Hello, this is {name} from {town}. Your {thing} is mended. It costs {tens} dollars, and "
        "we close at {late}.",
        (
            Q("What has been mended?", "thing", "Your {thing} is mended", "the {thing}"),
            Q("How much is the repair?", "price", "costs {tens} dollars", "{tens} dollars"),
            Q("When does the shop close?", "closing time", "close at {late}", "{late}"),
        ),
    ),
    Scene(
        "The {surname} farm grows {plant} and keeps {tens} sheep. Its {animal} guards the gate.",
        (
            Q("What guards the gate?", "guard", "Its {animal} guards the gate", "the {animal}"),
            Q("How many sheep are there?", "number of sheep", "keeps {tens} sheep", "{tens}"),
            Q("What does the farm grow?", "crop", "grows {plant}", "{plant}"),
        ),
    ),
    Scene(
        "The bridge of {town} is {hundred} metres long. It was opened in {year} and painted "
        "{colour}.",
        (
            Q("How long is the bridge?", "length", "{hundred} metres long", "{hundred} metres"),
            Q("When was the bridge opened?", "year", "opened in {year}", "{year}"),
            Q("What colour is the bridge?", "colour", "painted {colour}", "{colour}"),
        ),
    ),
    Scene(
        "At the {month} festival {name} {surname} won the prize for the largest {fruit}: a "
        "{music}.",
        (
            Q("What was the prize?", "prize", "a {music}", "a {music}"),
            Q("When is the festival?", "month", "the {month} festival", "{month}"),
            Q("Who won?", "winner", "{name} {surname} won", "{name} {surname}"),
        ),
    ),
    Scene(
        "The story is set on the planet {town}, which has {small} moons and {colour} rain. Its "
        "queen is {name}.",
        (
            Q(
                "How many moons does the planet have?",
                "number of moons",
                "{small} moons",
                "{small}",
            ),
            Q("What colour is the rain?", "colour", "{colour} rain", "{colour}"),
            Q("Who is the queen?", "queen", "queen is {name}", "{name}"),
        ),
    ),
    Scene(
        "{name} keeps the {tool} in the {room} and the key under the {colour} pot.",
        (
            Q("Where is the {tool}?", "place", "in the {room}", "in the {room}"),
            Q(
                "What is under the {colour} pot?",
                "thing",
                "the key under the {colour} pot",
                "the key",
            ),
            Q("Who owns these things?", "person", "{name} keeps the {tool}", "{name}"),
        ),
    ),
    Scene(
        "Doctor {surname} sees patients from {hour} to {late}. On {day} the office stays closed.",
        (
            Q("When is the office closed?", "day", "On {day} the office stays closed", "{day}"),
            Q("Until when are patients seen?", "end", "to {late}", "{late}"),
            Q("What is the doctor's name?", "name", "Doctor {surname}", "Doctor {surname}"),
        ),
    ),
    Scene(
        "A ticket for the {town} pool costs {small} dollars, and {teen} dollars for a family. The "
        "water is {teen2} degrees warm.",
        (
            Q("What does a family pay?", "price", "{teen} dollars for a family", "{teen} dollars"),
            Q("How warm is the water?", "temperature", "{teen2} degrees warm", "{teen2} degrees"),
            Q("In which town is the pool?", "town", "the {town} pool", "{town}"),
        ),
    ),
    Scene(
        "To build the shelf, take {small} {wood} boards. {name} holds them while {name2} turns "
        "the screws.",
        (
            Q("Who turns the screws?", "person", "{name2} turns the screws", "{name2}"),
            Q("Which wood are the boards made of?", "wood", "{wood} boards", "{wood}"),
            Q("How many boards are needed?", "number", "{small} {wood} boards", "{small}"),
        ),
    ),
    Scene(
        "My uncle {name} is a {job} in {town}. He moved there in {year2} to learn the {music}.",
        (
            Q("What is the uncle's work?", "work", "is a {job}", "{job}"),
            Q("Why did he move?", "reason", "to learn the {music}", "to learn the {music}"),
            Q("Where does the uncle live?", "town", "in {town}", "{town}"),
        ),
    ),
    Scene(
        "The {animal} is shy. It hides in {wood} trees, eats {fruit} and comes out at {late} in "
        "the evening.",
        (
            Q("Where does the animal hide?", "place", "hides in {wood} trees", "in {wood} trees"),
            Q("What does the animal eat?", "food", "eats {fruit}", "{fruit}"),
            Q("Which animal is shy?", "animal", "The {animal} is shy", "the {animal}"),
        ),
    ),
    Scene(
        "{name} borrowed a {tool} from {name2} on {day} and must return it in {teen} days.",
        (
            Q("Who lent something?", "owner", "from {name2}", "{name2}"),
            Q("What was borrowed?", "thing", "borrowed a {tool}", "a {tool}"),
            Q("How many days are left to return it?", "time", "in {teen} days", "{teen} days"),
        ),
    ),
    Scene(
        "The tower in {town} has {hundred} steps. From the top you see a {colour} roof where a "
        "{job} lives.",
        (
            Q(
                "How many steps does the tower have?",
                "number of steps",
                "has {hundred} steps",
                "{hundred}",
            ),
            Q("Who lives under that roof?", "person", "where a {job} lives", "a {job}"),
            Q("What colour is the roof?", "colour", "a {colour} roof", "{colour}"),
        ),
    ),
    Scene(
        "Quiz result: {name} {tens} points, {name2} {teen} points, {name3} {small} points. The "
        "winner gets a {thing}.",
        (
            Q("What does the winner get?", "prize", "gets a {thing}", "a {thing}"),
            Q("How many points has {name2}?", "points", "{name2} {teen} points", "{teen}"),
            Q("Who has {small} points?", "player", "{name3} {small} points", "{name3}"),
        ),
    ),
)
