"""The OpenAPI document: fresh, complete, and true under fuzzing."""

import json
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.scenes import World

EXAMPLES = 25
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_committed_document_is_fresh() -> None:
    from service.app import create_app

    fresh = json.loads(json.dumps(create_app().openapi()))
    assert json.loads(DOCUMENT.read_text()) == fresh, "run: python -m service.openapi"


def test_every_call_has_a_summary_a_tag_and_documented_problems() -> None:
    for path, operations in json.loads(DOCUMENT.read_text())["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
            assert operation.get("tags"), (method, path)
            if path.startswith("/v1"):
                assert {"401", "403", "404", "422"} <= set(operation["responses"]), (method, path)


def test_unknown_paths_and_methods_are_problems_too(client: TestClient, world: World) -> None:
    assert world.problem(client.get("/v1/nope")) == (404, "not_found")
    assert world.problem(client.delete("/v1/models")) == (405, "method_not_allowed")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_call_answers_with_a_server_error_or_an_undocumented_status(world: World) -> None:
    """Every operation of the document under generated input, valid and not, with a valid key."""
    from service.app import create_app

    world.model("m")
    world.task("t", model="m")
    world.request("t", model="m")
    api = schemathesis.openapi.from_asgi("/openapi.json", create_app())
    key = world.client.headers["Authorization"]
    failures = []
    for result in api.get_all_operations():
        operation = result.ok()
        try:
            fuzz(operation, key)
        except (AssertionError, BaseExceptionGroup) as failure:
            failures.append(f"{operation.label}: {failure}")
    assert not failures, "\n\n".join(failures)


def fuzz(operation: schemathesis.schemas.APIOperation, key: str) -> None:
    """Sends generated requests of one operation and validates every answer."""

    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    )
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        # A request may suit the schema and still ask for what cannot be: a 422 with its reason is a right answer.
        case.call_and_validate(headers={"Authorization": key}, excluded_checks=[positive_data_acceptance])

    send()
