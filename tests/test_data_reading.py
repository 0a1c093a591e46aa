"""Reading: every format and file type gives the same examples, and faults have place and mend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.cli import cli
from halfbyte.config import DataSettings
from halfbyte.data.example_json import dump_example, load_example
from halfbyte.data.faults import LISTED, Fault
from halfbyte.data.formats import Format, FormatName, to_example
from halfbyte.data.readers import LONGEST_ROW, read_file
from halfbyte.data.records import Example, Message
from halfbyte.data.sources import find_source, find_sources
from halfbyte.data.table import read_table
from halfbyte.data.writers import to_row, write_rows
from halfbyte.errors import DataError, MissingError

few = settings(deadline=None, max_examples=40, derandomize=True)
GOOD = '{"instruction": "Q%d", "response": "A"}\n'


def examples_of(path: Path, **changes: Any) -> list[Example]:
    given_settings = DataSettings(train=str(path), **changes)
    with read_table(str(path), given_settings) as table:
        return [table.example(i) for i in range(len(table))]


def faults_of(path: Path) -> DataError:
    with pytest.raises(DataError) as error:
        examples_of(path)
    return error.value


def written(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def qa(question: str, answer: str, context: str | None = None, **extra: Any) -> Example:
    return Example((Message("user", question), Message("assistant", answer)), context, extra=extra)


# --- formats -------------------------------------------------------------------------------------

SAME = qa("Q?", "A.")
ROWS: dict[str, dict[str, Any]] = {
    "instruction": {"instruction": "Q?", "response": "A."},
    "output": {"instruction": "Q?", "output": "A.", "input": ""},
    "question": {"question": "Q?", "answer": "A."},
    "input": {"input": "Q?", "output": "A."},
    "prompt and response": {"prompt": "Q?", "response": "A."},
    "completion": {"prompt": "Q?", "completion": "A."},
    "messages": {
        "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    },
    "content parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q?"}]},
            {"role": "assistant", "content": "A.", "weight": 1},
        ]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    },
    "conversation as JSON text": {
        "conversations": json.dumps(
            [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
        )
    },
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_formats_are_recognised(tmp_path: Path, row: Mapping[str, Any]) -> None:
    """The same question and answer, however they are written, are the same example."""
    assert examples_of(written(tmp_path, json.dumps(row))) == [SAME]


def test_the_format_is_named_aloud(tmp_path: Path) -> None:
    """With the columns that play the parts."""
    path = written(tmp_path, json.dumps({"question": "Q?", "answer": "A.", "input": "C"}))
    with read_table(str(path), DataSettings()) as table:
        assert str(table.format) == (
            "instruction (instruction from 'question', response from 'answer', "
            "context from 'input')"
        )


def test_plain_text_is_a_format(tmp_path: Path) -> None:
    """Rows of `text` have no messages."""
    assert examples_of(written(tmp_path, '{"text": "Once."}')) == [Example(text="Once.")]


def test_columns_may_be_mapped(tmp_path: Path) -> None:
    """A mapping gives columns their parts; what is left stays as extra."""
    path = written(tmp_path, json.dumps({"q": "Q?", "reply": "A.", "passage_no": 3}))
    mapped = examples_of(path, columns={"instruction": "q", "response": "reply"})
    assert mapped == [qa("Q?", "A.", passage_no=3)]
    with pytest.raises(DataError, match="response: no column 'answr'") as error:
        examples_of(path, columns={"instruction": "q", "response": "answr"})
    assert "'reply'" in error.value.hint


def test_unknown_columns_say_what_is_known(tmp_path: Path) -> None:
    """The message lists the columns, the hint the formats and the mapping."""
    error = faults_of(written(tmp_path, '{"a": "x", "b": "y"}'))
    assert "'a', 'b'" in error.message
    assert "data.columns" in error.hint


def test_facts_system_and_weights(tmp_path: Path) -> None:
    """Facts as a list or one value; a row's system message, or the one of the settings."""
    rows = [
        {"instruction": "Q?", "response": "A.", "facts": ["18", 7], "system": "Own."},
        {"instruction": "Q?", "response": "A.", "facts": "18", "system": None},
    ]
    path = written(tmp_path, "\n".join(map(json.dumps, rows)))
    own, common = examples_of(path, system="Common.")
    assert (own.facts, common.facts) == (("18", "7"), ("18",))
    assert own.messages[0] == Message("system", "Own.")
    assert common.messages[0] == Message("system", "Common.")


def test_turns_after_the_last_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    """ShareGPT rows often end with a user's turn: the example ends with the answer, and says so."""
    turns = [
        {"from": "human", "value": "Q?"},
        {"from": "gpt", "value": "A."},
        {"from": "human", "value": "Thanks"},
    ]
    path = written(tmp_path, json.dumps({"conversations": turns}))
    with read_table(str(path), DataSettings()) as table:
        assert table.example(0) == SAME
        assert table.notes == ("1 conversations go on after their last answer: that is left out",)


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    str.strip
)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | texts


@st.composite
def examples(draw: st.DrawFn) -> Example:
    extra = draw(st.dictionaries(st.sampled_from(["id", "kind", "level"]), scalars, max_size=2))
    facts = tuple(draw(st.lists(texts, max_size=2)))
    if draw(st.booleans()):
        return Example(text=draw(texts), facts=facts, extra=extra)
    turns = [Message("system", draw(texts).strip())] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        turns += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    context = draw(st.none() | texts.map(str.strip))
    return Example(tuple(turns), context, facts=facts, extra=extra)


@few
@given(example=examples())
def test_stored_examples_come_back(example: Example) -> None:
    """dump_example and load_example are inverse, and our own reader reads the stored form."""
    line = dump_example(example)
    assert load_example(line) == example
    assert b"\n" not in line
    name: FormatName = "text" if example.text is not None else "messages"
    columns = {part: part for part in ("messages", "context", "text", "facts", "extra")}
    again = to_example(json.loads(line), Format(name, columns))
    assert isinstance(again, Example)
    assert (again.messages, again.text, again.facts) == (
        example.messages,
        example.text,
        example.facts,
    )
    assert dict(again.extra) == dict(example.extra)


def test_a_stored_line_with_something_behind_it_is_refused() -> None:
    """Two lines that ran together are no row."""
    line = dump_example(Example(text="a"))
    with pytest.raises(ValueError, match="Extra data"):
        load_example(line + line)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("form", ["messages", "sharegpt", "instruction", "completion"])
def test_every_file_type_holds_every_format(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, form: FormatName
) -> None:
    """Written and read again, the same examples, with line breaks, quotes, commas and facts."""
    path = tmp_path_factory.mktemp("written") / f"data{suffix}"
    given_examples = [
        Example(qa('Say "hi",\nplease; now', "Héllo\r\n, ₹5", facts).messages, facts=("5", "a,b"))
        for facts in (None, "A context.")
    ]
    if form in {"sharegpt", "completion"}:  # these have no place for a context
        given_examples = given_examples[:1]
    write_rows(path, lambda: [to_row(example, form) for example in given_examples])
    assert examples_of(path) == given_examples


def test_a_format_that_cannot_hold_a_row_refuses(tmp_path: Path) -> None:
    """Nothing is lost in converting: several turns do not fit instruction rows."""
    talk = Example((*SAME.messages, *SAME.messages))
    with pytest.raises(DataError, match="several turns"):
        to_row(talk, "instruction")
    target = tmp_path / "out.jsonl"
    with pytest.raises(DataError):
        write_rows(target, lambda: [to_row(SAME, "instruction"), to_row(talk, "instruction")])
    assert list(tmp_path.iterdir()) == []


# --- faults in files (fault 13) ------------------------------------------------------------------

LINE_FAULTS: dict[str, tuple[bytes, str, str]] = {
    "comma after the object": (b'{"instruction": "Q", "response": "A"},', ":2: column 38", "comma"),
    "comma before }": (
        b'{"instruction": "Q", "response": "A",}',
        ":2: column 38",
        "comma before }",
    ),
    "single quotes": (b"{'instruction': 'Q'}", ":2: column 2", "double quotes"),
    "NaN": (b'{"instruction": "NaN", "response": NaN}', ":2: column 36", "null"),
    "infinity": (b'{"instruction": "Q", "response": -Infinity}', ":2: column 34", "null"),
    "digits": (b'{"response": "A", "n": -' + b"7" * 4_301 + b"}", ":2: column 24", "quotes"),
    "latin-1": (b'{"instruction": "caf\xe9", "response": "A"}', ":2: column 21", "> NEW.jsonl"),
    "cut line": (b'{"instruction": "Q", "resp', ":2: column 22", "close the quote"),
    "cut after a comma": (b'{"instruction": "Q",', ":2: column 21", "too early"),
    "raw tab": (b'{"instruction": "a\tb", "response": "A"}', ":2: column 19", "\\t"),
    "bad escape": (b'{"instruction": "C:\\data", "response": "A"}', ":2: column 20", "\\\\"),
    "bare word": (b'{"instruction": nothing}', ":2: column 17", "double quotes"),
    "list": (b'["Q", "A"]', ":2", "write {…}"),
    "deep": (b'{"a":' * 100_000, ":2: column 1", "flatten"),
    "deep lists": (b'{"instruction": ' + b"[" * 100_000, ":2: column 1", "flatten"),
    "two objects": (b'{"instruction": "Q", "response": "A"} {}', ":2: column 39", "one object"),
}


@pytest.mark.parametrize(("line", "place", "mend"), LINE_FAULTS.values(), ids=LINE_FAULTS)
def test_bad_lines_have_line_column_and_mend(
    tmp_path: Path, line: bytes, place: str, mend: str
) -> None:
    """A bad line between good ones is the one fault, with its place and what to change."""
    content = (GOOD % 1).encode() + line + b"\n" + (GOOD % 3).encode()
    error = faults_of(written(tmp_path, content))
    (fault,) = error.faults
    assert fault.startswith(f"data.jsonl{place}")
    assert mend in fault
    assert "1 of 3 rows" in error.message
    assert error.exit_code == 2


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    """A byte order mark, CRLF line ends, blank lines and a missing last line end."""
    content = "\ufeff" + (GOOD % 1 + "\n   \n" + GOOD % 2).replace("\n", "\r\n").rstrip()
    assert len(examples_of(written(tmp_path, content))) == 2
    table = '\ufeffinstruction;response\r\nQ1;A\r\n\r\nQ2;"A;\nB"\r\n'
    assert [e.reference for e in examples_of(written(tmp_path, table, "data.csv"))] == [
        "A",
        "A;\nB",
    ]


ODD_VALUES = [10**4_000, 1e400, float("nan"), "\ud800", "\x7f\x00"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(ODD_VALUES),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.dictionaries(st.text(), VALUES))
def test_lines_are_read_as_python_reads_them(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    """The quicker parser gives what Python's does, and what only that takes is left to it."""
    text = json.dumps(value)
    path = tmp_path_factory.getbasetemp() / "line.jsonl"
    path.write_text(text)
    (row,) = read_file(path)
    if isinstance(row.value, Fault):
        assert "NaN" in text or "Infinity" in text
    else:
        assert repr(row.value) == repr(json.loads(text))


@pytest.mark.parametrize("depth", [150, 500])
def test_a_deeply_nested_row_is_read_and_stored(tmp_path: Path, depth: int) -> None:
    """Beyond the quicker parser's depth, Python's own reads it."""
    nest = "[" * depth + "]" * depth
    line = f'{{"instruction": "Q", "response": "A", "nest": {nest}}}'
    (example,) = examples_of(written(tmp_path, line))
    assert repr(example.extra["nest"]) == nest
    assert load_example(dump_example(example)) == example


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    """An empty file has no rows, and that is said."""
    error = faults_of(written(tmp_path, content, name))
    assert "there are no rows in it" in error.message


def test_a_huge_line_is_one_fault(tmp_path: Path) -> None:
    """50 MB in one line: named with its size, never held whole, the next line read."""
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write((GOOD % 1).encode() + b'{"instruction": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + (GOOD % 3).encode())
    rows = list(read_file(path))
    assert [row.line for row in rows] == [1, 2, 3]
    fault = rows[1].value
    assert isinstance(fault, Fault)
    assert "50,000,020 bytes" in fault.detail
    assert len(rows[1].source) < LONGEST_ROW


def test_the_first_faults_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    """Twenty with their places, then how many more; kinds with their numbers."""
    bad = ["{]", '{"instruction": "Q", "response": " "}', '{"instruction": "Q"}']
    error = faults_of(written(tmp_path, "\n".join([GOOD % 0, *(bad * 10)])))
    assert len(error.faults) == LISTED + 1
    assert error.faults[-1] == "… and 10 more"
    assert "30 of 31 rows" in error.message
    assert "10 not JSON, 10 empty answer, 10 missing column" in error.message


def test_json_arrays_name_the_line(tmp_path: Path) -> None:
    """In a pretty-printed array a fault has its line in the file; rows before it are read."""
    path = written(
        tmp_path,
        '[\n  {"instruction": "Q",\n   "response": "A"},\n'
        '  {"instruction": "Q",\n   "response" "A"}\n]',
        "data.json",
    )
    (fault,) = faults_of(path).faults
    assert fault.startswith("data.json:5: column 15: expecting ':' delimiter")
    trailing = written(tmp_path, "[" + (GOOD % 1).strip() + ",\n]", "data.json")
    assert "remove" in faults_of(trailing).faults[0]
    cut = written(tmp_path, "[" + (GOOD % 1).strip(), "data.json")
    assert len(faults_of(cut).faults) == 1


@pytest.mark.parametrize(
    "content",
    [
        '[{"instruction": "Q", "response": "A"},\n {"instruction": "Q2", "response": "A"}]',
        '{"instruction": "Q", "response": "A"}\n{"instruction": "Q2", "response": "A"}',
        '{"version": 1, "data": [{"instruction": "Q", "response": "A"},'
        ' {"instruction": "Q2", "response": "A"}]}',
    ],
    ids=["array", "lines", "data"],
)
def test_json_files_in_their_shapes(tmp_path: Path, content: str) -> None:
    """An array, one object a line, or an object that holds the list."""
    assert len(examples_of(written(tmp_path, content, "data.json"))) == 2


@few
@given(
    rows=st.lists(st.dictionaries(texts, scalars | st.lists(scalars, max_size=2)), max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 30),
)
def test_json_streams_read_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    indent: int | None,
    chunk: int,
) -> None:
    """However the array is laid out, and wherever the pieces read from the file end."""
    path = tmp_path_factory.mktemp("json") / "data.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halfbyte.data.readers._CHUNK", chunk)
        assert [raw.value for raw in read_file(path)] == rows


CSV_FAULTS = {
    "too many fields": ("Q,A,B\n", ":2: 3 fields", "double quotes"),
    "too few fields": ("Q\n", ":2: 1 fields", "double quotes"),
    "open quote": ('Q,"A\n', ":2: unexpected end", "close the quote"),
    "text after a quote": ('Q,"A"B\n', ":2: ", "twice"),
}


@pytest.mark.parametrize(("row", "place", "mend"), CSV_FAULTS.values(), ids=CSV_FAULTS)
def test_bad_csv_rows_have_line_and_mend(tmp_path: Path, row: str, place: str, mend: str) -> None:
    """A fault in a table is on its line."""
    (fault,) = faults_of(written(tmp_path, f"instruction,response\n{row}", "data.csv")).faults
    assert fault.startswith(f"data.csv{place}")
    assert mend in fault


def test_csv_in_latin_1_and_with_a_column_twice(tmp_path: Path) -> None:
    """The column of a bad byte is named; a header that names a column twice is refused."""
    path = written(tmp_path, b"instruction,response\nQ,caf\xe9\n", "data.csv")
    (fault,) = faults_of(path).faults
    assert "column 'response'" in fault
    assert "iconv" in fault
    path = written(tmp_path, "instruction,response,response\nQ,A,B\n", "data.csv")
    assert "named twice" in faults_of(path).message


def test_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    """A Parquet file that is none, UTF-16, a suffix we do not know, a file that is not there."""
    assert "Parquet" in faults_of(written(tmp_path, b"PAR1 no", "data.parquet")).message
    utf16 = faults_of(written(tmp_path, (GOOD % 1).encode("utf-16")))
    assert "UTF-16" in utf16.faults[0]
    assert ".parquet" in faults_of(written(tmp_path, b"x", "data.pkl")).message
    with pytest.raises(DataError, match="no such file"):
        find_source(str(tmp_path / "none.jsonl"))


# --- faults in rows (fault 14) -------------------------------------------------------------------


def talk(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ROW_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown role": (talk(("user", "Q"), ("robot", "A")), "wrong role"),
    "late system": (talk(("user", "Q"), ("system", "S"), ("assistant", "A")), "wrong role"),
    "answer to nobody": (talk(("assistant", "A")), "wrong role"),
    "two answers": (talk(("user", "Q"), ("assistant", "A"), ("assistant", "B")), "wrong role"),
    "no answer": (talk(("user", "Q")), "no assistant turn"),
    "no turns": ({"messages": []}, "no assistant turn"),
    "empty answer": (talk(("user", "Q"), ("assistant", " \n")), "empty answer"),
    "tool call": (talk(("user", "Q"), ("assistant", None)), "empty answer"),
    "empty question": (talk(("user", ""), ("assistant", "A")), "empty prompt"),
    "no list": ({"messages": "hello"}, "not a conversation"),
    "image": (talk(("user", [{"type": "image"}]), ("assistant", "A")), "not a text"),
    "number of objects": (talk(("user", {"a": 1}), ("assistant", "A")), "not a text"),
    "surrogate": (talk(("user", "\ud800"), ("assistant", "A")), "broken text"),
    "missing": ({"text_": "x"}, "missing column"),
    "other format": ({"instruction": "Q", "response": "A"}, "in another format"),
}


@pytest.mark.parametrize(("row", "kind"), ROW_FAULTS.values(), ids=ROW_FAULTS)
def test_bad_rows_are_counted_by_kind(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    """A row that cannot be used among good ones: its kind with its number, and its line."""
    good = json.dumps(talk(("user", "Q"), ("assistant", "A")))
    error = faults_of(written(tmp_path, f"{good}\n{good}\n{json.dumps(row)}\n"))
    assert f"(1 {kind})" in error.message
    assert error.faults[0].startswith("data.jsonl:3: ")


def test_weights_are_zero_or_one(tmp_path: Path) -> None:
    """Other weights are faults; a conversation of weight 0 alone has nothing to train."""
    row = talk(("user", "Q"), ("assistant", "A"))
    row["messages"][1]["weight"] = 0.5
    assert "1 wrong weight" in faults_of(written(tmp_path, json.dumps(row))).message
    row["messages"][1]["weight"] = 0
    assert "1 no trained turn" in faults_of(written(tmp_path, json.dumps(row))).message


# --- sources -------------------------------------------------------------------------------------


def test_folders_hold_their_parts(tmp_path: Path) -> None:
    """train/valid/test files by name, in shards too; test stands in where valid is absent."""
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"):
        written(tmp_path, GOOD % 1, name)
    train, held = find_sources(str(tmp_path), None)
    assert [path.name for path in train.files] == [
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
    ]
    assert held is not None
    assert [path.name for path in held.files] == ["test.jsonl"]
    written(tmp_path, GOOD % 1, "validation.csv")
    _, held = find_sources(str(tmp_path), None)
    assert held is not None
    assert [path.name for path in held.files] == ["validation.csv"]


def test_folders_without_rows_are_refused(tmp_path: Path) -> None:
    """A folder with held-out rows only, or with nothing, says what it should hold."""
    with pytest.raises(DataError, match="no train rows") as error:
        find_source(str(tmp_path))
    assert "train.jsonl" in error.value.hint
    written(tmp_path, GOOD % 1, "test.jsonl")
    with pytest.raises(DataError, match="no train rows"):
        find_source(str(tmp_path))


def test_a_hub_data_set_that_is_not_here_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At once, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError) as error:
        find_source("someone/something")
    assert error.value.hint == "Fetch it: halfbyte data pull someone/something"


def test_built_in_data_by_name() -> None:
    """builtin:tutor has rows; another name is refused with those there are."""
    assert sum(1 for _ in find_source("builtin:tutor").rows()) > 100
    with pytest.raises(DataError) as error:
        find_source("builtin:none")
    assert "builtin:tutor" in error.value.hint


def test_rows_left_out_of_a_converted_file_are_said(tmp_path: Path) -> None:
    """Also where none is written to a file of rejects; one row is not `1 rows`."""
    source, target = tmp_path / "rows.jsonl", tmp_path / "new.jsonl"
    source.write_text(GOOD % 1 + '{"instruction": "", "response": "A"}\n')
    words = ["data", "convert", str(source), str(target)]
    done = CliRunner().invoke(cli, [*words, "data.skip_bad=true"], catch_exceptions=False)
    assert f"{target}: 1 row, instruction; left out: 1 empty prompt\n" in done.output
