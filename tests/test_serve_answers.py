"""The server's answers: the same as the engine's alone, in OpenAI's forms."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from halfbyte.infer import Engine, Request, Sampling, Update
from halfbyte.serve.engine_thread import EngineThread
from halfbyte.serve.worker import Worker
from tests.serving import NAMES, QUESTION, Running, World, events_of, make_world, running
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = QUESTION[0]["content"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Running]:
    with running(world.settings()) as made:
        yield made


def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def streamed(server: Running, model: str, **more: Any) -> str:
    stream = client(server).chat.completions.create(
        model=model, messages=QUESTION, temperature=0, stream=True, **more
    )
    return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def test_streams_of_base_and_adapters_at_once_are_those_of_each_alone(
    world: World, server: Running
) -> None:
    """The official client streams two adapters and the base at once; each answer equals that
    model's answer with nothing else loaded, and the answers differ."""
    models = [world.base.name, "red", "green"] * 2
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: streamed(server, model), models))
    assert found == [world.alone(model, TEXT) for model in models]
    assert len(set(found)) == 3


def test_different_adapters_share_a_batch(world: World, server: Running) -> None:
    """Answers of different adapters are computed in the same steps, not one after the other."""
    engine = server.service.engine.engine
    seen: list[int] = []
    forward = engine.backend.forward

    def spy(spans: Any) -> Any:
        seen.append(len({span.adapter for span in spans}))
        return forward(spans)

    for model in NAMES:
        server.text(model)
    engine.backend.forward = spy
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda model: server.text(model, max_tokens=200), NAMES))
    finally:
        engine.backend.forward = forward
    assert max(seen) == 3


def test_the_list_of_models_is_the_base_and_the_runs(world: World, server: Running) -> None:
    """Names come from the runs folder; adapters name the base as parent, and no path is shown."""
    cards = client(server).models.list().data
    assert [card.id for card in cards] == [world.base.name, *NAMES]
    assert client(server).models.retrieve("red").id == "red"
    assert str(world.folder) not in json.dumps([card.model_dump() for card in cards])
    with pytest.raises(openai.NotFoundError):
        client(server).models.retrieve("grey")


def test_usage_and_finish_reasons(world: World, server: Running) -> None:
    """A prompt counts once for n answers; an answer that was cut says length; max_tokens and
    max_completion_tokens are the same limit."""
    made = client(server).chat.completions.create(
        model="red", messages=QUESTION, temperature=0, n=2, max_completion_tokens=5
    )
    once = client(server).chat.completions.create(
        model="red", messages=QUESTION, temperature=0, max_tokens=5
    )
    assert made.usage is not None
    assert once.usage is not None
    assert made.usage.prompt_tokens == once.usage.prompt_tokens > len(TEXT)
    assert made.usage.completion_tokens == 2 * once.usage.completion_tokens == 10
    assert [choice.finish_reason for choice in made.choices] == ["length", "length"]
    assert made.choices[0].message.content == once.choices[0].message.content


def test_a_stream_ends_with_usage_where_asked_for(server: Running) -> None:
    """The last event before [DONE] has no choices and the usage; the others have usage null."""
    body = {"model": "red", "messages": QUESTION, "temperature": 0, "stream": True, "n": 2}
    whole = server.chat("red", TEXT, n=2)[1]
    _, text, headers = server.ask(
        "POST", "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
    )
    events = events_of(text)
    assert headers["content-type"].startswith("text/event-stream")
    assert events[-1]["choices"] == []
    # what was computed before may be found again: cached tokens may differ
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [events[-1]["usage"][key] for key in counts] == [whole["usage"][key] for key in counts]
    assert all(event["usage"] is None for event in events[:-1])
    for index in range(2):
        parts = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == index]
        said = "".join(part["delta"].get("content", "") for part in parts)
        assert said == whole["choices"][index]["message"]["content"]
        assert parts[0]["delta"]["role"] == "assistant"
        assert [p["finish_reason"] for p in parts] == [None] * (len(parts) - 1) + ["length"]


def test_stop_strings_cut(world: World, server: Running) -> None:
    """The text ends before the first stop string, in one piece and as a stream."""
    full = world.alone("red", TEXT)
    stop = full[4:6]
    assert server.text("red", TEXT, stop=stop) == full[: full.index(stop)]
    assert streamed(server, "red", stop=["never seen", stop]) == full[: full.index(stop)]


def test_seeds_repeat_and_choices_differ(server: Running) -> None:
    """One seed gives one answer whatever runs beside it; the n answers of a request differ."""

    def drawn(seed: int) -> list[str]:
        made = client(server).chat.completions.create(
            model="green", messages=QUESTION, temperature=1.5, seed=seed, n=3, max_tokens=12
        )
        return [choice.message.content or "" for choice in made.choices]

    with ThreadPoolExecutor(4) as pool:
        first, again, other, negative = pool.map(drawn, (7, 7, 8, -1))
    assert first == again
    assert len(set(first)) == 3
    assert other[0] == first[1]  # documented: answer i of seed s is that of seed s + i
    assert negative != first


def test_logprobs_of_chats(server: Running) -> None:
    """One entry a token, the chosen token first among the likeliest where greedy, and bytes that
    joined are the answer's."""
    made = client(server).chat.completions.create(
        model="blue", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3, max_tokens=9
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 9
    for entry in logprobs.content:
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (top.logprob for top in entry.top_logprobs), reverse=True
        )
        assert entry.bytes == entry.top_logprobs[0].bytes
        assert math.isclose(entry.logprob, entry.top_logprobs[0].logprob, abs_tol=1e-5)
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert joined.decode("utf-8", "replace") == made.choices[0].message.content


def test_completions_take_prompts_as_they_are(world: World, server: Running) -> None:
    """Texts and ids give the same; several prompts times n are answered in order; echo puts the
    prompt before the answer; logprobs have the older form."""
    c = client(server).completions
    texts = ["Once upon", "a time"]
    ids = [list(text.encode()) for text in texts]
    alphabet = {i: t for t, i in server.service.asker._tokenizer.get_vocab().items()}
    assert len(alphabet) == 260
    encoded = [server.service.asker._tokenizer(text)["input_ids"] for text in texts]
    assert [len(e) for e in encoded] == [len(i) for i in ids]
    one = c.create(model="red", prompt=texts, temperature=0, max_tokens=6, n=2)
    two = c.create(model="red", prompt=encoded, temperature=0, max_tokens=6, n=2)
    assert [x.text for x in one.choices] == [x.text for x in two.choices]
    assert [x.index for x in one.choices] == [0, 1, 2, 3]
    assert one.choices[0].text == one.choices[1].text != one.choices[2].text
    echoed = c.create(model="red", prompt=texts[0], temperature=0, max_tokens=6, echo=True)
    assert echoed.choices[0].text == texts[0] + one.choices[0].text
    probed = c.create(model="red", prompt=texts[0], temperature=0, max_tokens=6, logprobs=2)
    found = probed.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert len(found.tokens) == len(found.token_logprobs or []) == 6
    assert found.text_offset[0] == 0
    stream = c.create(model="red", prompt=texts[0], temperature=0, max_tokens=6, stream=True)
    assert "".join(part.choices[0].text for part in stream) == one.choices[0].text


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}


def test_a_json_schema_holds_whatever_the_model_prefers(server: Running) -> None:
    """A random model answers in the schema, greedily and with chance, whole and streamed."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for seed in range(4):
        text = server.text(
            "red", TEXT, response_format=wanted, temperature=1.0, seed=seed, max_tokens=80
        )
        found = json.loads(text)
        assert found["colour"] in {"red", "green"}
        assert 0 <= found["count"] <= 99
        assert set(found) == set(SCHEMA["properties"])
    assert json.loads(streamed(server, "blue", response_format=wanted, max_tokens=80))


def test_json_mode_gives_an_object_or_its_beginning(server: Running) -> None:
    """json_object begins with a brace; where it ends by itself it is an object."""
    for seed in range(3):
        status, body = server.chat(
            "red", response_format={"type": "json_object"}, temperature=1, seed=seed, max_tokens=200
        )
        assert status == 200
        choice = body["choices"][0]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"$ref": "http://elsewhere/x"}, {"type": "string", "pattern": "(a"}],
)
def test_schemas_that_cannot_be_kept_are_refused(server: Running, schema: Any) -> None:
    """An unusable schema is the client's error, told before anything is generated."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, body = server.chat("red", response_format=wanted)
    assert status == 400
    assert "response_format" in body["error"]["message"]


def test_metrics_count(world: World) -> None:
    """Prometheus' text has requests, tokens by model, and the state of the engine."""
    with running(world.settings()) as made:
        assert 'model="red"' not in made.ask("GET", "/metrics")[1]
        for _ in range(2):
            made.text("red", max_tokens=3)
        made.text("blue", max_tokens=2)
        text = made.ask("GET", "/metrics")[1]
    assert 'halfbyte_tokens_total{kind="generated",model="red"} 6.0' in text
    assert 'halfbyte_tokens_total{kind="generated",model="blue"} 2.0' in text
    assert "halfbyte_adapters 2.0" in text
    assert "halfbyte_open 0.0" in text


def test_a_retired_thread_says_so(world: World, tmp_path: Path) -> None:
    """When the engine fails in a step, those who wait get an error, and the next request is
    answered."""
    with running(world.settings()) as made:
        backend = made.service.engine.engine.backend
        forward = backend.forward
        failures = threading.Event()

        def fail(spans: Any) -> Any:
            backend.forward = forward
            failures.set()
            raise MemoryError("no room")

        backend.forward = fail
        status, body = made.chat("red")
        assert (status, failures.is_set()) == (503, True)
        assert "engine failed" in body["error"]["message"]
        assert made.text("red", TEXT) == world.alone("red", TEXT)
        assert made.ask("GET", "/health")[0] == 200


def test_a_server_has_computed_before_it_is_ready(world: World) -> None:
    """The first steps, in which TorchScript compiles, are nobody's answer."""
    with running(world.settings()) as made:
        assert made.service.engine.engine.backend.cache.slots > 0


def test_no_request_needs_another_thread_than_ours(server: Running) -> None:
    """FastAPI gives dependencies that are not async a thread, which takes time from a step."""
    before = {thread.ident for thread in threading.enumerate()}
    assert server.chat("red")[0] == 200
    new = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert not [name for name in new if "AnyIO" in name]


@pytest.mark.parametrize(("streamed", "count"), [(True, 6), (False, 1)])
def test_the_event_loop_hears_of_tokens_only_where_they_are_streamed(
    streamed: bool, count: int
) -> None:
    """A whole answer wakes it once: waking takes time from the next step."""
    request = Request((5, 6, 7), Sampling(6, stop_ids=()), streamed=streamed)

    async def heard() -> list[Update]:
        worker = Worker("test")
        thread = EngineThread(worker, Engine(tiny_model("llama"), tiny_tokenizer()), 4)
        thread.start()
        try:
            async with thread.answering([request]) as answers:
                return [update async for _, update in answers.updates()]
        finally:
            await thread.stop()

    updates = asyncio.run(heard())
    assert len(updates) == count
    assert updates[-1].done is not None
    assert len(updates[-1].done.ids) == 6
