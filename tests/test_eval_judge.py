"""The judge: both orders, ties where the order decides, and clear errors; loopback only."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.compare import compare
from halfbyte.evaluate.judge import Judge, judge, read_choice
from halfbyte.evaluate.records import Answer, Evaluation, Row
from halfbyte.evaluate.scores import pooled
from halfbyte.evaluate.statistics import Resampling


@contextmanager
def endpoint(reply, status=200):
    """A server that answers `reply(text of the user's turn)`; yields address and requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            text = reply(body["messages"][-1]["content"])
            data = (
                text
                if isinstance(text, bytes)
                else json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            )
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def evaluation(name, *texts):
    rows = tuple(Row(i, "2 + 2?", ("4",)) for i in range(len(texts)))
    return Evaluation(name, rows, tuple(None if t is None else Answer(t) for t in texts), {})


def likes_good(text):
    first, second = text.split("Answer A:\n")[1].split("\n\nAnswer B:\n")
    if ("good" in first) == ("good" in second):
        return "[[A]]"  # leans towards what it reads first
    return "Hm. [[A]]" if "good" in first else "Hm. [[B]]"


def test_only_preferences_that_survive_the_swap_count():
    """A clear preference is a win in both orders; leaning to the first is a tie; equal answers and
    rows without answers are not sent."""
    base = evaluation("base", "bad", "good", "bad", "same", None)
    tuned = evaluation("tuned", "good", "bad", "bad too", "same", "good")
    with endpoint(likes_good) as (url, seen):
        before, after = judge(Judge(url, "j", "secret"), base, tuned)
    column = after.columns["judge_preference"]
    assert column.values[:4].tolist() == [1.0, 0.0, 0.5, 0.5]
    assert not column.applies[4]
    assert pooled(before.columns["judge_preference"]) == pytest.approx(0.5)
    assert len(seen) == 6
    path, key, body = seen[0]
    assert (path, key, body["model"], body["temperature"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "j",
        0,
    )
    assert compare(before, after, resampling=Resampling(50)).metric("judge_preference").rows == 4


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[[A]]", "first"),
        ("[[ b ]]", "second"),
        ("[[tie]]", "tie"),
        ("A", "first"),
        ("B.", "second"),
        ("", "tie"),
        ("Both are fine", "tie"),
        ("[[A]] no, [[B]]", "second"),
    ],
)
def test_replies_are_read(text, choice):
    """The last mark counts; what is unclear is a tie."""
    assert read_choice(text) == choice


def test_errors_say_what_is_wrong():
    """A refusal, a foreign reply, a dead endpoint and a wrong address are told apart."""
    pair = evaluation("base", "x"), evaluation("tuned", "y")
    with endpoint(lambda _: "x", 401) as (url, _), pytest.raises(InputError, match="401"):
        judge(Judge(url, "j"), *pair)
    with endpoint(lambda _: b"{}") as (url, _), pytest.raises(InputError, match="OpenAI"):
        judge(Judge(url, "j"), *pair)
    with endpoint(lambda _: b"<html>") as (url, _), pytest.raises(InputError, match="OpenAI"):
        judge(Judge(url, "j"), *pair)
    with pytest.raises(MissingError, match="cannot be reached"):
        judge(Judge(url, "j", timeout=2), *pair)
    with pytest.raises(InputError, match="no http address"):
        judge(Judge("file:///etc/passwd", "j"), *pair)
