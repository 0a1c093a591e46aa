"""Answers: from prompts as people write them to completions, by the run's own template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from halfbyte.api.opening import Opened
from halfbyte.data.builtin import load_builtin
from halfbyte.data.records import Message
from halfbyte.infer import PRESETS, Completion, Engine, Request, Sampling


def sampling(preset: str = "deterministic", **given: Any) -> Sampling:
    """A preset and what is given beside it; `stop` is a tuple of stop strings.

    Raises:
        InputError: a value out of its range.
    """
    stops = tuple(given.pop("stop", ()))
    known = {one.name for one in fields(Sampling)}
    values = {**PRESETS[preset], **{key: given[key] for key in given if key in known}}
    return Sampling(**values, stop_strings=stops)


def with_template(opened: Opened, wanted: Sampling) -> Sampling:
    """The same sampling with the marks that end an answer in this template."""
    values = {one.name: getattr(wanted, one.name) for one in fields(Sampling)}
    values["stop_ids"] = tuple(opened.template.stop_ids)
    values["stop_strings"] = (*wanted.stop_strings, *opened.template.stop_strings)
    return Sampling(**values)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with the context it is to be answered from, if any."""

    prompt: str
    context: str | None = None


def demo_questions() -> list[Question]:
    """The built-in examples: one for each kind of task."""
    return [Question(row.prompt[0].content, row.context) for row in load_builtin("demo")]


def answer(
    opened: Opened,
    asked: Sequence[str | Question],
    wanted: Sampling,
    *,
    system: str | None = None,
    base: bool = False,
) -> list[Completion]:
    """One completion for each question (a text is one without context), in order; `base` answers
    with the adapter off.

    Raises:
        InputError: a prompt is longer than the model's context.
    """
    system = system if system is not None else opened.config.data.system
    first = (Message("system", system),) if system else ()
    chosen = with_template(opened, wanted)
    adapter = None if base else opened.adapter

    def request(one: Question) -> Request:
        turns = (*first, Message("user", one.prompt))
        return Request(tuple(opened.template.encode_prompt(turns, one.context)), chosen, adapter)

    requests = [request(Question(one) if isinstance(one, str) else one) for one in asked]
    return Engine(opened.model, opened.tokenizer).generate(requests)
