"""A conversation: who answers can be switched, and each answers as it does alone."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from halfbyte import api
from halfbyte.cli import cli
from halfbyte.config import load_config
from halfbyte.errors import InputError, IntegrityError
from tests.tiny import tiny_base

STRONG = ("train.max_steps=6", "train.learning_rate=3e-2", "train.batch_size=4")
RUNS = (("red", "red", "qlora"), ("blue", "blue", "qlora"), ("plain", "red", "lora"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two quantized runs and an unquantized one on one base."""
    folder = tmp_path_factory.mktemp("runs")
    for name, word, method in RUNS:
        rows = folder / f"{name}.jsonl"
        lines = [
            json.dumps({"instruction": f"Say {i}.", "response": f"{word} {word} {word}"})
            for i in range(24)
        ]
        rows.write_text("\n".join(lines))
        words = (f"model.base={base}", f"data.train={rows}", f"runs={folder}", f"name={name}")
        training = api.prepare_training(load_config(None, (*words, f"method={method}", *STRONG)))
        for _ in training.events():
            pass
    return folder


def said(talk: api.Chat, text: str) -> str:
    """The answer to a message of a new conversation."""
    talk.set_system("")
    return "".join(update.text for update in talk.say(text))


def alone(name: str, runs: Path, *, base: bool = False) -> str:
    """The same answer of a run opened by itself."""
    opened = api.open_run(name, runs)
    wanted = api.sampling(max_new_tokens=8)
    return api.answer(opened, ["Say it."], wanted, base=base)[0].text


def test_a_base_takes_adapters_while_it_talks(base: Path, runs: Path) -> None:
    """From a bare 4-bit base to one adapter, another, and back: each answers as it does alone."""
    talk = api.Chat(api.open_any(f"{base}@nf4", runs), api.sampling(max_new_tokens=8), runs)
    own = alone("red", runs, base=True)
    assert said(talk, "Say it.") == own
    for name in ("red", "blue", "red"):
        talk.use_adapter(name)
        assert said(talk, "Say it.") == alone(name, runs)
    assert alone("red", runs) != alone("blue", runs)
    talk.use_base()
    assert said(talk, "Say it.") == own
    assert list(talk.adapters) == ["red", "blue"]


def test_a_name_says_how_a_base_is_held(base: Path) -> None:
    """Beside other settings, as `halfbyte serve BASE@nf4 --compute fp32` gives them."""
    for words, held in (("", None), ("@nf4", "nf4"), ("@int8", "int8")):
        form = api.open_base(f"{base}{words}", ["model.compute=fp32"]).form
        assert (form.quantization, form.compute.name) == (held, "fp32")
    with pytest.raises(InputError, match="quantization"):
        api.open_base(f"{base}@nf5")


def test_an_adapter_of_another_form_is_refused(base: Path, runs: Path) -> None:
    """An adapter trained on 4 bits does not go on 32, nor the other way round; nothing changes."""
    talk = api.Chat(api.open_any(str(base), runs), api.sampling(max_new_tokens=4), runs)
    with pytest.raises(IntegrityError, match="red: was trained on the base in another form"):
        talk.use_adapter("red")
    assert talk.adapter is None
    talk.use_adapter("plain")
    assert talk.adapter == "plain"


def test_a_stopped_answer_stays_as_far_as_it_came(runs: Path) -> None:
    """Leaving an answer keeps its beginning in the history, and `retry` puts another in place."""
    talk = api.Chat(api.open_run("red", runs), api.sampling(max_new_tokens=8), runs)
    updates = talk.say("Say it.")
    first = next(updates).text
    updates.close()
    assert talk.messages[-1].content == first
    whole = "".join(update.text for update in talk.retry())
    assert [one.role for one in talk.messages] == ["user", "assistant"]
    assert talk.messages[-1].content == whole
    talk.set_system("")
    with pytest.raises(InputError, match="nothing was said yet"):
        list(talk.retry())


def test_a_conversation_in_the_terminal(runs: Path, tmp_path: Path) -> None:
    """Every command works, a wrong one says which there are, and the conversation can be saved."""
    saved = tmp_path / "chat.jsonl"
    lines = [
        "Say it.",
        "/retry",
        "/base",
        "/adapter blue",
        "/adapter",
        "/settings temperature 0",
        "/settings temperature hot",
        "/nonsense",
        "/system Be short.",
        '"""',
        "one",
        "two",
        '"""',
        f"/save {saved}",
        "/clear",
        "/help",
        "/quit",
    ]
    command = ["chat", "red", "--runs", str(runs), "--max-new-tokens", "4"]
    done = CliRunner().invoke(cli, command, input="\n".join(lines) + "\n", catch_exceptions=False)
    assert done.exit_code == 0
    printed = done.output
    assert printed.count("tokens/s") == 3
    assert "base> " in printed
    assert "blue> " in printed
    assert "/nonsense: no such command" in printed
    assert "temperature" in printed
    assert "Traceback" not in printed
    turns = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]
    assert turns[1]["content"] == "one\ntwo"


def test_lines_can_be_edited_and_found_again(runs: Path) -> None:
    """In a terminal the arrow up brings back the line before, and the left one goes into it."""
    pytest.importorskip("readline")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "halfbyte", "chat", "red", "--runs", str(runs)]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as talk:
        os.close(theirs)
        shown = ""
        for keys in ("/setings\r", "\x1b[A\x1b[D\x1b[D\x1b[D\x1b[D\x1b[Dt\r", "/quit\r"):
            shown += _until(ours, "red> ")
            os.write(ours, keys.encode())
        shown += _until(ours, "\0")
        assert talk.wait(60) == 0
    os.close(ours)
    assert "/setings: no such command" in shown
    assert "max_new_tokens" in shown.split("no such command")[1]


def _until(terminal: int, end: str) -> str:
    """What a program writes until it ends so, or ends."""
    shown = ""
    while not shown.endswith(end) and select.select([terminal], [], [], 60)[0]:
        try:
            more = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        shown += more.decode()
        if not more:
            break
    return shown
