"""The command: starting, stopping, what it refuses, vLLM's line, and the examples of the docs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from halfbyte.cli import cli
from halfbyte.errors import InputError, MissingError
from halfbyte.serve import Keys
from halfbyte.serve.listening import listening
from halfbyte.serve.server import exit_code
from halfbyte.serve.vllm import command
from tests.serving import QUESTION, World, make_run, make_world, running

DOCS = Path(__file__).resolve().parent.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def begun(world: World, *more: str) -> tuple[subprocess.Popen[str], int]:
    """`halfbyte serve` as a process of its own that listens."""
    port = free_port()
    line = [sys.executable, "-m", "halfbyte", "serve", str(world.base), "--runs", str(world.runs)]
    process = subprocess.Popen(
        [*line, "--port", str(port), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert f":{port}/v1" in said, (said, process.stderr and process.stderr.read())
    return process, port


def ask(port: int, new: int) -> socket.socket:
    """A connection whose request has begun to be answered."""
    asked = {"model": "red", "messages": QUESTION, "temperature": 0}
    body = json.dumps({**asked, "max_tokens": new, "stream": True})
    one = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    one.sendall(head.encode() + body.encode())
    return one


def rest(one: socket.socket) -> str:
    parts = []
    while part := one.recv(65536):
        parts.append(part)
    one.close()
    return b"".join(parts).decode()


def test_told_to_stop_it_finishes_what_it_began(world: World) -> None:
    """SIGTERM during an answer: the answer comes to its end, no new connection is taken, and the
    exit code is 0."""
    process, port = begun(world)
    try:
        one = ask(port, 350)
        first = one.recv(200).decode()
        process.send_signal(signal.SIGTERM)
        said = first + rest(one)
        assert "data: [DONE]" in said
        assert said.endswith("0\r\n\r\n")  # the last chunk
        assert process.wait(60) == 0
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_grace_it_says_that_it_cut_off(world: World, number: signal.Signals) -> None:
    """A signal during answers that do not finish in time: the exit code is 130 or 143, and their
    streams end with an error, not as if they were whole."""
    with running(world.settings(limits={"grace_seconds": 0.0})) as server:
        engine = server.service.engine.engine
        step = engine.step

        def slow() -> Any:
            time.sleep(0.05)
            return step()

        engine.step = slow  # type: ignore[method-assign]  # an answer that takes 15 s
        asked = ask(server.port, 300)
        first = asked.recv(200).decode()
        server.server.handle_exit(number, None)
        said = first + rest(asked)
    assert "[DONE]" not in said
    assert "the server is stopping" in said
    assert exit_code(server.server, server.guard) == 128 + number


def test_help_loads_no_server() -> None:
    """`halfbyte --help` and `halfbyte serve --help` import neither FastAPI nor torch."""
    code = (
        "import sys; from halfbyte.cli import cli\n"
        "for a in (['--help'], ['serve', '--help']):\n"
        "    try: cli.main(args=a, standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "print([m for m in ('fastapi', 'torch', 'uvicorn', 'llguidance') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def run_cli(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["serve", *arguments])


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FastAPI is not installed the message is the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = run_cli().exception
    assert isinstance(error, MissingError)
    assert error.message == "The server extra is missing: pip install 'halfbyte[serve]'"


def test_beyond_loopback_it_does_not_start_without_a_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 27: the command refuses before anything is loaded; the key may come from the
    environment."""
    monkeypatch.delenv("HALFBYTE_API_KEY", raising=False)
    error = run_cli("--host", "0.0.0.0").exception
    assert isinstance(error, InputError)
    assert "HALFBYTE_API_KEY" in error.hint
    monkeypatch.setenv("HALFBYTE_API_KEY", "long-enough")
    where = (str(world.base), "--runs", str(world.runs))
    line = run_cli(*where, "--host", "0.0.0.0", "--engine", "vllm", "--print-command")
    assert line.exception is None
    assert "long-enough" not in line.output


def test_where_it_cannot_listen_nothing_is_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port in use, or an address that is not this machine's: exit code 2, what and where, and
    what to do; the model is not opened."""
    monkeypatch.setattr(
        "halfbyte.serve.service.open_service", lambda settings: pytest.fail("opened")
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = run_cli(str(world.base), "--port", str(port)).exception
    assert isinstance(error, InputError)
    assert error.exit_code == 2
    assert error.message == f"--port {port}: another program listens at 127.0.0.1:{port}"
    assert "--port 0" in error.hint
    for host in ("192.0.2.1", "no-such-host.invalid", "a..b"):
        error = run_cli(str(world.base), "--host", host, "--api-key", "long-enough").exception
        assert isinstance(error, InputError)
        assert error.message.startswith(f"--host {host}: cannot listen there: ")


def test_the_address_is_held_while_the_model_loads() -> None:
    """From the first moment a second server is refused, and a client waits instead of being sent
    away; when loading fails the address is free again."""
    port = free_port()
    with pytest.raises(RuntimeError), listening("localhost", port):  # noqa: PT012  the block is what is tested
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(InputError, match="another program"), listening("127.0.0.1", port):
            pass
        raise RuntimeError("loading fails")
    with listening("localhost", port):
        pass


def test_all_addresses_of_a_name_have_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 on a name with several addresses is the same free port on each; an address that is
    not here is passed over."""
    places = [("127.0.0.1", 0), ("192.0.2.1", 0), ("127.0.0.2", 0)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    with monkeypatch.context() as patched:
        patched.setattr("socket.getaddrinfo", lambda *_, **__: found)
        with listening("many", 0) as sockets:
            names = [one.getsockname() for one in sockets]
    assert [name[0] for name in names] == ["127.0.0.1", "127.0.0.2"]
    assert names[0][1] == names[1][1] != 0


def test_the_line_for_vllm(world: World) -> None:
    """vLLM is started with the same base, names, folders and address; the key goes by the
    environment; what it cannot serve with the others is named."""
    make_run(world.runs, "dora", world.base, 3, dora=True)
    make_run(world.runs, "wide", world.base, 3, rank=20)
    make_run(world.runs, "quantized", world.base, 3, "method: qlora")
    line = command(world.settings(keys=Keys("an-api-key")), ["--tensor-parallel-size=2"])
    parts = list(line.arguments)
    assert parts[:3] == ["vllm", "serve", str(world.base.resolve())]
    assert parts[parts.index("--served-model-name") + 1] == world.base.name
    assert parts[parts.index("--max-lora-rank") + 1] == "32"
    modules = parts[parts.index("--lora-modules") + 1 : -1]
    assert [module.partition("=")[0] for module in modules] == ["red", "green", "blue", "wide"]
    for module in modules:
        assert (Path(module.partition("=")[2]) / "adapter_model.safetensors").is_file()
    assert parts[-1] == "--tensor-parallel-size=2"
    assert line.environment == {"VLLM_API_KEY": "an-api-key"}
    assert "an-api-key" not in str(line)
    assert set(line.left_out) == {"dora", "quantized"}
    for name in ("dora", "wide", "quantized"):
        shutil.rmtree(world.runs / name)


def test_vllm_takes_the_place_of_this_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a `vllm` is installed this process becomes it, with the arguments and the key; where
    not, the hint says what to do."""
    became: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *given: became.append(given))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HALFBYTE_API_KEY", "an-api-key")
    line = (str(world.base), "--runs", str(world.runs), "--engine", "vllm")
    error = run_cli(*line).exception
    assert isinstance(error, MissingError)
    assert "pip install vllm" in error.hint
    fake = tmp_path / "vllm"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    assert run_cli(*line, "--vllm-arg", "--tensor-parallel-size=2").exception is None
    ((program, arguments, environment),) = became
    assert program == str(fake)
    assert arguments[:2] == ["vllm", "serve"]
    assert arguments[-1] == "--tensor-parallel-size=2"
    assert environment["VLLM_API_KEY"] == "an-api-key"


def blocks(kind: str) -> list[str]:
    """The examples of the docs in this language."""
    return re.findall(rf"```{kind}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_of_the_docs_run(world: World, tmp_path: Path) -> None:
    """Every shell and Python example of docs/serving.md does what it says against a server."""
    new = 64  # room for the JSON of the example, a byte a token
    settings = world.settings(keys=Keys(admin="admin-key-1"), limits={"new_tokens": new})
    with running(settings) as server:

        def adapted(text: str) -> str:
            for here, there in (
                ("http://127.0.0.1:8000", server.url),
                ("smollm2-135m", world.base.name),
                ("my-run", "red"),
            ):
                text = text.replace(here, there)
            return text

        environment = {**os.environ, "HALFBYTE_ADMIN_KEY": "admin-key-1"}
        outputs = []
        for text in blocks("sh"):
            if text.startswith("halfbyte serve "):
                words = shlex.split(text.replace("halfbyte serve", "", 1))
                found = run_cli(str(world.base), "--runs", str(world.runs), *words)
                assert found.exception is None
                outputs.append(found.output)
                continue
            done = subprocess.run(
                ["bash", "-ec", adapted(text)],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            outputs.append(done.stdout)
        for text in blocks("python"):
            exec(compile(adapted(text), str(DOCS), "exec"), {})
    assert [len(blocks("sh")), len(blocks("python"))] == [5, 2]
    models, chat, loaded, unloaded, line = outputs
    assert {card["id"] for card in json.loads(models)["data"]} >= {world.base.name, "red"}
    said = json.loads(chat)["choices"][0]["message"]["content"]
    assert said == world.alone("red", QUESTION[0]["content"], new)
    assert "added" in loaded
    assert "removed" in unloaded
    assert line.startswith("vllm serve ")


def test_the_limits_of_the_docs_are_those_of_the_code() -> None:
    """The table of limits names the defaults of the settings."""
    from halfbyte.serve import Limits

    text, limits = DOCS.read_text(encoding="utf-8"), Limits()
    for words in (
        f"| headers | {limits.header_bytes >> 10} KB, {limits.header_seconds:.0f} s |",
        f"| body | {limits.body_bytes >> 20} MB, {limits.body_seconds:.0f} s |",
        f"| JSON | {limits.json_depth} levels |",
        f"| messages of a conversation | {limits.messages} |",
        f"`--max-batch` {limits.rows}",
        f"`--max-waiting` {limits.waiting}",
        f"`--max-adapters` {limits.adapters}",
        f"`--request-seconds` {limits.request_seconds:.0f}",
        f"| connections | {limits.connections} |",
        f"| between requests on a connection | {limits.idle_seconds:.0f} s |",
        f"| a client that does not read | {limits.stall_seconds:.0f} s |",
        f"`--grace-seconds` ({limits.grace_seconds:.0f})",
        f"({limits.new_tokens} if neither is given)",
    ):
        assert words in text, words
