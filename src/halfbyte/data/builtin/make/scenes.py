"""Short texts with places for names and numbers, and questions that only the text can answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Question:
    """`ask` is answered by `answer`; `quote` is where the text says so; `what` names the thing."""

    ask: str
    what: str
    quote: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A text and its questions; {names} are places, filled from `POOLS`."""

    text: str
    questions: tuple[Question, ...]


POOLS: Final = {
    "town": "Brindale Oakhurst Fernley Saltby Maple Quarry Stonebeck Larkhill Wexmoor Ravenfield "
    "Thornwick Elmstead Copperton Greywater Hazelbrook Millcombe Northfen Pinewick",
    "surname": "Abara Bianchi Castell Dubrov Eriksen Farrow Garnet Holm Ibarra Jansen Kowal "
    "Lindqvist Moreau Nakata Okoye Pereira Quist Rahman Sorel Tamm Varga Weiss",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October "
    "November December",
    "hour": "7|7:30|8|8:15|8:30|9|9:45|10|10:20|11",
    "late": "4|4:30|5|5:15|6|6:40|7|8|8:30|9",
    "colour": "red blue green yellow purple orange silver brown white pink",
    "animal": "goat|owl|hedgehog|otter|parrot|turtle|rabbit|donkey|fox|heron|lizard|squirrel",
    "fruit": "plums|cherries|apricots|figs|peaches|mangoes|pears|blackberries|melons|quinces",
    "plant": "beans|carrots|onions|radishes|pumpkins|lettuces|potatoes|leeks|beetroots|tulips",
    "tool": "hammer|ladder|rope|lantern|compass|shovel|whistle|bucket|torch|map",
    "music": "flute|cello|drum|harp|trumpet|banjo|clarinet|piano|violin|accordion",
    "room": "kitchen|attic|cellar|hall|garage|office|balcony|workshop|pantry|porch",
    "job": "baker|nurse|potter|pilot|carpenter|dentist|sailor|teacher|plumber|tailor",
    "wood": "oak|pine|birch|walnut|cedar|ash|cherry|willow",
    "thing": "clock|scarf|kite|teapot|bicycle|puzzle|camera|backpack|umbrella|"
    "chess set|mirror|vase",
    "small": "3 4 5 6 7 8 9",
    "teen": "11 12 13 14 15 16 17 18 19",
    "tens": "20 25 30 35 40 45 50 60 70 80 90",
    "hundred": "120 150 180 210 240 260 320 350 410 480 520 640 750 860",
    "year": "1804 1817 1826 1839 1848 1855 1863 1871 1884 1892 1901 1913 1922 1935 1947 1958 1966",
}
"""What can stand in each place; a place's number (`town2`) is left out when it is looked up."""

Q = Question
SCENES: Final = (
    Scene(
        "The library in {town} opens at {hour} in the morning. Every {day} a {job} reads stories "
        "to the children.",
        (
            Q("When does the library open?", "opening time", "opens at {hour}", "{hour}"),
            Q("On which day are stories read?", "day", "Every {day}", "{day}"),
            Q("Who reads the stories?", "reader", "a {job} reads stories", "a {job}"),
        ),
    ),
    Scene(
        "Bus {teen} leaves {town} at {hour} and needs {tens} minutes to reach {town2}.",
        (
            Q(
                "How long is the bus ride?",
                "time on the bus",
                "needs {tens} minutes",
                "{tens} minutes",
            ),
            Q("Where does the bus arrive?", "last stop", "to reach {town2}", "{town2}"),
            Q("Which bus should I take?", "bus number", "Bus {teen}", "bus {teen}"),
        ),
    ),
    Scene(
        "{name} found a {colour} {thing} in the {room} and gave it to {name2} as a present.",
        (
            Q("Who got the present?", "person", "gave it to {name2}", "{name2}"),
            Q("Where was the present found?", "place", "in the {room}", "in the {room}"),
            Q("What colour was the present?", "colour", "a {colour} {thing}", "{colour}"),
        ),
    ),
    Scene(
        "For the jam, cook {small} cups of {fruit} for {tens} minutes. Then let the jars cool on "
        "a {wood} board.",
        (
            Q(
                "How long does the jam cook?",
                "cooking time",
                "for {tens} minutes",
                "{tens} minutes",
            ),
            Q("Which fruit goes into the jam?", "fruit", "cups of {fruit}", "{fruit}"),
            Q(
                "How many cups of fruit are needed?",
                "amount",
                "{small} cups of {fruit}",
                "{small} cups",
            ),
        ),
    ),
    Scene(
        "Shop news: until {day} every {thing} costs {tens} dollars. Members pay {teen} dollars. "
        "Ask for {name}.",
        (
            Q(
                "What do members pay?",
                "price for members",
                "Members pay {teen} dollars",
                "{teen} dollars",
            ),
            Q("When does the sale end?", "last day", "until {day}", "{day}"),
            Q("Whom should customers ask for?", "person", "Ask for {name}", "{name}"),
        ),
    ),
    Scene(
        "Class {small} visited the {town} zoo in {month}. The pupils liked the {animal} most and "
        "drew it on {colour} paper.",
        (
            Q(
                "Which animal did the pupils like most?",
                "animal",
                "liked the {animal} most",
                "the {animal}",
            ),
            Q("In which month was the zoo visit?", "month", "in {month}", "{month}"),
            Q("What colour was the paper?", "colour", "on {colour} paper", "{colour}"),
        ),
    ),
    Scene(
        "Dear team, we meet on {day} at {late} in the {room}. Please bring the {tool}. "
        "Yours, {name}",
        (
            Q("Where is the meeting?", "place", "in the {room}", "in the {room}"),
            Q("What should the team bring?", "thing to bring", "bring the {tool}", "the {tool}"),
            Q("Who wrote this note?", "writer", "Yours, {name}", "{name}"),
        ),
    ),
    Scene(
        "The museum of {town} was founded in {year} by {name} {surname}. It shows {hundred} "
        "old coins.",
        (
            Q("Who founded the museum?", "founder", "by {name} {surname}", "{name} {surname}"),
            Q("In which year was the museum founded?", "year", "founded in {year}", "{year}"),
            Q(
                "How many coins does it show?",
                "number of coins",
                "{hundred} old coins",
                "{hundred}",
            ),
        ),
    ),
    Scene(
        "In {month} {name} planted {plant} beside the {wood} tree. A {animal} ate {small} of them.",
        (
            Q("What did {name} plant?", "crop", "planted {plant}", "{plant}"),
            Q("Which animal came to eat?", "animal", "A {animal} ate", "a {animal}"),
            Q("How many were eaten?", "number", "ate {small} of them", "{small}"),
        ),
    ),
    Scene(
        "Parcel {hundred} for Mr {surname} holds a {thing}. It was left with the {job} next door "
        "on {day}.",
        (
            Q("What is in the parcel?", "content", "holds a {thing}", "a {thing}"),
            Q("Who took the parcel?", "person", "left with the {job}", "the {job}"),
            Q("When was the parcel left?", "day", "on {day}", "{day}"),
        ),
    ),
    Scene(
        "Our {animal} is called {name}. It eats {small} {fruit} a day and sleeps in the {room}.",
        (
            Q("What is the animal called?", "name", "is called {name}", "{name}"),
            Q("Where does it sleep?", "place", "sleeps in the {room}", "in the {room}"),
            Q("What does it eat?", "food", "eats {small} {fruit} a day", "{fruit}"),
        ),
    ),
    Scene(
        "{town} beat {town2} by {tens} points to {teen}. {name} {surname} scored the last basket.",
        (
            Q("Which team won?", "winner", "{town} beat {town2}", "{town}"),
            Q(
                "Who scored last?",
                "scorer",
                "{name} {surname} scored the last basket",
                "{name} {surname}",
            ),
            Q("How many points did the losers get?", "points", "to {teen}", "{teen}"),
        ),
    ),
    Scene(
        "At the concert {name} played the {music} and {name2} played the {music2}. "
        "{hundred} people came.",
        (
            Q(
                "Which instrument did {name2} play?",
                "instrument",
                "{name2} played the {music2}",
                "the {music2}",
            ),
            Q("How many people came?", "number of people", "{hundred} people came", "{hundred}"),
            Q("Who played the {music}?", "player", "{name} played the {music}", "{name}"),
        ),
    ),
    Scene(
        "Weather for {town}: fog until {hour}, then sun. On {day} the wind reaches {tens} km per "
        "hour.",
        (
            Q("How long does the fog last?", "end of the fog", "fog until {hour}", "until {hour}"),
            Q("When will it be windy?", "day", "On {day} the wind", "{day}"),
            Q("How strong is the wind?", "wind speed", "{tens} km per hour", "{tens} km per hour"),
        ),
    ),
    Scene(
        "Room {teen} is for maths on {day}. The new teacher, Ms {surname}, wears a {colour} coat.",
        (
            Q("What is the teacher's name?", "teacher", "Ms {surname}", "Ms {surname}"),
            Q("In which room is maths?", "room", "Room {teen} is for maths", "room {teen}"),
            Q("What colour is the coat?", "colour", "a {colour} coat", "{colour}"),
        ),
    ),
    Scene(
        "Old {surname} was a {job}. In {year} he carved a {animal} from {wood} wood for the king.",
        (
            Q("What was the old man's work?", "work", "was a {job}", "{job}"),
            Q("Which wood was used?", "wood", "from {wood} wood", "{wood}"),
            Q("What did he carve?", "carving", "carved a {animal}", "a {animal}"),
        ),
    ),
    Scene(
        "The juice called {colour} sun is made of {fruit} and water. One bottle holds {hundred} "
        "millilitres and costs {small} dollars.",
        (
            Q("What is the juice made of?", "fruit", "made of {fruit}", "{fruit} and water"),
            Q(
                "How much does one bottle hold?",
                "volume",
                "{hundred} millilitres",
                "{hundred} millilitres",
            ),
            Q("What does a bottle cost?", "price", "costs {small} dollars", "{small} dollars"),
        ),
    ),
    Scene(
        "The train to {town} at {late} was late because a {animal} stood on the "
        "track near {town2}.",
        (
            Q("Where does the train go?", "goal of the trip", "train to {town}", "{town}"),
            Q(
                "Why was the train late?",
                "reason",
                "a {animal} stood on the track",
                "a {animal} stood on the track",
            ),
            Q("Near which town was the track blocked?", "town", "near {town2}", "{town2}"),
        ),
    ),
    Scene(
        "The inn by the {wood} tree has {tens} rooms. Breakfast starts at {hour}, and the {job} "
        "who runs it keeps a {animal}.",
        (
            Q("When does breakfast start?", "time", "starts at {hour}", "{hour}"),
            Q("How many rooms does the inn have?", "number of rooms", "has {tens} rooms", "{tens}"),
            Q("Which animal lives at the inn?", "animal", "keeps a {animal}", "a {animal}"),
        ),
    ),
    Scene(
        "The chess club meets every {day} in the {room}. Joining costs {teen} dollars; {name} "
        "keeps the list.",
        (
            Q("How much is it to join?", "cost", "costs {teen} dollars", "{teen} dollars"),
            Q("Who keeps the list?", "person", "{name} keeps the list", "{name}"),
            Q("When does the club meet?", "day", "every {day}", "{day}"),
        ),
    ),
)
