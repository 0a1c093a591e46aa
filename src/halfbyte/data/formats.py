"""Formats: what the columns of a row mean, and what makes a row unusable."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from halfbyte.data.faults import Fault
from halfbyte.data.records import Example, Message, Role
from halfbyte.errors import DataError

Record = Mapping[str, Any]
FormatName = Literal["messages", "sharegpt", "completion", "instruction", "text"]

# part → the column names it goes by, the preferred one first
_ASKED: Final = ("instruction", "question", "query")
_ANSWERED: Final = ("response", "output", "answer", "completion", "target")
_CONTEXT: Final = ("context", "input", "passage")
_TALK: Final = ("messages", "conversations", "conversation")
_COMMON: Final = {"system": ("system",), "facts": ("facts",), "extra": ("extra",)}
_NAMES: Final[Mapping[FormatName, Mapping[str, tuple[str, ...]]]] = {
    "messages": {"messages": _TALK, "context": ("context",), **_COMMON},
    "sharegpt": {"messages": ("conversations", "conversation", "messages"), **_COMMON},
    "completion": {"prompt": ("prompt",), "response": ("completion",), **_COMMON},
    "instruction": {
        "instruction": (*_ASKED, "prompt", "input"),
        "response": _ANSWERED,
        "context": _CONTEXT,
        **_COMMON,
    },
    "text": {"text": ("text",), **_COMMON},
}
# The words for roles in OpenAI's and ShareGPT's formats.
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_SAMPLE: Final = 100  # rows that decide on the format of a file


@dataclass(frozen=True, slots=True)
class Format:
    """How to read the rows of one file: its kind, and which column plays which part."""

    name: FormatName
    columns: Mapping[str, str]

    def __str__(self) -> str:
        optional = {"system", "facts", "extra"}
        parts = [
            part if part == column else f"{part} from {column!r}"
            for part, column in self.columns.items()
            if part not in optional or part != column
        ]
        return f"{self.name} ({', '.join(parts)})"


class _BadRowError(Exception):
    def __init__(self, kind: str, detail: str, mend: str = "") -> None:
        super().__init__(detail)
        self.fault = Fault(kind, detail, mend)


def recognise(
    rows: Sequence[Record],
    name: FormatName | Literal["auto"],
    mapping: Mapping[str, str],
    file: str,
) -> Format:
    """The format of a file from its first rows; `name` may be given, and columns mapped.

    Raises:
        DataError: no format fits.
    """
    sample = rows[:_SAMPLE]
    seen = dict.fromkeys(column for row in sample for column in row)
    absent = [
        f"{part}: no column {column!r}" for part, column in mapping.items() if column not in seen
    ]
    if absent:
        raise DataError(
            f"{file}: data.columns names columns that are not there:",
            absent,
            f"Its columns: {', '.join(map(repr, seen)) or 'none'}.",
        )
    if name == "auto":
        kinds = Counter(kind for row in sample if (kind := _kind(_renamed(row, mapping))))
        if not kinds:
            raise _unknown(list(seen), file)
        name = kinds.most_common(1)[0][0]
    shape = [row for row in sample if _kind(_renamed(row, mapping)) == name] or list(sample)
    return Format(name, _columns(name, shape, mapping))


def _unknown(columns: list[str], file: str) -> DataError:
    return DataError(
        f"{file}: its columns fit no format: {', '.join(map(repr, columns)) or 'none'}",
        hint="Known: instruction + response (or output), prompt + completion, messages, "
        "conversations, text. For other names give data.columns, e.g. "
        "'data.columns={instruction: question, response: reply}'.",
    )


def _renamed(row: Record, mapping: Mapping[str, str]) -> Record:
    taken = set(mapping.values())
    parts = {part: row[column] for part, column in mapping.items() if column in row}
    return {**{key: value for key, value in row.items() if key not in taken}, **parts}


def _kind(row: Record) -> FormatName | None:
    for column in _TALK:
        turns = _unpacked(row.get(column))
        if isinstance(turns, list):
            first = turns[0] if turns else {}
            return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"
    if "prompt" in row and "completion" in row:
        return "completion"
    asked = [name for name in _NAMES["instruction"]["instruction"] if name in row]
    if asked and any(name in row for name in _ANSWERED):
        return "instruction"
    return "text" if "text" in row else None


def _columns(
    name: FormatName, sample: Sequence[Record], mapping: Mapping[str, str]
) -> dict[str, str]:
    seen = {column for row in sample for column in row} - set(mapping.values())
    chosen: dict[str, str] = {}
    for part, names in _NAMES[name].items():
        # in `completion` rows the answer may be mapped by either word
        word = mapping.get(part) or mapping.get(names[0])
        free = [column for column in names if column in seen and column not in chosen.values()]
        if word or free:
            chosen[part] = word or free[0]
    return chosen


def to_example(row: Record, form: Format, system: str | None = None) -> Example | Fault:
    """Read a row; `system` is put before conversations that have no system message.

    What follows the last answer of a conversation is left out (`has_trailing_turns`).
    """
    try:
        return _read(row, form, system)
    except _BadRowError as bad:
        kind = _kind(row)
        if bad.fault.kind == "missing column" and kind not in {None, form.name}:
            return Fault(
                "in another format",
                f"a row of the {kind} format, while the file is {form.name}",
                "put the formats into separate files",
            )
        return bad.fault


def has_trailing_turns(row: Record, form: Format, example: Example) -> bool:
    """Whether the conversation goes on after its last answer."""
    if form.name not in {"messages", "sharegpt"}:
        return False
    turns = _unpacked(row[form.columns["messages"]])
    last = turns[-1]
    return _ROLES.get(last.get("role", last.get("from"))) != example.messages[-1].role


def _read(row: Record, form: Format, system: str | None) -> Example:
    columns = form.columns
    used = set(columns.values())
    extra = {key: value for key, value in row.items() if key not in used}
    if isinstance(more := row.get(columns.get("extra", "")), Mapping):
        extra |= more
    facts = _facts(row.get(columns.get("facts", "")))
    if form.name == "text":
        return Example(text=_filled(row, form, "text"), facts=facts, extra=extra)
    context = _optional(row, form, "context")
    if form.name in {"messages", "sharegpt"}:
        messages = _conversation(_value(row, form, "messages"))
    else:
        asked = "prompt" if form.name == "completion" else "instruction"
        answer = _filled(row, form, "response", "empty answer")
        messages = (Message("user", _filled(row, form, asked)), Message("assistant", answer))
    own = _optional(row, form, "system") or system
    if own and messages[0].role != "system":
        messages = (Message("system", own), *messages)
    return Example(messages, context, facts=facts, extra=extra)


def _value(row: Record, form: Format, part: str) -> Any:
    column = form.columns.get(part, part)
    if column not in row:
        raise _BadRowError("missing column", f"there is no {column!r}")
    return row[column]


def _filled(row: Record, form: Format, part: str, kind: str = "empty prompt") -> str:
    text = _text(_value(row, form, part), form.columns.get(part, part))
    if not text.strip():
        raise _BadRowError(kind, f"{form.columns.get(part, part)!r} is empty")
    return text


def _optional(row: Record, form: Format, part: str) -> str | None:
    column = form.columns.get(part)
    if column is None or row.get(column) is None:
        return None
    return _text(row[column], column).strip() or None


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _BadRowError("not a text", f"{where!r} is {_named(value)}, not a text")
    if isinstance(value, float) and not math.isfinite(value):
        return ""  # how Parquet and pandas write a missing text
    text = str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _BadRowError(
                "broken text",
                f"{where!r} holds half of a surrogate pair at character {error.start + 1}",
            ) from None
    return text


def _named(value: Any) -> str:
    names = {bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def _facts(value: Any) -> tuple[str, ...]:
    value = _unpacked(value)
    if value is None or value == "":
        return ()
    return tuple(_text(fact, "facts") for fact in (value if isinstance(value, list) else [value]))


def _unpacked(value: Any) -> Any:
    # CSV has no lists: they stand there as JSON
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _conversation(turns: Any) -> tuple[Message, ...]:
    turns = _unpacked(turns)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise _BadRowError(
            "not a conversation", f"a conversation is a list of turns, not {_named(turns)}"
        )
    messages = tuple(_turn(turn, place) for place, turn in enumerate(turns, 1))
    answers = [place for place, turn in enumerate(messages) if turn.role == "assistant"]
    if not answers:
        raise _BadRowError("no assistant turn", "no turn of the assistant to train")
    messages = messages[: answers[-1] + 1]
    for place, (before, turn) in enumerate(zip((None, *messages), messages, strict=False), 1):
        if turn.role == "system" and place > 1:
            raise _BadRowError("wrong role", f"turn {place}: a system message is not the first")
        if turn.role == "assistant" and (before is None or before.role != "user"):
            raise _BadRowError("wrong role", f"turn {place}: the assistant answers no user")
    if not any(turn.weight for turn in messages if turn.role == "assistant"):
        raise _BadRowError("no trained turn", "every turn of the assistant has weight 0")
    return messages


def _turn(turn: Any, place: int) -> Message:
    if not isinstance(turn, Mapping):
        raise _BadRowError("not a conversation", f"turn {place} is {_named(turn)}, not an object")
    word = turn.get("role", turn.get("from"))
    role = _ROLES.get(word) if isinstance(word, str) else None
    if role is None:
        raise _BadRowError(
            "wrong role", f"turn {place}: unknown role {word!r}", "use system, user, assistant"
        )
    content = _text(_content(turn.get("content", turn.get("value")), place), f"turn {place}")
    if role != "system" and not content.strip():
        kind = "empty answer" if role == "assistant" else "empty prompt"
        raise _BadRowError(kind, f"turn {place} is empty")
    weight = turn.get("weight", 1)
    if weight is None:
        weight = 1
    if weight not in (0, 1) or (weight == 0 and role != "assistant" and "weight" not in turn):
        raise _BadRowError("wrong weight", f"turn {place}: weight {weight!r}", "use 0 or 1")
    return Message(role, content, int(weight))


def _content(content: Any, place: int) -> Any:
    if not isinstance(content, list):
        return content
    if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise _BadRowError("not a text", f"turn {place} holds parts that are not text")
