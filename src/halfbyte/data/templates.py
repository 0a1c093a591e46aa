"""Templates: from messages to text, to ids, and to the tokens that are trained.

One Template serves training, evaluation, chat and serving, so that a prompt has the same ids
everywhere. Which tokens are trained follows from comparing ids: those of a prompt (rendered with
its generation prompt) must begin those of the whole row; what comes after them, through the first
end mark, is the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from halfbyte.data.faults import Fault
from halfbyte.data.jinja_sandbox import SANDBOX, Refusal, Rendered, Reply, Row, render_trusted
from halfbyte.data.labels import Plan, Planned, TrainOn, label_rows
from halfbyte.data.records import Encoded, Example, Message
from halfbyte.data.shapes import Shapes
from halfbyte.data.template_sources import BUILT_IN, STOP_STRINGS, WITH_BOS, WITH_END
from halfbyte.data.tokens import Tokens
from halfbyte.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LARGEST: Final = 1 << 18  # characters of a template; the longest in use have some 20,000
# Words that no template holds itself.
_PROBE: Final = (Message("user", "qprobeq"), Message("assistant", "aprobea"))
_SYSTEM_PROBE: Final = (Message("system", "sprobes"), *_PROBE)


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """How messages become ids for one tokenizer.

    `source` is the whole truth as a chat template: saved with the tokenizer, transformers renders
    the same text from it (`context` is a variable where `takes_context`, else it is put under the
    first user message). `stop_ids`: every id that ends an answer. `stop_strings`: what a model
    that has not learned to stop writes next.
    """

    name: str
    source: str
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    takes_context: bool
    takes_system: bool
    trusted: bool
    variables: Mapping[str, str]
    tokens: Tokens
    shapes: Shapes

    @classmethod
    def load(cls, name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
        """The template of this name for this tokenizer.

        `name`: `auto` (the tokenizer's own, or `instruction` where it has none), `tokenizer`,
        `instruction`, `alpaca`, `plain`, or the path of a Jinja file.

        Raises:
            DataError: no such template; the tokenizer has no chat template or no end mark.
            IntegrityError: the template is hostile, or loses messages.
        """
        name, source = _find(name, tokenizer)
        tokens = Tokens(tokenizer)
        if tokens.eos is None:
            raise DataError(
                "this tokenizer has no end-of-text token: a model could not learn to stop",
                hint="Set eos_token in its tokenizer_config.json.",
            )
        variables = {
            key: str(value)
            for key, value in tokenizer.special_tokens_map.items()
            if isinstance(value, str)
        }
        draft = cls(
            name=name,
            source=source,
            stop_ids=(),
            stop_strings=STOP_STRINGS.get(name, ()),
            takes_context=False,
            takes_system=True,
            trusted=name in BUILT_IN,
            variables=variables,
            tokens=tokens,
            shapes=Shapes(source),
        )
        return draft._probed()

    @property
    def hash(self) -> str:
        """sha256 of what decides the text of a row."""
        parts = [self.source, sorted(self.variables.items()), self.takes_system]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def render(self, example: Example) -> str:
        """The whole text of a row.

        Raises:
            DataError: the template refuses the row.
        """
        if example.text is not None:
            return self._whole_text(example.text)
        return self._render(example.messages, example.context, ()).text

    def render_prompt(self, example: Example) -> str:
        """The text before the last answer, with the generation prompt.

        Raises:
            DataError: the template refuses the row.
        """
        return self.prompt_text(example.prompt, example.context)

    def prompt_text(self, messages: Sequence[Message], context: str | None = None) -> str:
        """The text from which an answer to these messages is generated.

        Raises:
            DataError: the template refuses the messages.
        """
        # the whole is rendered as well and not used: there is one kind of request
        rendered = self._render(messages, context, (len(messages),))
        prompt = rendered.prompts[0]
        return rendered.text[:prompt] if isinstance(prompt, int) else prompt

    def encode_prompt(self, messages: Sequence[Message], context: str | None = None) -> list[int]:
        """The ids from which an answer is generated: those `encode` puts before it.

        Raises:
            DataError: the template refuses the messages.
        """
        return self.tokens.ids(self.prompt_text(messages, context))

    def encode(self, example: Example, train_on: TrainOn = "answers") -> Encoded:
        """A row as ids, with the tokens that are trained.

        Raises:
            DataError: the row does not fit the template.
        """
        (done,) = self.encode_many([example], train_on)
        if isinstance(done, Fault):
            raise DataError(done.detail)
        return done

    def encode_many(
        self, examples: Sequence[Example], train_on: TrainOn = "answers"
    ) -> list[Encoded | Fault]:
        """Many rows at once, in order: tokenizers are several times faster in batches.

        Raises:
            IntegrityError: the template is hostile.
        """
        return self.label(self.render_many(examples, train_on))

    def render_many(
        self, examples: Sequence[Example], train_on: TrainOn = "answers"
    ) -> list[Planned]:
        """The first half of `encode_many`: the texts of rows.

        Raises:
            IntegrityError: the template is hostile.
        """
        plans = [Plan.of(example, train_on) for example in examples]
        rows = [
            self._row(example.messages, example.context, plan.cuts)
            for example, plan in zip(examples, plans, strict=True)
            if example.text is None
        ]
        rendered = iter(self.shapes.render(rows, self._reply))
        texts: list[Rendered | Refusal] = [
            next(rendered) if each.text is None else Rendered(self._whole_text(each.text), ())
            for each in examples
        ]
        return list(zip(plans, texts, strict=True))

    def label(self, rows: Sequence[Planned]) -> list[Encoded | Fault]:
        """The second half of `encode_many`: ids of texts, and which are trained."""
        return label_rows(rows, self.tokens, self.stop_ids)

    def _probed(self) -> Template:
        """The template with what a trial of it shows: marks, roles and variables."""
        reply = self._reply([self._row(_PROBE, None, (1,)), self._row(_SYSTEM_PROBE, None, ())])
        plain, system = reply.rows
        if isinstance(plain, Refusal):
            raise IntegrityError(
                f"the template {self.name} refuses a plain question and answer: {plain.reason}"
            )
        if not all(message.content in plain.text for message in _PROBE):
            raise IntegrityError(f"the template {self.name} leaves messages out")
        bos = self.variables.get("bos_token", "")
        own = self.name == "tokenizer"  # knows itself whether it begins with BOS
        if not own and self.tokens.adds_bos and not plain.text.startswith(bos):
            return self._around(WITH_BOS)
        end = _end_mark(self.tokens, plain.text)
        if end is None and self.source.startswith(WITH_END):
            raise IntegrityError(f"the template {self.name} does not end answers with a mark")
        if end is None:
            return self._around(WITH_END)
        return replace(
            self,
            stop_ids=tuple(dict.fromkeys((end, self.tokens.eos))),
            takes_context="context" in reply.reads,
            shapes=Shapes(self.source),
            takes_system=isinstance(system, Rendered) and "sprobes" in system.text,
        )

    def _around(self, before: str) -> Template:
        widened: Template = replace(self, source=before + self.source)
        return Template._probed(widened)

    def _whole_text(self, text: str) -> str:
        bos, eos = self.variables.get("bos_token", ""), self.variables["eos_token"]
        begin = bos if self.tokens.adds_bos and not text.startswith(bos) else ""
        return begin + text + ("" if text.endswith(eos) else eos)

    def _render(
        self, messages: Sequence[Message], context: str | None, cuts: Sequence[int]
    ) -> Rendered:
        (row,) = self.shapes.render([self._row(messages, context, cuts)], self._reply)
        if isinstance(row, Refusal):
            raise DataError(f"the template {self.name} refuses these messages: {row.reason}")
        return row

    def _reply(self, rows: Sequence[Row]) -> Reply:
        render = render_trusted if self.trusted else SANDBOX.render
        return render(self.source, self.variables, rows)

    def _row(self, messages: Sequence[Message], context: str | None, cuts: Sequence[int]) -> Row:
        guard = self.tokens.guard
        turns = [{"role": turn.role, "content": guard(turn.content)} for turn in messages]
        shift = 0
        if context is not None and not self.takes_context:
            _under_first_user(turns, guard(context))
        if not self.takes_system and turns and turns[0]["role"] == "system":
            shift = _into_first_user(turns)
        given = guard(context) if context is not None and self.takes_context else None
        return {"messages": turns, "context": given, "cuts": [cut - shift for cut in cuts]}


def _find(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "instruction"
    if name in BUILT_IN:
        return name, BUILT_IN[name]
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise DataError(
                "data.template: this tokenizer has no chat template",
                hint="Choose data.template=instruction (or alpaca, plain, a Jinja file).",
            )
        return name, _bounded(str(tokenizer.get_chat_template()), "the tokenizer's chat template")
    path = Path(name).expanduser()
    try:
        return name, _bounded(path.read_text(encoding="utf-8-sig"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.template: {name} is neither a template nor a readable file: {error}",
            hint="Templates: auto, tokenizer, instruction, alpaca, plain, or a Jinja file's path.",
        ) from None


def _bounded(source: str, where: str) -> str:
    if len(source) > _LARGEST:
        raise IntegrityError(f"{where}: {len(source):,} characters is too long for a template")
    return source


def _end_mark(tokens: Tokens, text: str) -> int | None:
    rest = text[text.rindex(_PROBE[1].content) + len(_PROBE[1].content) :].lstrip()
    marks = [mark for mark in tokens.control if mark and rest.startswith(mark)]
    return tokens.control[max(marks, key=len)] if marks else None


def _under_first_user(turns: list[dict[str, str]], context: str) -> None:
    for turn in turns:
        if turn["role"] == "user":
            turn["content"] += f"\n\n{context}"
            return


def _into_first_user(turns: list[dict[str, str]]) -> int:
    """Put the system text above the first user message; how many messages fewer there are."""
    if len(turns) < 2 or turns[1]["role"] != "user":
        return 0
    system = turns.pop(0)
    turns[0]["content"] = f"{system['content']}\n\n{turns[0]['content']}"
    return 1
