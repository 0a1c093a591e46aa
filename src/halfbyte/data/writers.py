"""Writers: examples into JSONL, JSON, CSV or Parquet files, in any format that can hold them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from halfbyte.data.formats import FormatName
from halfbyte.data.records import Example
from halfbyte.errors import DataError
from halfbyte.run.files import HashingFile, write_atomic

Row = dict[str, Any]
Rows = Callable[[], Iterable[Row]]  # called once for each pass over the rows
_BATCH: Final = 1024
_SPEAKERS: Final = {"system": "system", "user": "human", "assistant": "gpt"}


def to_row(example: Example, form: FormatName) -> Row:
    """The example as a row of a format; what has no part in it keeps its own column.

    Raises:
        DataError: the format cannot hold the example without loss.
    """
    row = _said(example, form)
    if example.context is not None:
        row["context"] = example.context
    if example.facts:
        row["facts"] = list(example.facts)
    return {**example.extra, **row}


def _said(example: Example, form: FormatName) -> Row:
    turns = example.messages
    if form == "text" or example.text is not None:
        if form != "text" or example.text is None:
            kind = "a conversation" if example.text is None else "plain text"
            raise DataError(f"{kind} cannot be written in the {form} format")
        return {"text": example.text}
    if form == "messages":
        weight = [{} if turn.weight else {"weight": 0} for turn in turns]
        return {
            "messages": [
                {"role": turn.role, "content": turn.content, **more}
                for turn, more in zip(turns, weight, strict=True)
            ]
        }
    if form == "sharegpt" and all(turn.weight for turn in turns):
        return {
            "conversations": [
                {"from": _SPEAKERS[turn.role], "value": turn.content} for turn in turns
            ]
        }
    system: Row = {"system": turns[0].content} if turns[0].role == "system" else {}
    rest = turns[len(system) :]
    if [turn.role for turn in rest] != ["user", "assistant"] or not rest[1].weight:
        raise DataError(
            f"a conversation of several turns or of weight 0 cannot be written as {form}",
            hint="Choose the messages format.",
        )
    asked, answered = (
        ("instruction", "response") if form == "instruction" else ("prompt", "completion")
    )
    return {**system, asked: rest[0].content, answered: rest[1].content}


def write_rows(path: Path, rows: Rows) -> None:
    """Write rows as the file's suffix says; the file appears whole or not at all.

    Raises:
        DataError: the suffix stands for no format we write.
    """
    writers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise DataError(f"{path}: data is written as {', '.join(writers)}")
    write_atomic(path, lambda file: writer(file, rows))


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()


def _jsonl(file: HashingFile, rows: Rows) -> None:
    for row in rows():
        file.write(_line(row) + b"\n")


def _json(file: HashingFile, rows: Rows) -> None:
    lead = b"[\n"
    for row in rows():
        file.write(lead + _line(row))
        lead = b",\n"
    file.write(b"\n]\n" if lead == b",\n" else b"[]\n")


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows() for name in row))


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _csv(file: HashingFile, rows: Rows) -> None:
    names = _columns(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows():
        writer.writerow({name: _as_text(row.get(name)) for name in names})
        if buffer.tell() > 1 << 20:
            file.write(buffer.getvalue().encode())
            buffer.seek(0)
            buffer.truncate()
    file.write(buffer.getvalue().encode())


def _parquet(file: HashingFile, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    kinds: Mapping[str, Any] = {
        "messages": pa.list_(pa.struct({"role": text, "content": text, "weight": pa.int64()})),
        "conversations": pa.list_(pa.struct({"from": text, "value": text})),
        "facts": pa.list_(text),
    }
    # other columns may hold anything: as text, each row keeps its own kind
    schema = pa.schema([(name, kinds.get(name, text)) for name in _columns(rows)])
    with pq.ParquetWriter(_Sink(file), schema) as writer:
        for batch in _batches(rows()):
            known = [
                {name: value if name in kinds else _as_text(value) for name, value in row.items()}
                for row in batch
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(known, schema=schema))


class _Sink(io.RawIOBase):
    """A HashingFile as pyarrow wants to see files."""

    def __init__(self, file: HashingFile) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.length

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        return len(data)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        yield batch
