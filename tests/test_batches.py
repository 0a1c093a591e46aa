"""Micro-batches hold exactly what their rows hold, whatever is packed, padded or shared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.batches import MicroLimits, epoch_order, plan_step, prefix_groups
from halfbyte.data.records import Batch, Encoded


def encoded(ids: Sequence[int], trained: Sequence[bool]) -> Encoded:
    return Encoded(np.array(ids, dtype=np.int32), np.array([False, *trained[1:]]), 0)


def expected(rows: Sequence[Encoded]) -> Counter[tuple[tuple[int, ...], int]]:
    """How often each target is predicted from each context, row by row."""
    return Counter(
        (tuple(row.ids[:i].tolist()), int(row.ids[i]))
        for row in rows
        for i in np.flatnonzero(row.trained)
    )


def found(batch: Batch) -> Counter[tuple[tuple[int, ...], int]]:
    """The same, read back from a batch by walking up its segments."""
    counts: Counter[tuple[tuple[int, ...], int]] = Counter()
    length = batch.input_ids.shape[1]
    triples = zip(batch.predict.tolist(), batch.target.tolist(), batch.weight.tolist(), strict=True)
    for place, target, weight in triples:
        row, column = divmod(place, length)
        owner = [
            n for n, s in enumerate(batch.segments) if s.row == row and s.start <= column < s.stop
        ]
        assert len(owner) == 1, "segments overlap or leave a place out"
        segment = batch.segments[owner[0]]
        context = batch.input_ids[row, segment.start : column + 1].tolist()
        while segment.parent >= 0:
            segment = batch.segments[segment.parent]
            context = batch.input_ids[segment.row, segment.start : segment.stop].tolist() + context
        assert batch.position_ids[row, column] == len(context) - 1
        counts[tuple(context), target] += int(weight)
    return counts


def row_strategy() -> st.SearchStrategy[Encoded]:
    # few different tokens: shared beginnings, repeated rows and rows that begin others are common
    ids = st.lists(st.integers(0, 2), min_size=2, max_size=24)
    return ids.flatmap(
        lambda some: st.lists(st.booleans(), min_size=len(some), max_size=len(some)).map(
            lambda trained: encoded(some, trained)
        )
    )


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(row_strategy(), min_size=1, max_size=12),
    limits=st.builds(
        MicroLimits,
        rows=st.integers(1, 12),
        tokens=st.integers(1, 80),
        pack=st.booleans(),
        share=st.booleans(),
        even=st.booleans(),
    ),
)
def test_plan_keeps_every_target_with_its_context(rows: list[Encoded], limits: MicroLimits) -> None:
    """Every trained token is predicted once per row that has it, from exactly that row's tokens,
    and every micro-batch keeps the limits.
    """
    batches = plan_step(list(enumerate(rows)), limits)
    assert sum((found(batch) for batch in batches), Counter()) == expected(rows)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))
    assert sum(batch.tokens for batch in batches) == sum(map(len, rows))
    sizes = [batch.input_ids.numel() for batch in batches]
    assert sizes == sorted(sizes, reverse=True) or not limits.pack
    for batch in batches:
        assert len(batch.rows) <= limits.rows
        assert batch.input_ids.numel() <= limits.tokens or len(batch.rows) == 1


def passage_rows(passages: int = 40, questions: int = 5) -> list[Encoded]:
    random = np.random.default_rng(0)
    rows = []
    for _ in range(passages):
        passage = random.integers(0, 1000, 120)
        for _ in range(questions):
            ids = np.concatenate([passage, random.integers(0, 1000, 20)]).astype(np.int32)
            rows.append(Encoded(ids, np.arange(140) > 135, 136))
    return rows


def test_shared_beginnings_are_computed_once() -> None:
    """Rows of one passage need the passage once and their own part each; without `share` all."""
    rows = list(enumerate(passage_rows(1, 5)))
    (shared,) = plan_step(rows, MicroLimits(8, 10_000))
    (apart,) = plan_step(rows, MicroLimits(8, 10_000, share=False))
    assert shared.input_ids.numel() == 120 + 5 * 19  # the last token of a row predicts nothing
    assert apart.input_ids.numel() == 5 * 139
    assert [segment.parent for segment in shared.segments] == [-1, 0, 0, 0, 0, 0]


def test_a_long_chain_of_beginnings_is_planned() -> None:
    """Rows that each begin the next nest hundreds deep without a recursion limit."""
    ids = np.arange(2000, dtype=np.int32)
    rows = [(n, encoded(ids[: 5 * n + 6], [True] * (5 * n + 6))) for n in range(300)]
    (batch,) = plan_step(rows, MicroLimits(1000, 100_000))
    assert batch.input_ids.numel() == 5 * 299 + 5
    assert float(batch.weight.sum()) == sum(len(row.ids) - 1 for _, row in rows)


def test_micro_batches_are_even() -> None:
    """What does not fit at once is divided evenly, so that no small rest is left over."""
    rows = [(n, encoded([n] * 101, [True] * 101)) for n in range(11)]
    sizes = [b.input_ids.numel() for b in plan_step(rows, MicroLimits(99, 1000, share=False))]
    assert sizes == [600, 500]
    full = plan_step(rows, MicroLimits(99, 1000, share=False, even=False))
    assert [b.input_ids.numel() for b in full] == [1000, 100]


def test_limits_halve_down_to_one_row() -> None:
    """After an out-of-memory half as much is tried, until a single token is left."""
    limits: MicroLimits | None = MicroLimits(5, 1024)
    seen = []
    while limits is not None:
        seen.append((limits.rows, limits.tokens))
        limits = limits.halved()
    assert seen[0] == (5, 1024)
    assert seen[1] == (2, 512)
    assert seen[-1] == (1, 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_holds_every_row_once(grouped: bool) -> None:
    """Each epoch is a permutation in steps of the wanted size; the seed alone decides which."""
    rows = passage_rows()[:-3]
    lengths = [len(row) for row in rows]
    groups = prefix_groups(rows) if grouped else None
    epochs = [epoch_order(lengths, 7, epoch, 16, groups) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert epoch_order(lengths, 8, 0, 16, groups) != epochs[0]
    for steps in epochs:
        assert sorted(row for step in steps for row in step) == list(range(len(rows)))
        assert {len(step) for step in steps[:-1]} == {16}
        assert len(steps[-1]) == len(rows) % 16


def test_rows_of_one_beginning_meet() -> None:
    """Grouping brings the rows of a passage into few steps, and mixes passages anew each epoch."""
    rows = passage_rows()
    groups = prefix_groups(rows)
    lengths = [len(row) for row in rows]

    def meetings(steps: list[tuple[int, ...]]) -> int:
        return sum(len({row // 5 for row in step}) for step in steps)

    grouped = epoch_order(lengths, 1, 0, 16, groups)
    assert meetings(grouped) <= 40 + len(grouped)  # at most about one passage cut a step
    assert meetings(epoch_order(lengths, 1, 0, 16)) > 120
    first, second = (
        {frozenset(r // 5 for r in s) for s in epoch_order(lengths, 1, e, 16, groups)}
        for e in (0, 1)
    )
    assert len(first & second) <= 2


def test_a_beginning_that_all_rows_have_brings_nobody_together() -> None:
    """A common preamble leaves the order as random as without groups."""
    preamble = list(range(40))
    rows = [encoded([*preamble, n, n + 1], [True] * 42) for n in range(100)]
    steps = epoch_order([42] * 100, 3, 0, 10, prefix_groups(rows))
    assert steps[0] != tuple(sorted(steps[0]))
    assert max(abs(a - b) for step in steps for a, b in itertools.pairwise(step)) > 50


def test_more_rows_of_a_beginning_than_a_step_holds() -> None:
    """A large group fills whole steps by its subgroups, and nothing is lost."""
    rows = passage_rows(2, 50) + passage_rows(60, 5)
    steps = epoch_order([140] * len(rows), 5, 2, 16, prefix_groups(rows))
    assert sorted(row for step in steps for row in step) == list(range(len(rows)))


def test_the_first_step_is_the_heaviest() -> None:
    """In epoch 0 the step with the longest rows comes first, so that it fails first."""
    lengths = [10] * 63 + [500]
    steps = epoch_order(lengths, 0, 0, 8)
    assert 63 in steps[0]


def test_prefix_groups_tell_beginnings_apart() -> None:
    """Rows get the same number exactly where they begin alike, and none where they are alone."""
    base = list(range(40))
    rows = [
        encoded(base, [True] * 40),
        encoded([*base[:20], *range(900, 930)], [True] * 50),
        encoded([5, *base], [True] * 41),
        encoded(base[:10], [True] * 10),
    ]
    groups = prefix_groups(rows)
    assert groups.shape == (4, 1)
    assert groups[0, 0] == groups[1, 0] >= 0
    assert groups[2, 0] == groups[3, 0] == -1
