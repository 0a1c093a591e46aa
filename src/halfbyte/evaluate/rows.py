"""Examples into rows: what scores need to know of an example, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.data.records import Example
from halfbyte.evaluate.records import Row
from halfbyte.evaluate.scores.labels import closed_labels


def rows_from(examples: Sequence[Example]) -> tuple[Row, ...]:
    """One Row for each example, in order; its index is its place.

    The closed set of labels is the row's `labels` (or `choices`) column; where no row has one, it
    is found in the references as a whole. Plain-text examples have no reference to be answered.
    """
    rows = [_row(index, example) for index, example in enumerate(examples)]
    if any(row.labels for row in rows) or not all(row.references for row in rows):
        return tuple(rows)
    labels = closed_labels([row.reference for row in rows], [row.prompt for row in rows])
    return tuple(replace(row, labels=labels) for row in rows)


def _row(index: int, example: Example) -> Row:
    extra = _plain(example.extra)
    answered = bool(example.messages)
    more = [text for text in _texts(extra, "references") if text != example.reference]
    return Row(
        index=index,
        prompt="\n\n".join(message.content for message in example.prompt),
        references=(example.reference, *more) if answered else (),
        context=example.context,
        facts=example.facts,
        labels=tuple(_texts(extra, "labels") or _texts(extra, "choices")),
        extra=extra,
    )


def _texts(extra: Mapping[str, Any], name: str) -> list[str]:
    value = extra.get(name)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return []


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The columns as JSON types; what JSON cannot hold (dates of a Parquet file) as text."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(extra), default=str))
    return plain
