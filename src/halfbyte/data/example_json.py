"""Examples as JSON lines: the form they are stored in, which our own reader reads again."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic_core import from_json, to_json

from halfbyte.data.records import Example, Message

_DECODER: Final = json.JSONDecoder()
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, default=str, separators=(",", ":"))


def dump_example(example: Example) -> bytes:
    """One line of JSON, without its line break; the `messages` or the `text` format."""
    row: dict[str, Any] = {}
    if example.text is not None:
        row["text"] = example.text
    else:
        row["messages"] = [_message(message) for message in example.messages]
    if example.context is not None:
        row["context"] = example.context
    if example.facts:
        row["facts"] = example.facts
    if not example.extra:
        return to_json(row)
    row["extra"] = dict(example.extra)  # dates and whatever else a Parquet file may hold
    return _ENCODER.encode(row).encode()


def load_example(line: bytes) -> Example:
    """The inverse of `dump_example`."""
    try:
        row = from_json(line)
    except ValueError:  # rows nested more deeply than it takes, or no row at all
        row = _DECODER.decode(line.decode())
    return Example(
        messages=tuple(
            Message(message["role"], message["content"], message.get("weight", 1))
            for message in row.get("messages", ())
        ),
        context=row.get("context"),
        text=row.get("text"),
        facts=tuple(row.get("facts", ())),
        extra=row.get("extra", {}),
    )


def _message(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    return row if message.weight else {**row, "weight": 0}
