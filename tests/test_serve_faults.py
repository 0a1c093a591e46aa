"""What clients do wrong or with bad intent, and that the others do not feel it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from halfbyte.errors import InputError
from halfbyte.infer import Update
from halfbyte.serve import Keys, ServeSettings
from tests.serving import QUESTION, Running, World, events_of, is_error, make_world, running

CHAT = "/v1/chat/completions"
# without chance: a random model ends an answer at any token
GREEDY = {"model": "red", "messages": QUESTION, "temperature": 0}
KEY, ADMIN = "an-api-key", "an-admin-key"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Running]:
    with running(world.settings()) as made:
        yield made


@pytest.fixture(scope="module")
def hurried(world: World) -> Iterator[Running]:
    """A server whose deadlines are short, and with places for few."""
    limits = {
        "header_seconds": 0.4,
        "body_seconds": 0.4,
        "idle_seconds": 1.0,
        "stall_seconds": 0.4,
        "request_seconds": 2.5,
        "rows": 2,
        "waiting": 1,
        "new_tokens": 300,
    }
    with running(world.settings(limits=limits)) as made:
        yield made


def raw(server: Running, data: bytes, wait: float = 10.0) -> bytes:
    """What comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as one:
        one.sendall(data)
        parts = []
        while part := one.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def post(headers: str, body: bytes = b"{}") -> bytes:
    lines = f"POST {CHAT} HTTP/1.1\r\nConnection: close\r\n{headers}Content-Length: {len(body)}\r\n"
    return lines.encode() + b"\r\n" + body


JSON_HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"


BAD = [
    {"n": 10**9},
    {"n": 0},
    {"n": 10**40},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_tokens": 10**9},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": -1},
    {"temperature": "0.5"},
    {"top_p": 0},
    {"top_p": 2},
    {"top_k": -1},
    {"repetition_penalty": 0},
    {"seed": 2**70},
    {"stop": ""},
    {"stop": ["x"] * 100},
    {"messages": []},
    {"messages": "Hello"},
    {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}] * 10_000},
    {"messages": [{"role": "user", "content": "x"}] * 10_001},
    {"messages": [{"role": "user", "content": "word " * 1000}]},
    {"top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 21},
    {"stream_options": {"include_usage": True}},
    {"frequency_penalty": 0.5},
    {"tools": []},
    {"temprature": 1},
    {"response_format": {"type": "yaml"}},
    {"model": 3},
    {"stream": "yes"},
]


@pytest.mark.parametrize("wrong", BAD, ids=lambda wrong: json.dumps(wrong)[:40])
def test_bad_values_are_refused(server: Running, wrong: dict[str, Any]) -> None:
    """Fault 23: a value out of its range is 400 in OpenAI's form, naming the place."""
    body = {"model": "red", "messages": QUESTION, **wrong}
    status, error, _ = server.ask("POST", CHAT, body)
    assert status == 400
    assert is_error(error)


def test_what_is_no_json_and_what_is_not_supported_are_said_so(server: Running) -> None:
    status, error, _ = server.ask("POST", CHAT, {"model": "red", "messages": QUESTION, "tools": []})
    assert (status, error["error"]["param"]) == (400, "tools")
    assert "does not support" in error["error"]["message"]
    status, error, _ = server.ask("POST", CHAT, b"{bad", {"Content-Type": "application/json"})
    assert (status, error["error"]["param"]) == (400, None)
    assert error["error"]["message"].startswith("the body is not JSON: after 1 characters")


def test_bad_bodies_are_refused_and_others_unaffected(world: World, server: Running) -> None:
    """Fault 23: a 10 MB prompt, deep JSON, no JSON, a wrong content type and a 64 KB header are
    refused in OpenAI's form, while a good request beside them gets its answer."""
    deep = b'{"model": "red", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    hidden = b'{"model": "\\"[[[", "messages": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}"
    huge = b'{"model": "red", "messages": [{"role": "user", "content": "' + b"x" * 10_000_000
    kind = {"Content-Type": "application/json"}
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (huge, kind, 413),
        (deep, kind, 400),
        (hidden, kind, 400),
        (b"{", kind, 400),
        (b"\xff\xfe{}", kind, 400),
        (b"", kind, 400),
        (b"[1]", kind, 400),
        (b"{}", {"Content-Type": "application/xml"}, 415),
        (b"{}", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (b"{}", {**kind, "X-Long": "x" * 12_000, "X-Longer": "y" * 8_000}, 431),
    ]
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(server.text, "red", QUESTION[0]["content"])
        for body, headers, wanted in cases:
            status, error, _ = server.ask("POST", CHAT, body, headers)
            assert (status, is_error(error)) == (wanted, True), (body[:40], error)
        assert good.result() == world.alone("red", QUESTION[0]["content"])
    long = raw(server, post(f"{JSON_HEADERS}X-Long: {'x' * 65_536}\r\n"))
    assert status_of(long) == 431
    assert is_error(body_of(long))
    for no_http in (
        b"nonsense\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\r\n\r\n",
    ):
        answer = raw(server, no_http + b"\r\n\r\n")
        assert status_of(answer) == 400
        assert is_error(body_of(answer))


def test_a_chunked_body_has_the_same_limit(server: Running) -> None:
    """Fault 23: without a Content-Length the bytes are counted as they come."""
    head = f"POST {CHAT} HTTP/1.1\r\n{JSON_HEADERS}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        one.sendall(head.encode() + chunk * 40 + b"0\r\n\r\n")
        answer = one.recv(65536)
    assert status_of(answer) == 413


def settled(server: Running, wait: float = 10.0) -> bool:
    """Whether the engine has nothing left to do, at the latest after `wait` seconds."""
    engine = server.service.engine.engine
    until = time.monotonic() + wait
    while time.monotonic() < until:
        if engine.idle and server.service.engine.open == 0:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(server: Running, stream: bool) -> None:
    """Fault 24: when a client leaves during its answer, whole or streamed, generation stops and
    the place is free, long before the answer would have ended."""
    engine = server.service.engine.engine
    steps: list[list[Update]] = []
    real = engine.step

    def spy() -> list[Update]:
        steps.append(real())
        time.sleep(0.005)  # a model so small would be done before anybody could leave
        return steps[-1]

    engine.step = spy  # type: ignore[method-assign]  # watching is the point
    try:
        body = json.dumps({**GREEDY, "max_tokens": 350, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            one.sendall(post(JSON_HEADERS, body))
            while not engine.running:
                time.sleep(0.002)
            if stream:
                assert one.recv(10)
        assert settled(server)
    finally:
        engine.step = real  # type: ignore[method-assign]  # as it was
    assert len(steps) < 300
    assert [u.done.finish for step in steps for u in step if u.done] == ["cancelled"]


def test_a_client_that_leaves_before_its_answer_leaves_nothing(server: Running) -> None:
    """Fault 24: clients that send a request, or half of one, and leave at once, leave nothing
    behind."""
    body = json.dumps({**GREEDY, "max_tokens": 300}).encode()
    whole = post(JSON_HEADERS, body)
    for cut in (len(whole), len(whole) - 5, 100, 1):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as one:
                one.sendall(whole[:cut])
    assert server.chat("red")[0] == 200
    assert settled(server)
    assert not server.service.roster._loaded["red"].users


def test_idle_sockets_are_closed_and_harm_nobody(hurried: Running) -> None:
    """Fault 25: 500 sockets that say nothing are closed at the deadline; meanwhile a good client
    is answered."""
    idle = [socket.create_connection(("127.0.0.1", hurried.port)) for _ in range(500)]
    try:
        assert hurried.chat("red", max_tokens=5)[0] == 200
        for one in idle:
            one.settimeout(10)
            assert one.recv(4096) == b""
    finally:
        for one in idle:
            one.close()
    assert len(hurried.server.server_state.connections) <= 1


def drip(server: Running, data: bytes, pause: float = 0.05) -> bytes:
    """Send a byte at a time; what the server answers when it has had enough."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one:
        one.settimeout(pause)
        answer = b""
        for byte in data:
            try:
                one.sendall(bytes([byte]))
                part = one.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not part:
                break
            answer += part
        return answer


def test_slow_headers_and_bodies_have_deadlines(hurried: Running) -> None:
    """Fault 25: headers that trickle in, a first time and after a finished request on the same
    connection, and bodies that trickle in, are answered 408 and closed."""
    head = f"POST {CHAT} HTTP/1.1\r\n{JSON_HEADERS}Content-Length: 400\r\n\r\n".encode()
    with ThreadPoolExecutor(3) as pool:
        slow_head = pool.submit(drip, hurried, head)
        with socket.create_connection(("127.0.0.1", hurried.port), timeout=10) as one:
            one.sendall(head + b"{")
            slow_body = b""
            while part := one.recv(4096):
                slow_body += part
        with socket.create_connection(("127.0.0.1", hurried.port), timeout=10) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
            one.sendall(b"GET /hea")
            second = b""
            while part := one.recv(4096):
                second += part
        assert status_of(slow_head.result()) == 408
    assert status_of(slow_body) == 408
    assert status_of(second) == 408


def test_a_request_has_a_deadline(hurried: Running) -> None:
    """Fault 25: an answer that takes longer than a request may is ended: 504, or an error as the
    last event of a stream; its place is free."""
    engine = hurried.service.engine.engine
    real = engine.step

    def slow() -> list[Update]:
        time.sleep(0.05)
        return real()

    engine.step = slow  # type: ignore[method-assign]  # an answer that takes 15 s
    try:
        status, error = hurried.chat("red", max_tokens=300)
        assert (status, is_error(error)) == (504, True)
        body = {**GREEDY, "max_tokens": 300, "stream": True}
        _, text, _ = hurried.ask("POST", CHAT, body)
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert is_error(last)
        assert settled(hurried)
    finally:
        engine.step = real  # type: ignore[method-assign]  # as it was


def test_a_full_queue_refuses_at_once(hurried: Running) -> None:
    """More answers than places to compute and to wait get 429 with Retry-After; those under way
    are not disturbed."""
    engine = hurried.service.engine.engine
    real = engine.step

    refused = Event()

    def held() -> list[Update]:
        refused.wait(0.2)  # the three are under way until the fourth was refused
        return real()

    engine.step = held  # type: ignore[method-assign]  # long enough to be met
    try:
        assert hurried.chat("red", n=4)[0] == 400
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(hurried.chat, "red", max_tokens=3) for _ in range(3)]
            while hurried.service.engine.open < 3:
                time.sleep(0.002)
            body = {"model": "red", "messages": QUESTION}
            status, error, headers = hurried.ask("POST", CHAT, body)
            refused.set()
            assert [one.result()[0] for one in running] == [200] * 3
    finally:
        refused.set()
        engine.step = real  # type: ignore[method-assign]  # as it was
    assert (status, is_error(error), headers["retry-after"]) == (429, True, "1")
    assert hurried.chat("red", max_tokens=2)[0] == 200


FOREIGN = [
    ({"Host": "evil.example"}, 403),
    ({"Host": "evil.example:8000"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403),
    ({"Host": "10.0.0.1"}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": ""}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
]


@pytest.mark.parametrize(("headers", "wanted"), FOREIGN)
def test_other_sites_are_refused(server: Running, headers: dict[str, str], wanted: int) -> None:
    """Fault 26: a foreign Host, a foreign or null Origin, a cross-site fetch and posts a form could
    make are refused, and nothing is generated."""
    engine = server.service.engine.engine
    real, steps = engine.step, []

    def spy() -> list[Update]:
        steps.append(1)
        return real()

    engine.step = spy  # type: ignore[method-assign]  # watching is the point
    try:
        body = {"model": "red", "messages": QUESTION}
        status, error, answer = server.ask("POST", CHAT, body, headers)
    finally:
        engine.step = real  # type: ignore[method-assign]  # as it was
    assert (status, is_error(error), steps) == (wanted, True, [])
    assert "access-control-allow-origin" not in answer


def test_a_request_without_host_is_refused(server: Running) -> None:
    """Fault 26: HTTP/1.0 may leave Host out; it is refused all the same."""
    answer = raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert status_of(answer) == 403


def test_own_pages_and_allowed_ones_may_ask(world: World) -> None:
    """A page of the server's own origin, and of one that was allowed, may ask; the latter is told
    so by CORS, also before it asks."""
    settings = world.settings(origins=("https://chat.example.org",), hosts=("models.example.org",))
    with running(settings) as server:
        own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
        assert server.ask("GET", "/v1/models", headers=own)[0] == 200
        assert server.ask("GET", "/v1/models", headers={"Host": "models.example.org"})[0] == 200
        page = {"Origin": "https://chat.example.org", "Sec-Fetch-Site": "cross-site"}
        status, _, headers = server.ask("GET", "/v1/models", headers=page)
        assert (status, headers["access-control-allow-origin"]) == (200, page["Origin"])
        before = {**page, "Access-Control-Request-Method": "POST"}
        status, _, headers = server.ask("OPTIONS", CHAT, headers=before)
        assert (status, headers["access-control-allow-origin"]) == (200, page["Origin"])
        other = {"Origin": "https://other.example.org"}
        assert server.ask("GET", "/v1/models", headers=other)[0] == 403


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/red"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("OPTIONS", CHAT),
    ("DELETE", "/v1/models/red"),
]


@pytest.fixture(scope="module")
def locked(world: World) -> Iterator[Running]:
    with running(world.settings(keys=Keys(KEY, ADMIN))) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic YTpi", f"Bearer {KEY}x", KEY]
)
def test_every_route_needs_the_key(
    locked: Running, method: str, path: str, given: str | None
) -> None:
    """Fault 27: no key or a wrong one is 401 on every route, also on those that are none."""
    headers = {} if given is None else {"Authorization": given}
    status, error, answer = locked.ask(method, path, {} if method == "POST" else None, headers)
    assert status == 401
    assert is_error(error)
    assert answer["www-authenticate"] == "Bearer"


def test_the_right_key_opens_and_health_needs_none(locked: Running) -> None:
    """Fault 27: with the key every route answers; /health answers without; adapters need the
    administrator's key, which opens nothing else."""
    user, admin = ({"Authorization": f"Bearer {key}"} for key in (KEY, ADMIN))
    assert locked.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    assert locked.ask("GET", "/v1/models", headers=user)[0] == 200
    assert locked.ask("GET", "/openapi.json", headers=user)[0] == 200
    assert locked.ask("GET", "/v1/models", headers=admin)[0] == 401
    body = {"lora_name": "red", "lora_path": "red"}
    assert locked.ask("POST", "/v1/load_lora_adapter", body, user)[0] == 401
    assert locked.ask("POST", "/v1/load_lora_adapter", body, admin)[0] == 200


def test_without_an_admin_key_adapters_stay(server: Running) -> None:
    """The routes that change adapters are off where the server was given no key for them."""
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        body = {"lora_name": "red", "lora_path": "red"}
        assert server.ask("POST", path, body)[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_beyond_loopback_only_with_a_key(host: str) -> None:
    """Fault 27: bound beyond loopback without a key the server does not start."""
    with pytest.raises(InputError, match="API key"):
        ServeSettings(host=host).check()
    ServeSettings(host=host, keys=Keys("long-enough")).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """On loopback a server starts without a key."""
    ServeSettings(host=host).check()


def test_keys_that_are_none_are_refused() -> None:
    """Short keys, keys no header can carry, and one key for both are refused; none is printed."""
    for keys in (Keys("short"), Keys("schlüssel-lang"), Keys("same-key-1", "same-key-1")):
        with pytest.raises(InputError):
            ServeSettings(keys=keys).check()
    assert "long-enough" not in repr(ServeSettings(keys=Keys("long-enough", "long-enough-too")))


def test_streams_are_whole(world: World, server: Running) -> None:
    """A stream read as bytes is events and [DONE], as browsers' EventSource wants them."""
    body = {**GREEDY, "stream": True}
    _, text, headers = server.ask("POST", CHAT, body)
    said = "".join(e["choices"][0]["delta"].get("content", "") for e in events_of(text))
    assert said == world.alone("red", QUESTION[0]["content"])
    assert headers["cache-control"] == "no-cache"
