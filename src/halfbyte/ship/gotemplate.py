"""Chat templates in Ollama's language: found by asking the Jinja template, never by translating it.

Ollama renders Go templates, which cannot hold every Jinja template. Most chat templates however
put fixed texts around each role's message. Those texts are found by rendering messages with
words that occur nowhere else, a Go template is written from them, and it must then render every
trial chat to the very same text; otherwise it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from halfbyte.data.records import Message
from halfbyte.errors import InputError

RenderText = Callable[[Sequence[Message]], str]
_WORDS: Final = {"system": "zqsystemqz", "user": "zquserqz", "assistant": "zqanswerqz"}


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed texts of a chat template.

    `start` begins every prompt; `system`, `user` and `answer` are what stands before and after
    each message; `unsaid` stands in place of a system message where there is none; `prompt` asks
    for the answer. `trims`: contents lose white space around them. `folded`: the system text goes
    to the front of the first user message, with `joint` between them.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    answer: tuple[str, str]
    unsaid: str
    prompt: str
    joint: str | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, as Ollama renders `go_template` for the same messages."""
        return self.start + self._system(messages) + self._turns(messages) + self.prompt

    def _system(self, messages: Sequence[Message]) -> str:
        texts = [message.content for message in messages if message.role == "system"]
        if not texts:
            return self.unsaid
        if self.system is None:
            return ""
        return "\n\n".join(texts).join(self.system)

    def _turns(self, messages: Sequence[Message]) -> str:
        folded = self.system is None
        first = next((m.content for m in messages if m.role == "system"), None) if folded else None
        parts = []
        for message in messages:
            if message.role == "user":
                lead = f"{first}{self.joint}" if first is not None else ""
                first = None
                parts.append(f"{self.user[0]}{lead}{message.content}{self.user[1]}")
            elif message.role == "assistant":
                parts.append(message.content.join(self.answer))
        return "".join(parts)

    def go_template(self) -> str:
        """The template for a Modelfile.

        `.Messages` holds the system message too; `.System` is its text. Ollama itself fills
        `.Messages` for both of its endpoints.
        """
        lead = ""
        if self.system is None:
            system = _go(self.unsaid)
            lead = f"{{{{ if and (eq $i 0) $.System }}}}{{{{ $.System }}}}{_go(self.joint or '')}"
            lead += "{{ end }}"
        else:
            before, after = map(_go, self.system)
            said = f"{before}{{{{ .System }}}}{after}"
            unsaid = f"{{{{ else }}}}{_go(self.unsaid)}" if self.unsaid else ""
            system = f"{{{{ if .System }}}}{said}{unsaid}{{{{ end }}}}"
        user = f"{_go(self.user[0])}{lead}{{{{ .Content }}}}{_go(self.user[1])}"
        answer = f"{_go(self.answer[0])}{{{{ .Content }}}}{_go(self.answer[1])}"
        return (
            f"{_go(self.start)}{system}"
            "{{ range $i, $message := .Messages }}"
            f'{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
            "{{ end }}"
            f"{_go(self.prompt)}"
        )


def _go(text: str) -> str:
    """Fixed text inside a Go template; what would open an action is written as a string."""
    if "{{" not in text and "}}" not in text:
        return text
    return "{{ " + '"' + re.sub(r'(["\\])', r"\\\1", text).replace("\n", "\\n") + '"' + " }}"
