"""Classification rows: a sentence, a closed set of labels, the clue that decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from halfbyte.data.builtin.make import sentences, tasks
from halfbyte.data.builtin.make.row import Row, either, rounds

_ANYWHERE: Final = (
    "Classify this as {labels}: {text}",
    "Choose one label, {labels}. Text: {text}",
    "{text}\nWhich label fits: {labels}?",
)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A closed set: its sentences by label, its own ways to ask, what a clue for each means."""

    items: Mapping[str, tuple[str, ...]]
    asks: tuple[str, ...]
    meaning: Mapping[str, str]


SETS: Final = (
    LabelSet(
        sentences.REVIEWS,
        (
            "Is this review {labels}? {text}",
            "How does the writer feel, {labels}? {text}",
            "Review: {text}\nSay whether it is {labels}.",
        ),
        {"positive": "These words praise.", "negative": "These words show that something is bad."},
    ),
    LabelSet(
        sentences.TOPICS,
        (
            "What is this sentence about, {labels}? {text}",
            "Pick the topic ({labels}): {text}",
            "{text}\nName the topic: {labels}.",
        ),
        {
            "sport": "These words belong to sport.",
            "food": "These words belong to cooking and eating.",
            "music": "These words belong to music.",
            "weather": "These words describe the weather.",
        },
    ),
    LabelSet(
        sentences.ANIMALS,
        (
            "Which group is this animal in: {labels}? {text}",
            "Sort the animal into {labels}. {text}",
            "{text}\nChoose its group: {labels}.",
        ),
        {
            "mammal": "Mammals have fur or hair and give milk.",
            "bird": "Only birds have feathers.",
            "fish": "Fish live in water and have gills.",
            "insect": "Insects have six legs.",
            "reptile": "Reptiles have dry, scaly skin.",
        },
    ),
    LabelSet(
        sentences.MATTER,
        (
            "Is it a {labels}? {text}",
            "Name the state of matter ({labels}): {text}",
            "{text}\nWhich state of matter is this, {labels}?",
        ),
        {
            "solid": "A solid keeps its shape.",
            "liquid": "A liquid flows but keeps its volume.",
            "gas": "A gas spreads and can be squeezed.",
        },
    ),
    LabelSet(
        sentences.TENSES,
        (
            "Is this sentence in the {labels}? {text}",
            "Find the tense ({labels}): {text}",
            "{text}\nWhen does it happen: {labels}?",
        ),
        {
            "past": "This verb form tells of something finished.",
            "present": "This verb form tells of now or of a habit.",
            "future": "This verb form tells of something still to come.",
        },
    ),
    LabelSet(
        tasks.OPERATIONS,
        (
            "Which operation does this need: {labels}? {text}",
            "{text}\nDo not solve it; name the operation: {labels}.",
            "Name the right operation ({labels}) for this problem. {text}",
        ),
        {
            "addition": "Putting amounts together is addition.",
            "subtraction": "Taking away or comparing is subtraction.",
            "multiplication": "Counting equal groups is multiplication.",
            "division": "Making equal shares or groups is division.",
        },
    ),
    LabelSet(
        tasks.MESSAGES,
        (
            "What kind of message is this: {labels}? {text}",
            "Sort the message into {labels}. {text}",
            "A customer writes: {text}\nFile it under {labels}.",
        ),
        {
            "question": "A question word asks for information.",
            "complaint": "The writer is unhappy about a problem.",
            "thanks": "The writer is grateful.",
            "request": "The writer asks for something to be done.",
        },
    ),
    LabelSet(
        tasks.CLAIMS,
        (
            "Is this {labels}? {text}",
            "Decide between {labels}: {text}",
            "{text}\nCan it be checked? Say {labels}.",
        ),
        {
            "fact": "This can be checked.",
            "opinion": "This is what somebody feels or wants.",
        },
    ),
    LabelSet(
        tasks.SUBJECTS,
        (
            "Which school subject is this: {labels}? {text}",
            "A task from class: {text}\nWhich lesson is it, {labels}?",
            "Match this task to {labels}. {text}",
        ),
        {
            "maths": "Numbers and shapes belong to maths.",
            "science": "Nature and how things work belong to science.",
            "history": "People and events of the past belong to history.",
            "art": "Pictures, colours and shaping belong to art.",
        },
    ),
    LabelSet(
        tasks.MAIL,
        (
            "Is this mail {labels}? {text}",
            "Mark the mail as {labels}. {text}",
            "Mail: {text}\nWould you mark it {labels}?",
        ),
        {
            "spam": "It wants to trick or sell.",
            "genuine": "It is an ordinary note about daily life.",
        },
    ),
)


def classification_rows(rng: random.Random) -> Iterator[Row]:
    """Every sentence of every set once, with the ways to ask spread evenly."""
    for chosen in SETS:
        sentences_of = [(text, label) for label, texts in chosen.items.items() for text in texts]
        asks = rounds((*chosen.asks, *_ANYWHERE), len(sentences_of), rng)
        for (marked, label), ask in zip(sentences_of, asks, strict=True):
            labels = rng.sample(list(chosen.items), len(chosen.items))
            clue = marked[marked.index("[") + 1 : marked.index("]")]
            text = marked.replace("[", "").replace("]", "")
            yield Row(
                kind="classification",
                instruction=ask.format(labels=either(labels), text=text),
                steps=(f'The clue is "{clue}".', chosen.meaning[label]),
                answer=label,
                facts=(label,),
                labels=tuple(chosen.items),
            )
