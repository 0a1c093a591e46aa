"""Preparing: what is encoded, what is refused, and when the cache is used."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import halfbyte.data.build
from halfbyte.config import DataSettings
from halfbyte.data import Encoded, Prepared, Template
from halfbyte.data.fit import Losses, fit
from halfbyte.data.lines import Lines, LineWriter
from halfbyte.data.prepare import prepare, prepare_rows
from halfbyte.data.report import Report
from halfbyte.errors import DataError
from tests.tiny import TURN_END, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
Row = dict[str, Any]


def qa(number: int, answer: str = "yes", **extra: Any) -> Row:
    return {"instruction": f"Question number {number}?", "response": answer, **extra}


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(tmp_path: Path, rows: Sequence[Row], **changes: Any) -> Prepared:
    path = write(tmp_path / "data.jsonl", rows)
    return prepare(DataSettings(train=str(path), **changes), TOKENIZER, tmp_path / "cache")


def entries(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "encoded").iterdir() if path.is_dir()}


def test_what_a_killed_preparation_left_goes_with_the_next_one(tmp_path: Path) -> None:
    """Of the same rows only: another process may be preparing others."""
    prepared(tmp_path, [qa(i) for i in range(9)])
    (folder,) = (tmp_path / "cache" / "encoded" / name for name in entries(tmp_path))
    left, others = (folder.with_name(f".tmp-{name}-1-a") for name in (folder.name, "0" * 32))
    for path in (left, others):
        (path / "rows").mkdir(parents=True)
    shutil.rmtree(folder)
    prepared(tmp_path, [qa(i) for i in range(9)])
    assert entries(tmp_path) == {folder.name, others.name}


def test_every_row_is_encoded_as_the_template_does(tmp_path: Path) -> None:
    """Ids, targets, prompt lengths and examples on disk are the template's, row by row."""
    found = prepared(tmp_path, [qa(i, facts=[str(i)], level=i) for i in range(50)])
    assert len(found.train) == 45
    assert len(found.valid) == 5
    for rows in (found.train, found.valid):
        for i in range(len(rows)):
            expected = found.template.encode(rows.example(i))
            assert np.array_equal(rows[i].ids, expected.ids)
            assert np.array_equal(rows[i].trained, expected.trained)
            assert rows[i].prompt_length == expected.prompt_length
            assert rows.lengths[i] == len(rows[i])
            assert rows.trained_tokens[i] == rows[i].trained.sum()
            assert rows.example(i).facts == (str(rows.lines[i] - 1),)
            assert rows.example(i).extra == {"level": rows.lines[i] - 1}
    numbers = sorted([*found.train.lines, *found.valid.lines])
    assert numbers == list(range(1, 51))


def test_an_encoded_set_is_a_sequence(tmp_path: Path) -> None:
    """Negative indices, slices and pickling (for worker processes) work; writing does not."""
    rows = prepared(tmp_path, [qa(i) for i in range(20)]).train
    assert np.array_equal(rows[-1].ids, rows[len(rows) - 1].ids)
    assert [len(row) for row in rows[2:5]] == rows.lengths[2:5].tolist()
    assert rows.example(-1) == rows.example(len(rows) - 1)
    with pytest.raises(IndexError):
        rows[len(rows)]
    again = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(again[3].ids, rows[3].ids)
    with pytest.raises(ValueError, match="read-only"):
        rows[0].ids[0] = 1


def test_the_report_counts(tmp_path: Path) -> None:
    """Rows, tokens, trained tokens and lengths are those of the sets; it survives JSON."""
    found = prepared(tmp_path, [qa(i, "y" * (i + 1)) for i in range(30)])
    report = found.report.train
    assert report.rows == len(found.train)
    assert report.tokens == found.train.lengths.sum()
    assert report.trained_tokens == found.train.trained_tokens.sum()
    assert report.lengths["min"] == found.train.lengths.min()
    assert report.lengths["max"] == found.train.lengths.max()
    assert Report.from_json(found.report.to_json()) == found.report


def test_a_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data and settings are encoded once; the same rows come back."""
    rows = [qa(i) for i in range(20)]
    first = prepared(tmp_path, rows)
    monkeypatch.setattr(halfbyte.data.build.Build, "into", None)
    second = prepared(tmp_path, rows)
    assert second.hashes == first.hashes
    assert second.report == first.report
    assert np.array_equal(second.train[0].ids, first.train[0].ids)


CHANGES: dict[str, dict[str, Any]] = {
    "length": {"max_length": 64},
    "mask rule": {"train_on": "all"},
    "template": {"template": "instruction"},
    "system": {"system": "Be brief."},
    "split": {"valid_size": 5},
    "too long": {"too_long": "cut_prompt"},
    "leakage": {"leakage": "drop"},
    "limit": {"limit": 10},
    "columns": {"columns": {"response": "response"}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_setting_that_shapes_rows_is_in_the_key(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Another length, mask rule, template or split is another entry of the cache."""
    rows = [qa(i) for i in range(20)]
    prepared(tmp_path, rows)
    prepared(tmp_path, rows, **change)
    assert len(entries(tmp_path)) == 2


def test_data_tokenizer_and_code_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed byte, another tokenizer or another version of the code: another entry."""
    rows = [qa(i) for i in range(20)]
    prepared(tmp_path, rows)
    prepared(tmp_path, [*rows[:-1], qa(19, "yet")])
    assert len(entries(tmp_path)) == 2
    path = write(tmp_path / "data.jsonl", rows)
    other = tiny_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    prepare(DataSettings(train=str(path)), other, tmp_path / "cache")
    assert len(entries(tmp_path)) == 3
    monkeypatch.setattr("halfbyte.data.prepare._code", lambda: "another version")
    prepared(tmp_path, rows)
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("name", ["train/ids.int32", "valid/index.npy", "report.json"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\x01"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, name: str, content: bytes | None) -> None:
    """A file that is gone, cut or foreign is not believed."""
    rows = [qa(i) for i in range(20)]
    first = prepared(tmp_path, rows)
    (entry,) = entries(tmp_path)
    path = tmp_path / "cache" / "encoded" / entry / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    second = prepared(tmp_path, rows)
    expected = first.template.encode(second.train.example(0))
    assert np.array_equal(second.train[0].ids, expected.ids)
    assert second.report == first.report


def test_writers_at_the_same_time_make_one_entry(tmp_path: Path) -> None:
    """Four at once: all get the same rows, and nothing temporary is left."""
    path = write(tmp_path / "data.jsonl", [qa(i) for i in range(40)])
    found: list[Prepared] = []

    def work() -> None:
        found.append(prepare(DataSettings(train=str(path)), TOKENIZER, tmp_path / "cache"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.hashes["encoded"] for each in found}) == 1
    assert len(found) == 4
    left = [path.name for path in (tmp_path / "cache" / "encoded").iterdir()]
    assert sorted(left) == sorted([*entries(tmp_path), *(f"{e}.lock" for e in entries(tmp_path))])


def test_bad_rows_stop_or_are_left_out_and_written(tmp_path: Path) -> None:
    """Without skip_bad all faults are one error and nothing is cached; with it rejects are kept."""
    rows = [*[qa(i) for i in range(20)], qa(20, ""), {"text": "x"}]
    with pytest.raises(DataError, match="2 of 22 rows") as error:
        prepared(tmp_path, rows)
    assert len(error.value.faults) == 2
    assert entries(tmp_path) == set()
    found = prepared(tmp_path, rows, skip_bad=True)
    assert found.report.bad == {"empty answer": 1, "in another format": 1}
    assert found.report.rejects is not None
    rejects = [json.loads(line) for line in Path(found.report.rejects).read_bytes().splitlines()]
    assert [reject["where"] for reject in rejects] == ["data.jsonl:21", "data.jsonl:22"]
    assert rejects[0]["row"] == rows[20]
    assert "empty" in rejects[0]["fault"]


def untrained(number: int) -> Row:
    turns = [("user", f"Q{number}", 1), ("assistant", "A", 0)]
    return {"messages": [{"role": r, "content": c, "weight": w} for r, c, w in turns]}


def test_rows_without_trained_tokens_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that leaves nothing stops before the training, with how many rows (fault 15)."""

    def nothing_trained(self: Template, rows: Any) -> list[Encoded]:
        found = original(self, rows)
        return [
            Encoded(row.ids, row.trained & ("yes" in TOKENIZER.decode(row.ids)), row.prompt_length)
            for row in found
        ]

    original = Template.label
    monkeypatch.setattr(Template, "label", nothing_trained)
    rows = [qa(i, "yes" if i % 2 else "no") for i in range(50)]
    with pytest.raises(DataError, match="0 trained tokens in 25 of 50 rows"):
        prepared(tmp_path, rows)


def test_everything_too_long_refuses(tmp_path: Path) -> None:
    """When no row fits, that is the message, with the setting to change."""
    with pytest.raises(DataError, match="0 trained tokens: of 18 rows 18 are longer") as error:
        prepared(tmp_path, [qa(i) for i in range(20)], max_length=16)
    assert "data.max_length" in error.value.hint


def long(number: int) -> Row:
    return {"instruction": f"{number} " + "long " * 40, "response": "short"}


def test_long_rows_are_dropped_cut_or_refused(tmp_path: Path) -> None:
    """Each choice does what it says and counts rows and tokens."""
    rows = [*[qa(i) for i in range(20)], *[long(i) for i in range(20)]]
    dropped = prepared(tmp_path, rows, max_length=100)
    losses = [dropped.report.train.losses, dropped.report.valid.losses]
    assert sum(each.rows_dropped for each in losses) == 20
    assert len(dropped.train) + len(dropped.valid) == 20
    cut = prepared(tmp_path, rows, max_length=100, too_long="cut_prompt")
    assert len(cut.train) + len(cut.valid) == 40
    assert max(cut.train.lengths.max(), cut.valid.lengths.max()) == 100
    shortest = int(cut.train.lengths.argmax())
    text = TOKENIZER.decode(cut.train[shortest].ids[cut.train[shortest].trained])
    assert text == f"short{TURN_END}"
    losses = [cut.report.train.losses, cut.report.valid.losses]
    assert sum(each.rows_cut for each in losses) == 20
    assert sum(each.trained_cut for each in losses) == 0
    with pytest.raises(DataError, match="20 too long"):
        prepared(tmp_path, rows, max_length=100, too_long="fail")


def row(length: int, prompt: int, bos: bool = False) -> Encoded:
    ids = np.arange(10, 10 + length, dtype=np.int32)
    ids[0] = 1 if bos else ids[0]
    trained = np.arange(length) >= prompt
    trained[0] = False
    return Encoded(ids, trained, prompt)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    length=st.integers(2, 30),
    prompt=st.integers(0, 29),
    limit=st.integers(1, 30),
    bos=st.booleans(),
)
def test_cutting_never_touches_the_answer(length: int, prompt: int, limit: int, bos: bool) -> None:
    """What is kept fits, ends as it ended, keeps BOS and every trained token; else nothing is."""
    whole = row(length, min(prompt, length - 1), bos)
    kept = fit(whole, limit, "cut_prompt", 1)
    if kept is None:
        needed = length - whole.prompt_length + 1
        assert whole.prompt_length == 0 or needed > limit
        return
    assert len(kept) == min(length, limit)
    answer = whole.ids[whole.prompt_length :]
    assert np.array_equal(kept.ids[kept.prompt_length :], answer)
    assert kept.trained.sum() == whole.trained.sum()
    assert not kept.trained[0]
    assert (kept.ids[0] == 1) == bos or not whole.prompt_length
    assert fit(whole, limit, "drop", 1) is (whole if length <= limit else None)


def test_losses_count_trained_tokens_of_earlier_answers() -> None:
    """Cutting the left of a conversation may take an earlier answer: its tokens are counted."""
    whole = row(20, 15)
    whole.trained[4:8] = True
    losses = Losses()
    losses.note(whole, fit(whole, 10, "cut_prompt", None))
    assert (losses.rows_cut, losses.tokens_cut, losses.trained_cut) == (1, 10, 4)


def test_leaks_are_reported_dropped_or_refused(tmp_path: Path) -> None:
    """Training rows that stand in the held-out file, by the policy chosen."""
    held = write(tmp_path / "held.jsonl", [qa(3), qa(100)])
    rows = [qa(i) for i in range(20)]
    told = prepared(tmp_path, rows, valid=str(held))
    assert told.report.leakage.exact == 1
    assert told.report.leakage.first[0].row == "data.jsonl:4"
    assert len(told.train) == 20
    dropped = prepared(tmp_path, rows, valid=str(held), leakage="drop")
    assert len(dropped.train) == 19
    assert 4 not in dropped.train.lines
    assert dropped.report.leaks_dropped == 1
    with pytest.raises(DataError, match=r"1 of 20 training rows") as error:
        prepared(tmp_path, rows, valid=str(held), leakage="fail")
    assert error.value.faults == ("data.jsonl:4 = held.jsonl:1",)


def test_the_folders_own_held_out_rows_are_used(tmp_path: Path) -> None:
    """train.jsonl and valid.jsonl in a folder: nothing is split off."""
    write(tmp_path / "train.jsonl", [qa(i) for i in range(10)])
    write(tmp_path / "valid.jsonl", [qa(i) for i in range(10, 13)])
    found = prepare(DataSettings(train=str(tmp_path)), TOKENIZER, tmp_path / "cache")
    assert (len(found.train), len(found.valid)) == (10, 3)
    assert found.hashes["valid"]


def test_rows_can_be_encoded_without_a_split(tmp_path: Path) -> None:
    """prepare_rows takes a source whole, in its order, cached like the rest."""
    path = write(tmp_path / "held.jsonl", [qa(i) for i in range(7)])
    for _ in range(2):
        found = prepare_rows(str(path), DataSettings(), TOKENIZER, tmp_path / "cache")
        assert found.rows.lines.tolist() == list(range(1, 8))
        assert found.report.rows == 7
    assert len(entries(tmp_path)) == 1


def test_quoted_marks_are_noted(tmp_path: Path) -> None:
    """Rows that quote control tokens are used, and counted."""
    rows = [*[qa(i) for i in range(10)], qa(10, f"Say {TURN_END} to end.")]
    notes = prepared(tmp_path, rows).report.notes
    assert notes == ("1 rows quote control tokens: they are encoded as text, not as marks",)


def test_a_limit_reads_only_so_many_rows(tmp_path: Path) -> None:
    """What stands after the limit is not even looked at."""
    rows = [*[qa(i) for i in range(10)], {"bad": 1}]
    found = prepared(tmp_path, rows, limit=10)
    assert len(found.train) + len(found.valid) == 10


@pytest.mark.parametrize("limit", [3, 5, 600])
def test_faults_count_up_to_the_limit(tmp_path: Path, limit: int) -> None:
    """Bad rows between the good ones do not count towards the limit; those after it are not seen,
    be it in a batch or in the next.
    """
    rows = [qa(i) if i % 2 else {"instruction": "?", "response": ""} for i in range(2000)]
    found = prepared(tmp_path, rows, limit=limit, skip_bad=True)
    assert max(*found.train.lines, *found.valid.lines) == 2 * limit
    assert len(found.train) + len(found.valid) == sum(found.report.bad.values()) == limit


def test_lines_come_back(tmp_path: Path) -> None:
    """What a LineWriter took, in order and by index; an empty file too."""
    for lines in ([], [b""], [b"one", b"", "zwölf".encode()]):
        path = tmp_path / "lines"
        with LineWriter(path) as writer:
            writer.extend(lines[:2])
            writer.extend(lines[2:])
            assert len(writer) == len(lines)
        found = Lines(path)
        assert list(found) == lines
        some = [place for place in (2, 0, 1, 0) if place < len(lines)]
        assert found.some(np.array(some, np.int64)) == [lines[place] for place in some]
        with pytest.raises(IndexError):
            found[len(lines)]
