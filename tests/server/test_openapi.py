"""Fuzzing against the server's own description: no fault, no answer of an undescribed shape."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from flashmoe.server.app import make_app, routes
from flashmoe.server.openapi import document
from flashmoe.server.service import Service
from flashmoe.server.settings import ServerSettings
from tests.server.conftest import served_by
from tests.support.fake_worker import FakeWorker
from tests.support.server_process import served

schemathesis = pytest.importorskip("schemathesis", reason="not installed (extra 'dev')")

# Enough for each kind of field; FLASHMOE_SLOW=1 looks much longer.
EXAMPLES = 300 if os.environ.get("FLASHMOE_SLOW") == "1" else 15
NOT_DESCRIBED = {"/", "/page/{name}", "/openapi.json", "/v1/health", "/models"}


def test_every_route_is_described() -> None:
    paths = {route.path.replace(":path", "") for route in routes()}
    assert paths - NOT_DESCRIBED == document()["paths"].keys()


def test_it_is_served(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0"


@pytest.fixture
def schema() -> Any:
    app = make_app(Service(ServerSettings(host="0.0.0.0"), served_by(FakeWorker())))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = [(path, method) for path, found in document()["paths"].items() for method in found]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_fault_and_no_shape_error(schema: Any, path: str, method: str) -> None:
    found = schemathesis.checks.CHECKS
    names = ("not_a_server_error", "response_schema_conformance", "content_type_conformance")
    checks = found.get_by_names(names)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy())
    def holds(case: Any) -> None:
        case.call_and_validate(checks=checks)

    holds()


@pytest.mark.slow
def test_a_real_model_neither_faults_nor_hangs() -> None:
    """Each answer fills the context of 96 tokens at most: 60 s without it is a hang."""
    found = schemathesis.checks.CHECKS
    checks = found.get_by_names(("not_a_server_error", "response_schema_conformance"))
    with served("--ctx", "96", "--parallel", "2") as url:
        schema = schemathesis.openapi.from_url(url + "/openapi.json")
        for path, method in OPERATIONS:

            @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=schema[path][method].as_strategy())
            def holds(case: Any) -> None:
                case.call_and_validate(checks=checks, timeout=60)

            holds()
        assert httpx.get(url + "/slots").json() == []
