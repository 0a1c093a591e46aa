"""Counters for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What happened since the start; `watch` adds values that are read when asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "halfbyte_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "halfbyte_tokens",
            "Tokens by model and kind.",
            ("model", "kind"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "halfbyte_request_seconds",
            "Time to the end of an answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._gone = Counter(
            "halfbyte_cancelled",
            "Answers whose client left, or was too slow.",
            registry=self._registry,
        )

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A value that is read whenever the metrics are."""
        Gauge(name, about, registry=self._registry).set_function(read)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A response was finished."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, model: str, counts: Iterable[tuple[str, int]]) -> None:
        """Tokens of one request, by kind: `prompt`, `cached`, `generated`."""
        for kind, count in counts:
            self._tokens.labels(model, kind).inc(count)

    def cancelled(self, answers: int) -> None:
        """Answers that nobody reads any more."""
        self._gone.inc(answers)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
