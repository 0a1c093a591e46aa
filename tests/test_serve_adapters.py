"""Adapters of a server: at first use, swapped under load, evicted, unloaded, refused."""

from __future__ import annotations

import importlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from halfbyte.infer import Engine, Request, Sampling
from halfbyte.model.adapters import load
from halfbyte.serve import Keys
from tests.serving import (
    NAMES,
    Running,
    World,
    is_error,
    make_run,
    make_world,
    running,
)
from tests.test_infer_engine import with_adapters
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer

ADMIN = {"Authorization": "Bearer admin-key-1"}
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def server(world: World) -> Iterator[Running]:
    with running(world.settings(keys=Keys(admin="admin-key-1"))) as made:
        yield made


def test_an_adapter_that_came_after_the_engine_counts_in_every_layer(world: World) -> None:
    """An engine made before an adapter was loaded gives the answers of one made afterwards,
    also where the adapter covers layers that none covered before."""
    model = with_adapters(tiny_model(), ["early"], target_modules=["q_proj"])
    engine = Engine(model, tiny_tokenizer())
    for name in NAMES:
        load(model, world.runs / name / "adapter", name)
    requests = [Request((1, 2, 3), Sampling(max_new_tokens=12, stop_ids=()), n) for n in NAMES]
    late = [answer.ids for answer in engine.generate(requests)]
    assert late == [answer.ids for answer in Engine(model, tiny_tokenizer()).generate(requests)]
    assert len(set(late)) == len(NAMES)


def test_swaps_under_load_never_mix(world: World, server: Running) -> None:
    """Fault 22: while clients ask, an adapter is swapped for another again and again; every answer
    is one of the two, whole, and after the last swap it is the new one."""
    run, spare = world.runs / "red", world.folder / "spare"
    shutil.copytree(run / "adapter", spare / "first")
    first = world.alone("red", "Hello")
    other = make_run(world.runs, "other", world.base, 77)
    shutil.copytree(other.adapter, spare / "second")
    second = world.alone("other", "Hello")
    green = world.alone("green", "Hello")
    assert len({first, second, green}) == 3
    over = threading.Event()

    def swap(source: str) -> int:
        for file in (spare / source).iterdir():
            part = run / "adapter" / f"{file.name}.part"
            shutil.copyfile(file, part)
            part.replace(run / "adapter" / file.name)
        body = {"lora_name": "red", "lora_path": "red", "load_inplace": True}
        return server.ask("POST", LOAD, body, ADMIN)[0]

    def ask(model: str) -> list[str]:
        texts = []
        while not over.is_set():
            texts.append(server.text(model))
        return texts

    assert server.text("red") == first
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, model) for model in ("red", "red", "green")]
        codes = [swap(source) for source in ("second", "first") * 4]
        over.set()
        reds = [text for future in asking[:2] for text in future.result()]
        greens = asking[2].result()
    assert codes == [200] * 8
    assert set(reds) <= {first, second}
    assert set(greens) == {green}
    assert swap("second") == 200
    assert server.text("red") == second


def test_a_failed_swap_leaves_the_old_one(world: World, server: Running) -> None:
    """Fault 22: an adapter that is broken, pickled or of another shape is refused with its reason,
    and the one in memory answers on."""
    before = server.text("red")
    assert before == world.alone("red", "Hello")
    run = world.runs / "red" / "adapter"
    weights = run / "adapter_model.safetensors"
    whole = weights.read_bytes()
    body = {"lora_name": "red", "lora_path": "red", "load_inplace": True}
    for spoilt in (whole[:100], b"\x80\x04}." + whole[4:], b""):
        weights.write_bytes(spoilt)
        status, error, _ = server.ask("POST", LOAD, body, ADMIN)
        assert status == 400
        assert is_error(error)
        assert server.text("red") == before
    config = run / "adapter_config.json"
    text = config.read_text()
    weights.write_bytes(whole)
    config.write_text(text.replace('"r": 4', '"r": 5'))
    assert server.ask("POST", LOAD, body, ADMIN)[0] == 400
    assert server.text("red") == before
    assert server.service.roster.loaded == ("red",)


def test_one_in_use_is_not_unloaded(world: World, server: Running) -> None:
    """Fault 22: unloading an adapter that is answering is refused with 409 and the answer is
    whole; afterwards it is freed, and loaded again at its next use."""
    expected = world.alone("red", "Hello", 300)
    first = threading.Event()

    def ask() -> str:
        first.set()
        return server.text("red", max_tokens=300)

    engine = server.service.engine.engine
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        while not engine.running:
            first.wait(0.01)
        status, error, headers = server.ask("POST", UNLOAD, {"lora_name": "red"}, ADMIN)
        assert asking.result() == expected
    assert status == 409
    assert is_error(error)
    assert headers["retry-after"] == "1"
    assert server.ask("POST", UNLOAD, {"lora_name": "red"}, ADMIN)[0] == 200
    assert server.service.roster.loaded == ()
    assert server.ask("POST", UNLOAD, {"lora_name": "red"}, ADMIN)[0] == 404
    assert server.text("red", max_tokens=300) == expected


def test_loading_takes_vllms_requests(world: World, server: Running) -> None:
    """A second name for a run works until it is unloaded; loading twice without load_inplace is
    refused; a name that is another run's, or the base's, is refused."""

    def load_as(name: str, run: str, **more: Any) -> int:
        return server.ask("POST", LOAD, {"lora_name": name, "lora_path": run, **more}, ADMIN)[0]

    assert load_as("favourite", "blue") == 200
    assert server.text("favourite") == world.alone("blue", "Hello")
    assert [c["id"] for c in server.ask("GET", "/v1/models")[1]["data"]][-1] == "favourite"
    assert load_as("favourite", "blue") == 400
    assert load_as("favourite", "blue", load_inplace=True) == 200
    assert load_as("green", "blue") == 400
    assert load_as(world.base.name, "blue") == 400
    assert load_as("new", "nowhere") == 404
    assert server.ask("POST", UNLOAD, {"lora_name": "favourite"}, ADMIN)[0] == 200
    assert server.chat("favourite")[0] == 404


def test_the_longest_unused_makes_room(world: World) -> None:
    """With room for two adapters a third evicts the one unused for longest, the engine holds no
    more of it, and its answers are the same when it comes back."""
    with running(world.settings(limits={"adapters": 2})) as server:
        for name in ("red", "green", "red", "blue"):
            assert server.text(name) == world.alone(name, "Hello")
        assert set(server.service.roster.loaded) == {"red", "blue"}
        assert len(server.service.engine.engine.backend._adapters) == 2
        assert server.text("green") == world.alone("green", "Hello")
        assert server.service.roster.counts.evictions == 2
        with ThreadPoolExecutor(6) as pool:
            names = NAMES * 4
            assert list(pool.map(server.text, names)) == [
                world.alone(name, "Hello") for name in names
            ]


def test_adapters_of_other_bases_are_refused(world: World, server: Running) -> None:
    """A run on another base, of another form, or without a result is no model here; asked for by
    name, the first two say why."""
    elsewhere = tiny_base(world.folder / "elsewhere", seed=5)
    make_run(world.runs, "stranger", elsewhere, 1)
    make_run(world.runs, "four-bits", world.base, 1, "method: qlora")
    shutil.rmtree(make_run(world.runs, "unfinished", world.base, 1).adapter)
    listed = [card["id"] for card in server.ask("GET", "/v1/models")[1]["data"]]
    assert listed == [world.base.name, *NAMES]
    for name, part in (("stranger", "not those of the base"), ("four-bits", "another form")):
        status, body = server.chat(name)
        assert status == 400
        assert part in body["error"]["message"]
        assert str(world.folder) not in body["error"]["message"]
    assert server.chat("unfinished")[0] == 404


HOSTILE = [
    "../secret",
    "..",
    ".",
    "%2e%2e/secret",
    "..%2fsecret",
    "red\x00",
    "red/../../secret",
    "/etc/passwd",
    "linked",
    "inside",
    "x" * 300,
    "",
    "red/adapter",
    "\ud800",
]


def test_names_open_nothing_outside(
    world: World, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 28: names with ../, %2e, NUL, absolute, links that lead out, 300 characters: 404 or
    422, and no file outside the runs folder is opened."""
    secret = make_run(world.folder / "outside", "secret", world.base, 9)
    (world.runs / "linked").symlink_to(secret.path)
    inside = make_run(world.runs, "inside", world.base, 9)
    shutil.rmtree(inside.adapter)
    inside.adapter.symlink_to(secret.adapter)
    opened: list[str] = []

    def spied(real: Any) -> Any:
        def spy(path: Any, *args: Any, **more: Any) -> Any:
            opened.append(str(path))
            return real(path, *args, **more)

        return spy

    for place in ("os.open", "builtins.open", "io.open"):
        module, _, name = place.partition(".")
        monkeypatch.setattr(place, spied(getattr(importlib.import_module(module), name)))
    for name in HOSTILE:
        body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
        status, error, _ = server.ask("POST", "/v1/chat/completions", body)
        assert (status, is_error(error)) in {(404, True), (400, True)}, name
        if name != "\ud800":  # JSON may say it, but it is no text
            assert status == 404, name
        given = {"lora_name": "new", "lora_path": name}
        assert server.ask("POST", LOAD, given, ADMIN)[0] in {400, 404}, name
        if name not in {"linked", "inside"}:  # fine as second names for an adapter
            given = {"lora_name": name, "lora_path": "red"}
            assert server.ask("POST", LOAD, given, ADMIN)[0] in {400, 404}, name
    for path in ("../../secret", "%2e%2e/secret", "red%00", "..%2f..%2fsecret", "x" * 300):
        assert server.ask("GET", f"/v1/models/{path}")[0] == 404
    assert not [path for path in opened if "secret" in path or "passwd" in path]
    assert "linked" not in str(server.ask("GET", "/v1/models")[1])
