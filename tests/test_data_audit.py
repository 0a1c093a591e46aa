"""Split and audit: what is held out, and which rows stand in two places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.audit import Audit, Part, audit
from halfbyte.data.example_json import dump_example
from halfbyte.data.faults import FaultLog
from halfbyte.data.records import Example, Message
from halfbyte.data.shingles import Boilerplate, bands, jaccard, words_of
from halfbyte.data.sources import Source
from halfbyte.data.split import choose_held_out, prompt_key, row_key
from halfbyte.data.stage import Reading, stage
from halfbyte.errors import DataError

few = settings(deadline=None, max_examples=60, derandomize=True)
VOCABULARY = [f"w{i:03d}" for i in range(400)]


def qa(question: str, answer: str, context: str | None = None) -> Example:
    return Example((Message("user", question), Message("assistant", answer)), context)


def essay(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def audited(tmp_path: Path, train: Sequence[Example], valid: Sequence[Example]) -> Audit:
    parts = []
    for name, rows in (("train", train), ("valid", valid)):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join(dump_example(row) + b"\n" for row in rows))
        source = Source(name, (path,))
        staged = stage(source, Reading(), tmp_path / f"{name}.staged", FaultLog())
        parts.append(Part(staged, np.arange(len(staged))))
    return audit(*parts)


keys = st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda k: len(set(k)) > 1)


@few
@given(keys=keys, size=st.floats(0.01, 0.99))
def test_split_keeps_prompts_together(keys: list[int], size: float) -> None:
    """No key stands on both sides, and neither side is empty."""
    numbers = np.array(keys, np.uint64)
    out = choose_held_out(numbers, size)
    assert not set(numbers[out].tolist()) & set(numbers[~out].tolist())
    assert 0 < out.sum() < len(keys)


@few
@given(keys=keys, size=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_split_does_not_depend_on_the_order(keys: list[int], size: float, seed: int) -> None:
    """The same rows in another order: the same rows are held out."""
    numbers = np.array(keys, np.uint64)
    order = np.random.default_rng(seed).permutation(len(numbers))
    assert np.array_equal(
        choose_held_out(numbers, size)[order], choose_held_out(numbers[order], size)
    )


@pytest.mark.parametrize(("size", "held"), [(0.1, 100), (0.25, 250), (7, 7), (1, 1), (0.0001, 1)])
def test_split_takes_what_is_asked(size: float, held: int) -> None:
    """A fraction or a number of rows, exactly where prompts are single."""
    numbers = np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)
    assert choose_held_out(numbers, size).sum() == held


def test_new_rows_move_few_others() -> None:
    """With a tenth more rows, nearly all that were held out still are."""
    numbers = np.random.default_rng(0).integers(0, 2**63, 1100).astype(np.uint64)
    before = set(numbers[:1000][choose_held_out(numbers[:1000], 0.1)].tolist())
    after = set(numbers[choose_held_out(numbers, 0.1)].tolist())
    assert len(before & after) >= 90


@pytest.mark.parametrize(("keys", "size"), [([3, 3, 3], 0.5), ([1], 0.5), ([1, 2], 2), ([1, 2], 9)])
def test_split_that_cannot_be_is_refused(keys: list[int], size: float) -> None:
    """One prompt, one row, or all rows held out."""
    with pytest.raises(DataError):
        choose_held_out(np.array(keys, np.uint64), size)


def test_keys_see_content_only() -> None:
    """Case, white space and a system message do not make another prompt; a context does."""
    key = prompt_key(qa("What is it?", "a"))
    assert key == prompt_key(qa(" what  IS it?", "b"))
    system = (Message("system", "s"), *qa("What is it?", "a").messages)
    assert key == prompt_key(Example(system))
    assert key != prompt_key(qa("What is it?", "a", context="c"))
    assert row_key(qa("q", "a"), key) == row_key(qa("q", " A "), key)
    assert row_key(qa("q", "a"), key) != row_key(qa("q", "b"), key)
    assert prompt_key(Example(text="a")) != prompt_key(Example(text="b"))


def test_copies_in_the_held_out_rows_are_found(tmp_path: Path) -> None:
    """Exact, same prompt, nearly: each with its count and its line, and nothing else (fault 16)."""
    rows = [qa(essay(i), essay(1000 + i, 10)) for i in range(200)]
    near = rows[7].messages[0].content.replace(" ", ", ").upper().split()
    near[20] = "changed"
    valid = [
        qa(essay(5000), essay(6000, 10)),
        qa(f" {rows[3].messages[0].content}", rows[3].reference.upper()),
        qa(rows[5].messages[0].content, "Another answer altogether."),
        qa(" ".join(near), rows[7].reference),
    ]
    found = audited(tmp_path, rows, valid)
    leakage = found.leakage
    assert (leakage.exact, leakage.same_prompt, leakage.near) == (1, 1, 1)
    assert [(m.row, m.other) for m in leakage.first] == [
        ("train.jsonl:4", "valid.jsonl:2"),
        ("train.jsonl:8", "valid.jsonl:4"),
        ("train.jsonl:6", "valid.jsonl:3"),
    ]
    assert found.leaking.tolist() == [3, 5, 7]
    assert not found.duplicates


def test_repeats_among_training_rows_are_found(tmp_path: Path) -> None:
    """Every repeat after the first counts, and points to an earlier row."""
    rows = [qa(essay(i), essay(1000 + i, 10)) for i in range(50)]
    near = qa(rows[9].messages[0].content + " also", rows[9].reference)
    found = audited(tmp_path, [*rows, rows[2], rows[2], near], [qa(essay(99), "x")])
    assert (found.duplicates.exact, found.duplicates.near) == (2, 1)
    assert [(m.row, m.other) for m in found.duplicates.first] == [
        ("train.jsonl:51", "train.jsonl:3"),
        ("train.jsonl:52", "train.jsonl:3"),
        ("train.jsonl:53", "train.jsonl:10"),
    ]
    assert not len(found.leaking)


def test_a_common_instruction_makes_no_copies(tmp_path: Path) -> None:
    """Rows that share most of their words with all others are not alike for that."""
    instruction = "Classify the review below as good or bad and answer with one of these words. "
    rows = [qa(instruction + essay(i, 8), ("good", "bad")[i % 2]) for i in range(120)]
    found = audited(tmp_path, rows[:100], rows[100:])
    assert (found.duplicates.near, found.leakage.near) == (0, 0)


def test_questions_about_one_passage_are_not_copies(tmp_path: Path) -> None:
    """A shared passage with another question and answer is no copy; with a typo more it is."""
    passage = essay(1, 150)
    rows = [qa(f"{passage}\n{essay(10 + i, 6)}?", essay(100 + i, 3)) for i in range(6)]
    copy = qa(rows[0].messages[0].content.replace("?", " ?!"), rows[0].reference + ".")
    found = audited(tmp_path, rows[:5], [rows[5], copy])
    assert found.leakage.near + found.leakage.exact == 1
    assert found.leaking.tolist() == [0]


def test_a_crowd_of_near_copies_stays_linear(tmp_path: Path) -> None:
    """Hundreds of variants of one row, a letter apart: all are found, against an earlier one."""
    text = essay(4, 60)
    rows = [qa(f"{text[:i]}x{text[i + 1 :]}", "The same answer to them all.") for i in range(280)]
    others = [qa(essay(i), essay(1000 + i, 10)) for i in range(20_000, 20_700)]
    found = audited(tmp_path, [*others, *rows], [qa(essay(77), "x")])
    assert 270 <= found.duplicates.near <= 279


def test_short_rows_are_compared_exactly_only(tmp_path: Path) -> None:
    """Rows of a few letters are never nearly the same."""
    rows = [qa(f"{a}+{b}?", str(a + b)) for a in range(9) for b in range(9)]
    found = audited(tmp_path, rows, [qa("9+9?", "18")])
    assert found.duplicates.near == 0


@few
@given(st.text(max_size=30), st.text(max_size=30))
def test_jaccard_is_what_its_name_says(one: str, other: str) -> None:
    """Symmetric, 1 for the same text, and the share of common windows of eight bytes."""

    def windows(text: str) -> set[bytes]:
        data = text.encode().ljust(8)
        return {data[i : i + 8] for i in range(len(data) - 7)}

    expected = len(windows(one) & windows(other)) / len(windows(one) | windows(other))
    assert jaccard(one.encode(), other.encode()) == pytest.approx(expected)
    assert jaccard(one.encode(), one.encode()) == 1


def test_sketches_meet_as_often_as_promised() -> None:
    """Pairs with index 0.8 and more share a band in at least 95 of 100 cases."""
    rng = random.Random(2)
    common = Boilerplate([])
    pairs = []
    while len(pairs) < 200:
        text = essay(rng.randrange(10**6), 50).encode()
        words = text.split()
        for _ in range(2):
            words[rng.randrange(50)] = rng.choice(VOCABULARY).encode()
        if jaccard(text, b" ".join(words)) >= 0.8:
            pairs.append((text, b" ".join(words)))
    first = bands([one for one, _ in pairs], common)
    second = bands([other for _, other in pairs], common)
    assert (first == second).any(axis=1).mean() >= 0.95
    strangers = bands([essay(i).encode() for i in range(10**7, 10**7 + 200)], common)
    assert (first == strangers).any(axis=1).mean() <= 0.02


def test_words_are_what_copies_have_in_common() -> None:
    """Case, punctuation and white space are not words, in any script."""
    assert words_of(" Hello,\n  WORLD_2! ") == "hello world 2"
    assert words_of("नमस्ते—दुनिया") != ""
    assert words_of("...") == ""
