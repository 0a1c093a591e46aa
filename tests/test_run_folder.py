"""The run folder: names, locks, and files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from halfbyte.cli.runs import runs as runs_command
from halfbyte.errors import InputError, IntegrityError, MissingError, ResourceError
from halfbyte.run import (
    MetricsLog,
    Receipt,
    Resumption,
    RunFolder,
    atomic_folder,
    read_metrics,
    rewind,
    summarize,
    write_atomic,
)
from halfbyte.run.failpoints import arm

CONFIG = "method: lora\nmodel: {base: tiny}\n"


def receipt(**given: object) -> Receipt:
    base = Receipt(
        base="tiny",
        revision=None,
        base_files={"model.safetensors": "aa"},
        data={"train": "11", "valid": "22"},
        template="cc",
        config={"method": "lora", "train": {"batch_size": 4, "keep": 2}, "lora": {"targets": ()}},
        seed=1,
        threads=2,
        device="cpu",
        created="2026-11-22T10:00:00+00:00",
        versions={"torch": "2.13.0"},
    )
    return replace(base, **given)  # type: ignore[arg-type]  # each test gives what it changes


# names


def test_a_name_that_exists_is_refused_and_a_stem_gets_a_number(tmp_path: Path) -> None:
    """Only an unfinished run can be gone on with, and that is said to be on its own data."""
    run = RunFolder.create(tmp_path, "one", CONFIG)
    with pytest.raises(InputError, match="exists already, and is not finished") as caught:
        RunFolder.create(tmp_path, "one", CONFIG)
    assert "on its own data and with its own settings: halfbyte resume" in caught.value.hint
    for result in (run.adapter, run.model):
        result.mkdir()
        with pytest.raises(InputError, match="exists already, and is finished") as caught:
            RunFolder.create(tmp_path, "one", CONFIG)
        assert caught.value.hint == "Choose another name=NAME."
        result.rmdir()
    (tmp_path / "other").touch()
    with pytest.raises(InputError, match="exists already, and is no run"):
        RunFolder.create(tmp_path, "other", CONFIG)
    names = [RunFolder.create(tmp_path, None, CONFIG, "org/a b!").name for _ in range(3)]
    assert names == ["org-a-b", "org-a-b-2", "org-a-b-3"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\0b", "x" * 101, "-flag"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a run name"):
        RunFolder.create(tmp_path, name, CONFIG)


def test_a_run_opens_by_name_by_path_and_from_what_is_in_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "one", CONFIG)
    run.checkpoint(3).mkdir(parents=True)
    run.adapter.mkdir()
    for given in (run.path, run.adapter, run.checkpoint(3)):
        assert RunFolder.open(given, "elsewhere") == run
    assert RunFolder.open("one", tmp_path) == run
    with pytest.raises(MissingError, match="no such run") as caught:
        RunFolder.open("onne", tmp_path)
    assert caught.value.hint == "Did you mean one?"


def test_inside_a_run_folder_another_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path, "one", CONFIG)
    monkeypatch.chdir(run.path)
    with pytest.raises(MissingError):
        RunFolder.open("two", tmp_path)


def test_a_used_run_and_a_link_are_not_removed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "one", CONFIG)
    link = RunFolder(tmp_path / "link")
    link.path.symlink_to(run.path)
    with pytest.raises(InputError, match="a link"):
        link.remove()
    with run.lock(), pytest.raises(InputError, match=str(os.getpid())):
        run.remove()
    assert run.config.read_text() == CONFIG
    run.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


# whole or absent


def fill_half(folder: Path) -> None:
    with atomic_folder(folder) as temp:
        (temp / "part").write_text("half")
        raise RuntimeError("midway")


def test_a_failing_writer_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def explode(file: object) -> None:
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError):
        write_atomic(path, explode)
    with pytest.raises(RuntimeError):
        fill_half(tmp_path / "folder")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    for names in (("a", "b"), ("b", "c")):
        with atomic_folder(tmp_path / "folder") as temp:
            for name in names:
                (temp / name).write_text(name)
    assert sorted(one.name for one in (tmp_path / "folder").iterdir()) == ["b", "c"]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


# what cannot be written


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_refuses_to_be_written_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Files, folders, runs and locks: path and reason are said, the cleanup hides neither."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    run = RunFolder.create(tmp_path, "there", CONFIG)
    for name in ("mkdir", "open", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "open", refuse)
    writers: list[Callable[[], object]] = [
        lambda: write_atomic(tmp_path / "x", "text"),
        lambda: write_atomic(tmp_path / "deep" / "x", "text"),
        lambda: fill_half(tmp_path / "x"),
        lambda: RunFolder.create(tmp_path, "x", CONFIG),
        run.remove,
    ]
    for write in writers:
        with pytest.raises(ResourceError, match=f"cannot be written: {os.strerror(number)}") as it:
            write()
        assert it.value.exit_code == 3
        assert it.value.hint
        assert str(tmp_path) in it.value.message


def test_a_path_that_nothing_can_have_is_bad_input(tmp_path: Path) -> None:
    """A file for a folder, a folder for a file, a name too long: said, and nothing is touched."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    writers: dict[str, Callable[[], object]] = {
        f"{file}/x: .*a file is where a folder": lambda: write_atomic(file / "x", "text"),
        f"{file}/run: .*a file is where a folder": lambda: RunFolder.create(file, "run", CONFIG),
        f"{file}: .*a file is where a folder": lambda: fill_half(file),
        "a folder has this name": lambda: write_atomic(folder, "text"),
        "the name is too long": lambda: write_atomic(tmp_path / ("x" * 300), "text"),
    }
    for message, write in writers.items():
        with pytest.raises(InputError, match=message):
            write()
    assert file.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_that_cannot_be_read_is_not_taken_for_the_one_that_is_written(
    tmp_path: Path,
) -> None:
    """The error of another file passes as it is."""

    def copy(_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "source"))

    with pytest.raises(PermissionError):
        write_atomic(tmp_path / "copy", copy)
    assert list(tmp_path.iterdir()) == []


def test_a_failpoint_that_is_none_is_an_error() -> None:
    with pytest.raises(InputError, match="no failpoint"):
        arm("save=explode")


# metrics


def test_a_full_disk_under_the_metrics_is_an_error_of_ours_and_said_once(tmp_path: Path) -> None:
    """Not once more when the file is closed; what was written before stays readable."""
    path = tmp_path / "metrics.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = MetricsLog(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        log.append({"event": "stepped", "step": 1})
        with pytest.raises(ResourceError, match="disk is full"):
            log.append({"event": "stepped", "step": 2, "text": "c" * 1000})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == 1000
    assert [one["step"] for one in read_metrics(path)] == [1]


def test_a_torn_last_line_is_mended_and_each_step_is_there_once_after_a_rewind(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.append({"event": "stepped", "step": step, "loss": 1.0 / step})
        log.append({"event": "evaluated", "step": 3, "loss": float("nan")})
    with path.open("a") as file:
        file.write('{"event": "stepped", "st')  # killed within a write
    assert len(list(read_metrics(path))) == 6
    assert rewind(path, 3, drop=("evaluated",)) == 4  # steps 4, 5, the evaluation, the torn line
    with MetricsLog(path) as log:
        log.append({"event": "stepped", "step": 4, "text": "a\u2028b"})
    assert [one["step"] for one in read_metrics(path)] == [1, 2, 3, 4]
    assert rewind(path, None) == 4
    assert path.read_text() == ""


def test_opening_a_torn_log_mends_it_before_anything_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    with MetricsLog(path) as log:
        log.append({"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
    ]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as log:
        log.append({"loss": float("nan"), "deep": {"norms": [float("inf"), 1.5]}})
    assert json.loads((tmp_path / "m").read_text()) == {
        "loss": None,
        "deep": {"norms": [None, 1.5]},
    }


# receipts (fault 7)


def test_a_receipt_reads_back_as_written(tmp_path: Path) -> None:
    made = receipt().with_resumption(Resumption("2026-11-22", 4, True, ("seed: was 1, is 2",)))
    made.write(tmp_path / "receipt.json")
    back = Receipt.read(tmp_path / "receipt.json")
    assert back.differences(made) == []
    assert back.resumed == made.resumed
    (tmp_path / "receipt.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not a receipt"):
        Receipt.read(tmp_path / "receipt.json")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data": {"train": "99", "valid": "22"}}, "data.train: was 11, is 99"),
        ({"data": {"train": "11"}}, "data.valid: was 22, is absent"),
        ({"base_files": {"model.safetensors": "bb"}}, "base_files.model.safetensors: was aa"),
        ({"template": "dd"}, "template: was cc, is dd"),
        ({"seed": 2}, "seed: was 1, is 2"),
        (
            {"config": {"method": "lora", "train": {"batch_size": 8, "keep": 2}}},
            "config.train.batch_size: was 4, is 8",
        ),
    ],
)
def test_a_changed_input_refuses_to_resume_and_force_is_recorded(
    change: dict[str, object], line: str
) -> None:
    before, now = receipt(), receipt(**change)
    with pytest.raises(InputError) as caught:
        before.check(now)
    assert line in caught.value.message
    assert "--force" in caught.value.hint
    differences = before.check(now, force=True)
    entry = Resumption("2026-11-22", 4, True, tuple(map(str, differences)))
    forced = before.with_resumption(entry, now)
    assert any(line in one for one in forced.resumed[0].differences)
    assert forced.check(now) == []


def test_what_does_not_shape_the_training_is_noted_not_refused() -> None:
    config = {"method": "lora", "train": {"batch_size": 4, "keep": 9}, "lora": {"targets": []}}
    now = receipt(threads=4, device="gpu", versions={"torch": "2.14.0"}, config=config)
    noted = [str(one) for one in receipt().check(now)]
    assert noted == [
        "config.train.keep: was 2, is 9",
        "device: was cpu, is gpu",
        "threads: was 2, is 4",
        "versions.torch: was 2.13.0, is 2.14.0",
    ]


# looking at runs


def filled(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path, "one", CONFIG)
    receipt().write(run.receipt)
    run.checkpoint(4).mkdir(parents=True)
    (run.checkpoint(4) / "weights.safetensors").write_bytes(b"x" * 2000)
    with MetricsLog(run.metrics) as log:
        log.append({"event": "started", "step": 0, "steps": 8})
        log.append({"event": "evaluated", "step": 0, "loss": 3.0, "perplexity": 20.1})
        log.append({"event": "stepped", "step": 4, "loss": 2.5})
        log.append({"event": "evaluated", "step": 4, "loss": 2.25, "best": True, "perplexity": 9.5})
    return run


def test_the_status_of_a_run_follows_from_its_files(tmp_path: Path) -> None:
    run = filled(tmp_path)
    assert summarize(run).status == "stopped"
    with run.lock():
        assert summarize(run).status == "running"
    with MetricsLog(run.metrics) as log:
        log.append({"event": "skipped", "step": 5, "reason": "loss is nan"})
        log.append({"event": "stopped", "step": 5, "signal": 2})
    summary = summarize(run)
    assert (summary.status, summary.loss, summary.held_out) == ("interrupted", None, 2.25)
    with MetricsLog(run.metrics) as log:
        log.append({"event": "finished", "step": 8})
    assert summarize(run).status == "finished"
    assert summarize(RunFolder.create(tmp_path, "two", CONFIG)).status == "new"


def test_runs_are_listed_shown_and_removed_on_the_command_line(tmp_path: Path) -> None:
    run, where = filled(tmp_path), ["--runs", str(tmp_path)]
    RunFolder.create(tmp_path, "two", CONFIG)
    click = CliRunner()
    listed = json.loads(click.invoke(runs_command, ["list", *where, "--json"]).output)
    assert [(one["name"], one["status"], one["base"]) for one in listed] == [
        ("one", "stopped", "tiny"),
        ("two", "new", "tiny"),
    ]
    table = click.invoke(runs_command, ["list", *where]).output
    assert "stopped" in table
    assert "4/8" in table
    shown = json.loads(click.invoke(runs_command, ["show", "one", *where, "--json"]).output)
    assert shown["checkpoints"][0]["best"]
    assert shown["receipt"]["data"]["train"] == "11"
    text = click.invoke(runs_command, ["show", "one", *where]).output
    for word in ("2.2500 at step 4", "9.500", "2.0 kB", "torch 2.13.0"):
        assert word in text
    refused = click.invoke(runs_command, ["remove", "one", *where], input="n\n")
    assert refused.exit_code == 1
    assert run.path.is_dir()
    assert click.invoke(runs_command, ["remove", "one", "two", *where, "--yes"]).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_data_that_was_not_given_is_not_shown(tmp_path: Path) -> None:
    """Without a file of held-out rows there is no line for one."""
    run = RunFolder.create(tmp_path, "one", CONFIG)
    receipt(data={"train": "11", "valid": ""}).write(run.receipt)
    text = CliRunner().invoke(runs_command, ["show", "one", "--runs", str(tmp_path)]).output
    assert "train data" in text
    assert "valid data" not in text


@pytest.mark.parametrize("width", [80, 140])
def test_state_and_date_of_a_listed_run_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Also in a terminal of 80 columns, with names as long as they are made."""
    monkeypatch.setattr("halfbyte.cli.runs.console", lambda **_: Console(width=width))
    name = "smollm2-135m-instruct-qlora-20261122-100000"
    run = RunFolder.create(tmp_path, name, CONFIG)
    receipt().write(run.receipt)
    with MetricsLog(run.metrics) as log:
        log.append({"event": "started", "step": 0, "steps": 12000})
        log.append({"event": "stopped", "step": 11000, "signal": 2})
    lines = CliRunner().invoke(runs_command, ["list", "--runs", str(tmp_path)]).output.splitlines()
    assert max(map(len, lines)) <= width
    for whole in ("interrupted", "2026-11-22 10:00", "11000/12000"):
        assert whole in lines[1]
    assert "".join(line[: len(name)].split(" ")[0] for line in lines[1:]) == name
    assert ("method" in lines[0]) == (width > 80)


def test_no_runs_is_said_in_words(tmp_path: Path) -> None:
    output = CliRunner().invoke(runs_command, ["list", "--runs", str(tmp_path / "none")]).output
    assert "No run under" in output


def test_latest_is_shown_and_is_no_name_to_remove(tmp_path: Path) -> None:
    """As every command that takes a run, but what is deleted is named."""
    where = ["--runs", str(tmp_path)]
    with pytest.raises(MissingError, match="no run under"):
        RunFolder.find("latest", tmp_path)
    for age, name in enumerate(("new", "old")):
        os.utime(RunFolder.create(tmp_path, name, CONFIG).config, (1e9 - age, 1e9 - age))
    shown = CliRunner().invoke(runs_command, ["show", "latest", *where, "--json"])
    assert json.loads(shown.output)["summary"]["name"] == "new"
    refused = CliRunner().invoke(runs_command, ["remove", "latest", *where, "--yes"])
    assert isinstance(refused.exception, MissingError)
    assert len(RunFolder.all(tmp_path)) == 2
