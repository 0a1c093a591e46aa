"""Chat templates in Ollama's language: found by asking the Jinja template, never by translating it.

Ollama renders Go templates, which cannot hold every Jinja template. Most chat templates however
put fixed texts around each role's message. Those texts are found by rendering messages with
words that occur nowhere else, and a Go template is written from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from halfbyte.data.records import Message
from halfbyte.errors import InputError

RenderText = Callable[[Sequence[Message]], str]
_SYSTEM: Final = Message("system", "zqsystemqz")
_USER: Final = Message("user", "zquserqz")
_ANSWER: Final = Message("assistant", "zqanswerqz")
_NEXT: Final = Message("user", "zqnextqz")


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed texts of a chat template.

    `start` begins every prompt; `system`, `user` and `answer` are what stands before and after
    each message; `unsaid` stands in place of a system message where there is none; `prompt` asks
    for the answer.
    """

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    unsaid: str
    prompt: str

    @classmethod
    def of(cls, render: RenderText, begin: str = "") -> Frame:
        """Find the texts of a template; `begin` (a BOS that Ollama adds itself) is left out.

        Raises:
            InputError: the template is no such frame.
        """

        def around(*messages: Message) -> list[str]:
            return _split(render(messages).removeprefix(begin), *messages)

        before, after = around(_USER)
        lead, between, _ = around(_SYSTEM, _USER)
        longer = around(_USER, _ANSWER, _NEXT)
        to_answer, to_user = longer[1:3]
        # where one text ends and the next begins is free wherever they always meet: at a line
        user_before = _line_start(_common_end(to_user, before, between))
        user_after = _line_end(_common_start(after, to_answer, to_user))
        opening = before.removesuffix(user_before)
        start = _line_end(_common_start(opening, lead))
        return cls(
            start=start,
            system=(lead.removeprefix(start), between.removesuffix(user_before)),
            user=(user_before, user_after),
            answer=(to_answer.removeprefix(user_after), to_user.removesuffix(user_before)),
            unsaid=opening.removeprefix(start),
            prompt=after.removeprefix(user_after),
        )

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, as Ollama renders `go_template` for the same messages."""
        system = "\n\n".join(m.content for m in messages if m.role == "system")
        parts = [self.start, system.join(self.system) if system else self.unsaid]
        for message in messages:
            if message.role != "system":
                frame = self.user if message.role == "user" else self.answer
                parts.append(message.content.join(frame))
        return "".join([*parts, self.prompt])

    def go_template(self) -> str:
        """The template for a Modelfile (`.System` is the text of all system messages)."""
        said = f"{_go(self.system[0])}{{{{ .System }}}}{_go(self.system[1])}"
        unsaid = f"{{{{ else }}}}{_go(self.unsaid)}" if self.unsaid else ""
        user = f"{_go(self.user[0])}{{{{ .Content }}}}{_go(self.user[1])}"
        answer = f"{_go(self.answer[0])}{{{{ .Content }}}}{_go(self.answer[1])}"
        return (
            f"{_go(self.start)}{{{{ if .System }}}}{said}{unsaid}{{{{ end }}}}"
            "{{ range .Messages }}"
            f'{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
            "{{ end }}"
            f"{_go(self.prompt)}"
        )


def _split(text: str, *messages: Message) -> list[str]:
    """The texts around the messages' words, each of which must be there once, in order."""
    parts = []
    for message in messages:
        before, found, text = text.partition(message.content)
        if not found or message.content in text:
            raise InputError(
                f"Ollama: the chat template does not show every {message.role} message once, so "
                "no Go template can stand for it",
                "Export with --to gguf; llama.cpp renders the template itself (--jinja).",
            )
        parts.append(before)
    return [*parts, text]


def _common_start(*texts: str) -> str:
    same = 0
    for chars in zip(*texts, strict=False):
        if len(set(chars)) > 1:
            break
        same += 1
    return texts[0][:same]


def _common_end(*texts: str) -> str:
    return _common_start(*(text[::-1] for text in texts))[::-1]


def _line_start(text: str) -> str:
    """The last line of a text, whole: from behind the line break before it."""
    place = text.rstrip("\n").rfind("\n")
    return text[place + 1 :]


def _line_end(text: str) -> str:
    """A text through its last line break; empty without one."""
    return text[: text.rfind("\n") + 1]


def _go(text: str) -> str:
    """Fixed text inside a Go template inside a Modelfile.

    What would open an action, close the quotes around the template, or be dropped by Ollama's
    parser for not being printable, is written as a Go string.
    """
    plain = all(char == "\n" or char.isprintable() for char in text)
    if plain and "{{" not in text and "}}" not in text and '"""' not in text:
        return text
    escaped = "".join(_escaped(char) for char in text)
    return f'{{{{ "{escaped}" }}}}'


def _escaped(char: str) -> str:
    if char in ('"', "\\"):
        return f"\\{char}"
    if char == "\n":
        return "\\n"
    return char if char.isprintable() and char not in "{}" else f"\\U{ord(char):08x}"
