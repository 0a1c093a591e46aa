"""What watches a training: lines and bar, metrics, TensorBoard, plot; and room before it starts."""

from __future__ import annotations

import io
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from halfbyte.config import TrainSettings
from halfbyte.errors import ResourceError, TrainingError
from halfbyte.run import MetricsLog, RunFolder, read_metrics
from halfbyte.train import (
    ConsoleProgress,
    Evaluated,
    Event,
    Finished,
    JsonLines,
    LossPlot,
    Resumed,
    Shrunk,
    Skipped,
    Started,
    Stepped,
    TensorBoard,
    disk_bytes,
    free_memory,
    observe,
    require_disk,
    require_memory,
    to_record,
)
from halfbyte.train.plot import smooth

CPU = torch.device("cpu")


def stepped(step: int, loss: float = 2.0, seconds: float = 0.5) -> Stepped:
    return Stepped(step, step / 4, loss, 4, 50, 200, 2, 1e-4, 0.7, seconds, 3_200_000_000)


STORY: tuple[Event, ...] = (
    Started(0, 8, 1),
    Resumed(0, "checkpoints/step-000000", ("step-000002: cut",), ("threads: was 2, is 4",)),
    Evaluated(0, 3.0, False, 0.1),
    stepped(1, 2.5),
    stepped(2, 2.0),
    Skipped(3, 0.75, tuple(range(20)), "loss is nan"),
    Shrunk(4, 4, 2, 512, "out of memory"),
    stepped(4, 1.5),
    Evaluated(4, 1.75, True, 0.1),
    Finished(4, "patience", 4, 1.75, 650, 61.0),
)


def told(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    now = iter(range(10_000))
    for _ in observe(STORY, [ConsoleProgress(console, lambda: float(next(now)))]):
        pass
    return out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_people_see_what_is_unusual_and_how_it_goes(terminal: bool) -> None:
    text = told(terminal)
    for words in (
        "goes on from checkpoints/step-000000",
        "damaged, left aside: step-000002: cut",
        "threads: was 2, is 4",
        "held-out loss 1.7500, perplexity 5.755, the best so far",
        "skipped: loss is nan; rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more",
        "memory was short: 4 micro-batches of at most 2 rows",
        "no better held-out loss for long; 650 tokens in 0:01:01; best held-out loss 1.7500",
    ):
        assert words in text
    assert "400 tokens/s" in text
    assert "3.2 GB" in text


def test_without_a_terminal_lines_are_plain_and_steps_do_not_flood() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    clock = iter(range(100_000))
    progress = ConsoleProgress(console, lambda: next(clock) / 10)
    events = (Started(0, 1000, 1), *(stepped(step) for step in range(1, 1001)))
    for _ in observe(events, [progress]):
        pass
    lines = out.getvalue().splitlines()
    assert 5 < len(lines) < 50
    assert "\x1b" not in out.getvalue()
    assert "step  1000" in lines[-1]


def test_a_skipped_step_shows_no_stale_loss() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    progress = ConsoleProgress(console)
    for event in (Started(0, 9, 1), stepped(1, 2.125), Skipped(2, 0.5, (1,), "loss is nan")):
        progress(event)
    progress.close()
    last = out.getvalue().rsplit("step ", 1)[1]
    assert "loss    –" in last
    assert "2.1250" not in last


def test_observers_are_closed_when_the_training_fails(tmp_path: Path) -> None:
    closed: list[bool] = []

    class Watcher:
        def __call__(self, event: Event) -> None:
            pass

        def close(self) -> None:
            closed.append(True)

    def failing() -> Iterator[Event]:
        yield Started(0, 1, 1)
        raise TrainingError("no")

    with pytest.raises(TrainingError):
        list(observe(failing(), [Watcher(), Watcher()]))
    assert closed == [True, True]


def test_every_event_becomes_a_line_of_metrics(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "one", "")
    for _ in observe(STORY, [JsonLines(run)]):
        pass
    records = list(read_metrics(run.metrics))
    assert [one["event"] for one in records] == [event.kind for event in STORY]
    assert all("time" in one for one in records)
    assert records[3]["tokens_per_second"] == 400
    assert records[8]["perplexity"] == pytest.approx(5.7546, abs=1e-4)


def test_tensorboard_reads_the_scalars_and_a_resume_hides_what_it_repeats(tmp_path: Path) -> None:
    def write(events: tuple[Event, ...], resumed_at: int) -> None:
        for _ in observe(events, [TensorBoard(tmp_path, resumed_at)]):
            pass

    write((stepped(1, 9.0), stepped(2, 8.0), stepped(3, 7.0), Evaluated(3, 5.0, True, 0)), 0)
    write((stepped(3, 6.0), stepped(4, 5.0)), 2)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    losses = [(one.step, one.value) for one in found.Scalars("train/loss")]
    assert losses == [(1, 9.0), (2, 8.0), (3, 6.0), (4, 5.0)]
    assert "train/learning_rate" in found.Tags()["scalars"]


def test_the_plot_covers_the_whole_history_as_valid_svg(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "one", "")
    with MetricsLog(run.metrics) as log:
        for event in STORY:
            log.append(to_record(event))
    LossPlot(run)(STORY[-1])
    root = ET.fromstring(run.loss_plot.read_text())
    assert root.tag.endswith("svg")
    text = run.loss_plot.read_text()
    for colour in ("#3b6ea5", "#c2571a"):
        assert colour in text


def test_a_run_without_a_step_gets_no_plot(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "one", "")
    LossPlot(run)(STORY[-1])
    assert not run.loss_plot.exists()


def test_a_smoothed_constant_stays_constant() -> None:
    assert smooth([(step, 2.0) for step in range(100)]) == pytest.approx([2.0] * 100)


# fault 5: too little room at the start


def test_a_disk_too_small_for_the_checkpoints_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainSettings(keep=2)
    needed = disk_bytes(1_000_000, train)  # four checkpoints of 12 MB, the result of 4 MB
    assert needed == 4 * (12_000_000 + (1 << 20)) + 4_000_000
    require_disk(tmp_path / "not" / "made", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(ResourceError, match=f"needs {needed:,} bytes, the disk has 10,000,000"):
        require_disk(tmp_path / "not" / "made", needed)
    assert not (tmp_path / "not").exists()


def test_memory_too_small_for_the_estimate_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total
    memory = SimpleNamespace(available=2_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    require_memory(1_900_000_000, CPU)
    with pytest.raises(ResourceError, match=r"needs about 6\.0 GB of memory, 2\.0 GB are free"):
        require_memory(6_000_000_000, CPU)


def test_the_time_left_does_not_count_the_look_before_the_first_step() -> None:
    """A long evaluation at step 0 is not taken for the pace of the steps."""
    out = io.StringIO()
    times = iter([0.0, 0.0, 100.0, 110.0, 110.0])
    show = ConsoleProgress(Console(file=out, width=120), lambda: next(times))
    for event in (Started(0, 11, 1), Evaluated(0, 2.0, False, 99.0), stepped(1, 2.0)):
        show(event)
    assert "0:01:40 left" in out.getvalue()
