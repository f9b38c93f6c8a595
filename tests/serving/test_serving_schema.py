"""/openapi.json against the server: schemathesis makes requests of it, valid ones and others. None may be a 5xx."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install schemathesis"
)
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import status_code_conformance  # noqa: E402

pytest_plugins = ["tests.serving_fixtures"]


@pytest.fixture(scope="module")
def operations(server) -> dict:
    # /engine/events does not end; it has a test of its own.
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json").exclude(
        path="/engine/events"
    )
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


@pytest.mark.parametrize(
    "mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name.lower()
)
@pytest.mark.parametrize(
    "label",
    [
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "POST /generate",
        "POST /tokenize",
        "POST /detokenize",
        "GET /v1/models",
        "GET /v1/models/{name}",
        "GET /health",
        "GET /metrics",
        "GET /version",
    ],
)
def test_no_request_is_a_server_error(operations: dict, label: str, mode) -> None:
    if mode.name == "NEGATIVE" and label.startswith("GET"):
        pytest.skip("takes nothing that could be wrong")

    @settings(max_examples=40 if label.startswith("POST") else 5)
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case) -> None:
        if isinstance(case.body, dict):  # short answers: this is about requests
            for field in ("max_tokens", "max_completion_tokens", "n"):
                if isinstance(case.body.get(field), int):
                    case.body[field] = min(case.body[field], 3)
            if "messages" in case.body and not case.body.get("max_completion_tokens"):
                case.body.setdefault("max_tokens", 3)
        response = case.call(timeout=60)
        case.validate_response(response, checks=[not_a_server_error, status_code_conformance])
        if response.status_code >= 400 and case.path.startswith("/v1"):
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    check()


def test_the_schema_lists_no_other_route(operations: dict) -> None:
    assert len(operations) == 10
