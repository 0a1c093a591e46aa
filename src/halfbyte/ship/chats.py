"""Twenty chats an export is tried on: what tokenizers and templates are known to trip over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from halfbyte.data.records import Message

Ids = tuple[int, ...]
Render = Callable[[Sequence[Message]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that end with a user's, and the ids they have in training and in `halfbyte chat`."""

    messages: tuple[Message, ...]
    ids: Ids


_SYSTEM: Final = "You are a careful assistant. Answer briefly."
_TEXTS: Final[tuple[tuple[str, ...], ...]] = (
    # one to three turns each: user, assistant, user …
    ("Hello!",),
    ("What is the capital of France?",),
    ("Count: 1, 2, 3, 10, 100, 1000, 12345678.",),
    ("Say this in Hinglish: remind me at 7:30 am to call mom.",),
    ("Fix this:\n\n1. frist\n2.  second\n\n   3. third",),
    ("def f(x):\n\treturn x**2  # two  spaces\n\nf(3)",),
    ("I'm, you're, he'd, we'll, they've, it's, DON'T",),
    ("Wie heißt die Straße in Köln? Größe: 1,5 m²",),
    ("Напиши короткое письмо другу.",),
    ("请用一句话介绍你自己。",),
    ("नमस्ते, आप कैसे हैं?",),
    ("Emoji: 👍🏽 👩‍👩‍👧 🇫🇷 and e\u0301 combining",),
    ("  leading spaces, trailing spaces and a tab\tinside  ",),
    ('Is <b>this</b> & that {"json": [1, 2.5e-3, null]} ok? https://example.com/a?b=c#d',),
    ("ALL CAPS, CamelCase, snake_case, kebab-case, x==y!=z",),
    ("Hi", "Hello! How can I help?", "Tell me a joke."),
    ("2+2?", "4", "And times 10?", "40", "Minus 15?"),
    ("Translate: good night", "gute Nacht", "And in Spanish?"),
    ("a" * 64 + " " + "0" * 32,),
    ("A longer question. " * 12 + "What was repeated?",),
)
_WITH_SYSTEM: Final = frozenset({1, 4, 15, 18})  # these begin with a system message


def chats(render: Render) -> tuple[Chat, ...]:
    """The twenty chats, with the ids `render` gives their messages."""
    made = []
    for place, texts in enumerate(_TEXTS):
        first = (Message("system", _SYSTEM),) if place in _WITH_SYSTEM else ()
        turns = tuple(
            Message("assistant" if turn % 2 else "user", text) for turn, text in enumerate(texts)
        )
        messages = (*first, *turns)
        made.append(Chat(messages, tuple(render(messages))))
    return tuple(made)
