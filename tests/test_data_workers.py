"""Pieces worked on by several processes: the same results, in order, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from halfbyte.config import DataSettings
from halfbyte.data import workers
from halfbyte.data.prepare import Prepared, prepare
from halfbyte.data.workers import in_order
from halfbyte.errors import DataError, ResourceError
from tests.tiny import tiny_tokenizer


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, whatever this machine has."""
    monkeypatch.setattr(workers, "processors", lambda: 2)


def square(number: int) -> tuple[int, int]:
    if number == 13:
        raise DataError("thirteen", hint="Take another.")
    return number * number, os.getpid()


def killed(number: int) -> None:
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 10, 12])
def test_results_come_in_order(count: int) -> None:
    """However many pieces; the first eight are done here, later ones are not."""
    found = list(in_order(square, range(count)))
    assert [number for number, _ in found] == [number**2 for number in range(count)]
    here = [process == os.getpid() for _, process in found]
    assert here == [index < 8 for index in range(count)]


def test_pieces_are_taken_as_they_are_needed() -> None:
    """Memory does not grow with the number of pieces, and a caller may stop at any time."""
    others = psutil.Process().children()
    taken = 0

    def pieces() -> Iterator[int]:
        nonlocal taken
        for number in range(100, 10_000):
            taken += 1
            yield number

    results = in_order(square, pieces())
    assert [next(results)[0] for _ in range(20)] == [number**2 for number in range(100, 120)]
    assert taken <= 20 + 2 * 2
    results.close()  # type: ignore[attr-defined]  # a generator
    assert psutil.Process().children() == others


def test_errors_arrive_whole_and_nothing_stays() -> None:
    """An error of the work with its hint; a process that is killed as one of memory."""
    others = psutil.Process().children()
    with pytest.raises(DataError, match="thirteen") as caught:
        list(in_order(square, range(30)))
    assert caught.value.hint == "Take another."
    with pytest.raises(ResourceError, match="killed"):
        list(
            in_order(lambda number: number < 20 or os.kill(os.getpid(), signal.SIGKILL), range(30))
        )
    assert psutil.Process().children() == others


def test_a_killed_parent_leaves_no_process() -> None:
    """Its children see that it is gone."""
    code = (
        "import os, time\n"
        "from halfbyte.data import workers\n"
        "workers.processors = lambda: 2\n"
        "def work(n):\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    time.sleep(60 if n > 8 else 0)\n"
        "list(workers.in_order(work, range(30)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ids = {int(process.stdout.readline()) for _ in range(10)} - {process.pid}
        process.kill()
    deadline = time.monotonic() + 30
    while any(map(is_running, ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ids
    assert not any(map(is_running, ids))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_prepared_rows_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, with bad rows, notes and their places, as by one process."""
    data = tmp_path / "rows.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(4000):
            answer = "" if number % 997 == 5 else f"answer {number * 7} <|im_end|> ok"
            file.write(f'{{"instruction": "question {number}", "response": "{answer}"}}\n')
    settings = DataSettings(train=str(data), skip_bad=True)

    def made(name: str) -> Prepared:
        return prepare(settings, tiny_tokenizer(), tmp_path / name)

    shared = made("two")
    monkeypatch.setattr(workers, "processors", lambda: 1)
    alone = made("one")
    assert sum(shared.report.bad.values()) > 2
    assert (shared.report.notes, shared.report.bad) == (alone.report.notes, alone.report.bad)
    for part in ("train", "valid"):
        ours, theirs = getattr(shared, part).folder, getattr(alone, part).folder
        for path in sorted(theirs.iterdir()):
            assert (ours / path.name).read_bytes() == path.read_bytes()
    assert (shared.train.folder.parent / "rejects.jsonl").read_bytes() == (
        alone.train.folder.parent / "rejects.jsonl"
    ).read_bytes()
