"""The commands as a user types them, on a tiny model: train, resume, generate, recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from halfbyte import api
from halfbyte.api.planning import plan_training
from halfbyte.cli import cli, main
from halfbyte.config import load_config
from halfbyte.config.recipes import find, shipped
from halfbyte.errors import InputError, ResourceError
from halfbyte.run import RunFolder, read_metrics, summarize
from halfbyte.train import Dropped, Evaluated, Finished
from halfbyte.train.state import MicroBatch
from tests.tiny import tiny_base

ROWS = [
    {"instruction": f"Say {word}.", "response": f"{word}!"}
    for word in ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal"]
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def train(base: Path, rows: Path, runs: Path, *overrides: str) -> RunFolder:
    words = (f"model.base={base}", f"data.train={rows}", f"runs={runs}", *overrides)
    training = api.prepare_training(load_config(None, words))
    for _ in training.events():
        pass
    return training.run


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_from_rows_to_an_answer(base: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """One command trains with each method, the held-out loss falls, the result answers."""
    runs = tmp_path / "runs"
    done = run(
        "train",
        f"method={method}",
        f"model.base={base}",
        f"data.train={rows}",
        "data.valid_size=2",
        f"runs={runs}",
        "train.batch_size=4",
        "train.epochs=8",
        "train.learning_rate=5e-3",
        "--quiet",
    )
    assert done.exit_code == 0, done.output
    folder = RunFolder.open(done.stdout.strip())
    losses = [
        record["loss"] for record in read_metrics(folder.metrics) if record["event"] == "evaluated"
    ]
    assert min(losses[1:]) < losses[0]
    for path in (folder.config, folder.receipt, folder.held_out, folder.loss_plot):
        assert path.stat().st_size > 0
    answered = run("generate", str(folder.path), "Say red.", "--max-new-tokens", "8", "--json")
    record = json.loads(answered.stdout)
    assert record["prompt"] == "Say red."
    assert 0 <= record["tokens"] <= 8


def test_the_base_answers_with_the_adapter_off(base: Path, rows: Path, tmp_path: Path) -> None:
    """`--base` gives the same answer as the base alone; the adapter's differs."""
    folder = train(
        base,
        rows,
        tmp_path,
        "method=lora",
        "train.epochs=10",
        "train.learning_rate=2e-2",
        "train.batch_size=4",
    )
    wanted = api.sampling(max_new_tokens=12)
    opened = api.open_run(folder)
    off = api.answer(opened, ["Say red."], wanted, base=True)[0].ids
    assert off == api.answer(api.open_base(str(base)), ["Say red."], wanted)[0].ids
    assert api.answer(opened, ["Say red."], wanted)[0].ids != off


def test_demo_prompts_are_answered_one_of_each_kind(base: Path) -> None:
    """`generate --demo` shows every built-in example with its context, or as JSON lines."""
    shown = run("generate", str(base), "--demo", "--max-new-tokens", "2")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("\n> ") + shown.stdout.startswith("> ") == 8
    assert "| The museum is open" in shown.stdout
    lines = run("generate", str(base), "--demo", "--max-new-tokens", "2", "--json").stdout
    assert [json.loads(line)["tokens"] for line in lines.splitlines()] == [2] * 8


def test_a_result_has_a_card_with_the_hubs_front_matter(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """The model card names base, library, settings and the held-out loss before and after."""
    folder = train(base, rows, tmp_path, "train.max_steps=2")
    text = (folder.adapter / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == str(base)
    assert head["library_name"] == "peft"
    assert "| rank | 16 |" in text
    assert "| loss before |" in text


def test_an_interrupted_run_resumes_to_the_same_bytes(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """A run stopped after any step and resumed ends with the adapter of one never stopped."""
    settings = ("train.epochs=2", "train.batch_size=3", "train.micro_batch=2", "lora.dropout=0.1")
    whole = train(base, rows, tmp_path / "a", *settings, "name=whole")
    wanted = (whole.adapter / "adapter_model.safetensors").read_bytes()
    words = (f"model.base={base}", f"data.train={rows}", f"runs={tmp_path / 'b'}", *settings)
    for stop in range(1, 6):
        training = api.prepare_training(load_config(None, (*words, "train.save_every=1")))
        events = training.events()
        for event in events:
            if event.kind == "saved" and event.step == stop:
                break
        events.close()  # the process dies here: nothing after this step was done
        resumed = api.prepare_resume(training.run)
        for _ in resumed.events():
            pass
        found = (training.run.adapter / "adapter_model.safetensors").read_bytes()
        assert found == wanted, f"stopped at {stop}"
        steps = [r["step"] for r in read_metrics(training.run.metrics) if r["event"] == "stepped"]
        assert steps == list(range(1, len(steps) + 1))


def test_a_damaged_best_checkpoint_leaves_a_run_with_its_last_weights(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """It is set aside and said; the result is that of the last step, and its card's loss too."""
    words = (f"model.base={base}", f"data.train={rows}", f"runs={tmp_path / 'runs'}", "name=one")
    more = ("train.max_steps=4", "train.batch_size=4", "train.eval_every=1", "train.save_every=1")
    steep = ("train.learning_rate=60", "train.schedule=constant", "train.warmup=0")
    training = api.prepare_training(load_config(None, (*words, *more, *steep)))
    events = []
    for event in training.events():
        events.append(event)
        if isinstance(event, Finished):
            assert event.best_step not in (None, 4)
            path = training.run.checkpoint(event.best_step) / "weights.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    dropped = events[-1]
    assert isinstance(dropped, Dropped)
    assert (dropped.step, dropped.best_step) == (4, int(path.parent.name[-6:]))
    assert "weights.safetensors" in dropped.reason
    assert (path.parents[1] / f"damaged-{path.parent.name}").is_dir()
    result = load_file(training.run.adapter / "adapter_model.safetensors")
    last = load_file(training.run.checkpoint(4) / "weights.safetensors")
    sums = (sorted(float(one.double().sum()) for one in some.values()) for some in (result, last))
    assert next(sums) == next(sums)
    summary = summarize(training.run)
    assert (summary.status, summary.held_out, summary.best_step) == ("finished", None, None)
    losses = [one.loss for one in events if isinstance(one, Evaluated)]
    assert f"| loss | {losses[-1]:.4f} |" in (training.run.adapter / "README.md").read_text()


def test_changed_data_refuses_to_resume(base: Path, tmp_path: Path) -> None:
    """The difference is named; --force goes on and is recorded."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    folder = train(base, path, tmp_path / "runs", "train.max_steps=1")
    path.write_text("\n".join(json.dumps(row) for row in [*ROWS[1:], ROWS[0]]))
    with pytest.raises(SystemExit) as stopped:
        main(["resume", str(folder.path)])
    assert stopped.value.code == 2
    resumed = api.prepare_resume(folder, force=True)
    for _ in resumed.events():
        pass
    receipt = json.loads(folder.receipt.read_text())
    assert receipt["resumed"][-1]["forced"] is True
    assert any("data" in line for line in receipt["resumed"][-1]["differences"])


def test_these_are_all_the_recipes() -> None:
    """A recipe that is added is tested here too."""
    assert [name for name, _ in shipped()] == [
        "ai-tutor-mistral-7b",
        "demo",
        "hinglish-tinyllama-1b",
        "instruction-mistral-7b-12gb",
        "methods/full",
        "methods/lora",
        "methods/qlora",
        "production-7b",
    ]


@pytest.mark.parametrize("name", [name for name, _ in shipped()])
def test_every_recipe_takes_two_steps(base: Path, tmp_path: Path, name: str) -> None:
    """Each recipe trains as it is but for its base, and leaves a result."""
    words = (
        f"model.base={base}",
        "model.revision=null",
        "data.limit=24",
        "data.max_length=512",
        "train.max_steps=2",
        f"runs={tmp_path}",
    )
    training = api.prepare_training(load_config(find(name), words))
    kinds = [event.kind for event in training.events()]
    assert kinds.count("stepped") == 2
    assert training.run.adapter.is_dir() or training.run.model.is_dir()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["train", "no-such-recipe"], 2, "no such recipe"),
        (["train", "model.base=no-such-base"], 2, "no-such-base"),
        (["train", "model.base=mistral-7b"], 4, "halfbyte models pull mistral-7b"),
        (["train", "data.train=missing.jsonl"], 2, "missing.jsonl"),
        (["generate", "no-such-run", "Hello"], 2, "neither a run nor a base"),
        (["generate", "latest", "Hello", "--runs", "nowhere"], 2, "no run"),
        (["train", "--wrong"], 2, "No such option"),
        (["resume", "first", "train.max_steps=9"], 2, "It reads: halfbyte resume [OPTIONS] RUN"),
        (["merge"], 2, "`halfbyte merge --help` says more"),
        (["trian"], 2, "It reads: halfbyte [OPTIONS] COMMAND"),
        (["serve", "--print-command"], 2, "go with --engine vllm"),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A message with cause and next move, the documented exit code, and nothing half-written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "error: " in printed
    assert "Error: " not in printed
    assert "\nnext:  " in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output_is_said(tmp_path: Path, unbuffered: str) -> None:
    """Exit code 3 and no traceback, not even at exit, when what is waiting is written once more."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - no path of ours
        done = subprocess.run(
            [sys.executable, "-m", "halfbyte", "runs", "list"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    first, second = done.stderr.splitlines()
    assert first == "error: standard output cannot be written: No space left on device"
    assert second.startswith("next:  ")


def test_a_command_group_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """That is no error to be explained."""
    with pytest.raises(SystemExit) as stopped:
        main(["runs"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: halfbyte runs")


@pytest.mark.parametrize(
    "words",
    [
        ("resume",),
        ("compare",),
        ("eval",),
        ("report",),
        ("merge",),
        ("export", "--to", "peft"),
        ("generate", "Hello"),
        ("chat",),
        ("serve", "--port", "0"),
        ("runs", "show"),
        ("runs", "remove"),
    ],
    ids=" ".join,
)
def test_a_run_that_is_nowhere_is_bad_input_for_every_command(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and one error with a next move, whichever command the name was given to."""
    monkeypatch.chdir(tmp_path)
    place = 2 if words[0] == "runs" else 1
    with pytest.raises(SystemExit) as stopped:
        main([*words[:place], "no-such-run", *words[place:]])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith("error: no-such-run: n")
    assert "\nnext:  " in printed


def test_an_unfinished_run_is_something_to_finish_first(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4, whichever command wants its result; a step it never saved is bad input."""
    words = (f"model.base={base}", f"data.train={rows}", f"runs={tmp_path}", "name=half")
    api.prepare_training(load_config(None, words))
    wanted = [
        (["compare", "half"], 4, "no result yet"),
        (["merge", "half"], 4, "no result yet"),
        (["generate", "half", "Hello"], 4, "no result yet"),
        (["chat", "half"], 4, "no result yet"),
        (["report", "half"], 4, "not compared"),
        (["generate", "half@7", "Hello"], 2, "no checkpoint at step 7"),
        (["compare", "half", "--step", "7"], 2, "no checkpoint at step 7"),
    ]
    for command, code, text in wanted:
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--runs", str(tmp_path)])
        assert (stopped.value.code, text in capsys.readouterr().err) == (code, True), command


def test_compare_writes_evidence_and_report(base: Path, rows: Path, tmp_path: Path) -> None:
    """One command from a run to table, verdict and report; the gate is an exit code."""
    runs = tmp_path / "runs"
    folder = train(
        base, rows, runs, "train.epochs=6", "train.learning_rate=5e-3", "eval.max_new_tokens=8"
    )
    done = run("compare", "latest", "--runs", str(runs), "--no-retention", "--show", "1")
    assert done.exit_code == 0, done.output
    assert "perplexity" in done.stdout
    page = (folder.report / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {path.suffix for path in folder.report.iterdir()} == {".html", ".md", ".json", ".txt"}
    with pytest.raises(SystemExit) as stopped:
        main(
            ["compare", str(folder.path), "--no-retention", "--require", "perplexity < 0.01 * base"]
        )
    assert stopped.value.code == 6


def test_a_run_compared_with_itself_shows_no_difference(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """Two identical models are called identical."""
    folder = train(base, rows, tmp_path, "train.max_steps=1", "eval.max_new_tokens=8")
    done = api.compare_run(folder, api.Asked(retention=False), against=str(folder.path))
    assert done.comparison.verdict.outcome == "no difference"


def test_runs_on_one_base_are_compared_together(base: Path, rows: Path, tmp_path: Path) -> None:
    """Several runs answer the same rows, their base only once; the table shows all of them."""
    for name, seed in (("one", 1), ("two", 2)):
        train(base, rows, tmp_path, f"name={name}", f"train.seed={seed}", "train.max_steps=2")
    heard: list[str] = []
    asked = api.Asked(
        max_new_tokens=4, retention=False, progress=lambda what, *_: heard.append(what)
    )
    done = list(api.compare_runs(["one", "two"], asked, tmp_path))
    assert [one.comparison.tuned for one in done] == ["one", "two"]
    assert done[0].base is done[1].base
    whole = sum(what.endswith("likelihood") for what in heard)
    assert whole == 3 * sum(what == "one: likelihood" for what in heard)
    command = ["compare", "one", "two", "--runs", str(tmp_path), "--no-retention"]
    printed = run(*command, "--max-new-tokens", "4")
    assert printed.exit_code == 0, printed.output
    last = printed.stdout[printed.stdout.rindex("p (Holm)") :]
    assert "one" in last
    assert "two" in last


def test_checkpoints_are_compared_with_each_other(base: Path, rows: Path, tmp_path: Path) -> None:
    """`--against RUN@STEP` puts a checkpoint in the base's place."""
    words = ("train.max_steps=3", "train.save_every=1", "train.keep=3", "eval.max_new_tokens=4")
    folder = train(base, rows, tmp_path, *words, "train.keep_best=false")
    done = api.compare_run(folder, api.Asked(retention=False), against=f"{folder.path}@1")
    assert done.comparison.base == f"{folder.name}@1"
    same = api.compare_run(folder, api.Asked(retention=False), against=f"{folder.path}@3")
    assert same.comparison.verdict.outcome == "no difference"
    assert done.comparison.metric("perplexity").difference != 0


def test_a_run_is_not_asked_about_rows_it_may_know(base: Path, rows: Path, tmp_path: Path) -> None:
    """Rows that one run held out and another did not are refused, with the way round it."""
    train(base, rows, tmp_path, "name=one", "train.max_steps=1", "data.valid_size=6")
    train(base, rows, tmp_path, "name=two", "train.max_steps=1", "data.valid_size=1")
    with pytest.raises(InputError, match="two did not hold out"):
        list(api.compare_runs(["one", "two"], api.Asked(retention=False), tmp_path))


def test_two_processes_take_the_steps_of_one(base: Path, rows: Path, tmp_path: Path) -> None:
    """Under accelerate's launcher (gloo), the losses are those of one process to 1e-5."""
    settings = [
        f"model.base={base}",
        f"data.train={rows}",
        "method=lora",
        "model.compute=fp32",  # sums of 1e-5 are float32's
        "train.epochs=2",
        "train.batch_size=4",
        "train.learning_rate=5e-3",
        f"runs={tmp_path}",
    ]
    # with --cpu the launcher starts one process and says nothing: several need this
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "halfbyte", "train", *settings, "name=two", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run("train", *settings, "name=one", "--quiet").exit_code == 0

    started = next(iter(read_metrics(RunFolder(tmp_path / "two").metrics)))
    assert started["processes"] == 2

    def losses(name: str) -> list[float]:
        records = read_metrics(RunFolder(tmp_path / name).metrics)
        return [record["loss"] for record in records if record["event"] in {"stepped", "evaluated"}]

    assert len(losses("two")) > 6
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)


def test_a_memory_limit_is_kept_or_refused(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the least it needs a training is refused; near it, activations are recomputed."""
    # of a tiny model libraries and holes would be a thousand times the rest
    monkeypatch.setattr("halfbyte.api.arranging.held_now", lambda _: 0)
    monkeypatch.setattr("halfbyte.model.fast.alloc.finds_again", lambda: True)
    words = (f"model.base={base}", f"data.train={rows}", f"runs={tmp_path}", "method=lora")
    words = (*words, "train.micro_tokens=512")  # else fewer tokens at once would do
    with pytest.raises(ResourceError) as refused:
        api.prepare_training(load_config(None, (*words, "train.memory_limit=0.1MB")))
    assert refused.value.exit_code == 3
    far = api.prepare_training(load_config(None, (*words, "train.memory_limit=2GB")))
    assert not far.summary.notes
    limit = f"train.memory_limit={0.93 * far.summary.arrangement.peak / 1e6:.3f}MB"
    near = api.prepare_training(load_config(None, (*words, limit)))
    assert any("recomputed" in note for note in near.summary.notes)
    assert near.run.receipt.read_text().count('"recomputed": ') == 1


@pytest.mark.parametrize("share", ["true", "false"])
def test_no_micro_batch_is_larger_than_planned_and_the_first_is_as_large(
    base: Path, tmp_path: Path, share: str
) -> None:
    """Also where the heaviest steps are halved and others just fit at once: what does not fit in
    memory fails in the first seconds, and the plan says how much is computed at once.
    """
    random = np.random.default_rng(0)
    rows = [
        {
            "instruction": f"Say {number}.",
            "response": " ".join(random.choice(list("abc"), size=size)),
        }
        for number, size in enumerate(random.integers(5, 60, 160))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    config = f"model.base={base} data.train={data} runs={tmp_path} method=lora"
    words = (*config.split(), "train.micro_tokens=700", f"train.share_prefixes={share}")
    training = api.prepare_training(load_config(None, words))
    sizes: list[list[int]] = []
    plan = training.source.plan

    def noted(*asked: Any) -> Sequence[MicroBatch]:
        found = plan(*asked)
        sizes.append([batch.input_ids.numel() for batch in found])
        return found

    training.source.plan = noted
    for _ in training.events():
        pass
    assert len({len(step) for step in sizes}) > 1  # the heaviest were halved
    planned = plan_training(load_config(None, words), timed=False).tokens_at_once
    largest = max(max(step) for step in sizes)
    longest = int(training.summary.data.train.lengths.max())
    assert largest <= planned <= 700
    assert sizes[0][0] > largest - longest
