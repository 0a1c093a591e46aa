"""The OpenAPI description against the server, by schemathesis: nothing a client sends is a 5xx."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from halfbyte.serve import Keys
from tests.serving import Running, make_world, running

# 200 cases an endpoint take minutes: HALFBYTE_CASES=200 python -m pytest tests/test_serve_schema.py
CASES = int(os.environ.get("HALFBYTE_CASES", "15"))
CHECKS: list[CheckFunction] = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = make_world(tmp_path_factory.mktemp("world"))
    limits = {"new_tokens": 4, "request_seconds": 20.0}
    with running(world.settings(limits=limits, keys=Keys(admin="admin-key-1"))) as made:
        yield made


ROUTES = (
    "GET /health",
    "GET /metrics",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/load_lora_adapter",
    "POST /v1/unload_lora_adapter",
)


@pytest.mark.parametrize("route", ROUTES)
def test_whatever_is_sent_is_answered_as_described(server: Running, route: str) -> None:
    """Requests made from the description, right ones and, where there is a body, wrong ones, get
    no 5xx, and responses with the status, type and shape that the description gives."""
    method, path = route.split()
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=120)
    operation = described[path][method]
    kinds = [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * (method == "POST")
    cases = st.one_of([operation.as_strategy(generation_mode=kind) for kind in kinds])

    @given(case=cases)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answered(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, headers={"Authorization": "Bearer admin-key-1"})

    answered()


def test_every_route_is_described(server: Running) -> None:
    """The description has all routes, each with its errors in OpenAI's form."""
    description = server.ask("GET", "/openapi.json")[1]
    operations = [
        operation for path in description["paths"].values() for operation in path.values()
    ]
    assert len(operations) == len(ROUTES)
    for operation in operations:
        refused = operation["responses"]["400"]["content"]["application/json"]["schema"]
        assert refused["$ref"].endswith("/ErrorBody")
        assert "422" not in operation["responses"]
