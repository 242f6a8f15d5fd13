"""The OpenAPI document: fresh, complete, and true under fuzzing."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.imports.schemas import TAR
from tests.scenes import World
from tests.service.imports.uploads import files, tar_of

GENTLY = settings(
    max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
# What an import takes: it is sent as bytes are, and is now and then sound.
schemathesis.serializer.alias(TAR, "application/octet-stream")
schemathesis.openapi.media_type(TAR, st.sampled_from([tar_of(files()), tar_of({}), b"no tar"]))
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

    there = everything_once(world)
    api = schemathesis.openapi.from_asgi("/openapi.json", create_app())
    key = world.client.headers["Authorization"]
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) == sum(map(len, json.loads(DOCUMENT.read_text())["paths"].values()))
    failures = []
    for operation in sorted(operations, key=harm):
        try:
            fuzz(operation, key, there)
        except (AssertionError, BaseExceptionGroup) as failure:
            failures.append(f"{operation.label}: {failure}")
    assert not failures, "\n\n".join(failures)


def everything_once(world: World) -> dict[str, list[str | int]]:
    """Makes one of everything, learnt, held and queued; returns what path parameters may name, or nearly."""
    world.model("m")
    world.task("t", model="m")
    world.examples("t", [{"id": "mine", "text": "my own row", "label": "os", "split": "train"}], model="m")
    learnt = world.learn("t", model="m")
    held = world.learn("t", model="m", relearn=True, promotion="manual")
    queued = world.request("t", model="m", relearn=True)
    forecast = world.forecast("t", model="m", relearn=True)
    assert (learnt["status"], held["status"]) == ("promoted", "awaiting_approval")
    key = world.ok(world.client.post("/v1/keys", json={"name": "spare", "scopes": ["read"]}))
    erasure = world.ok(world.client.delete("/v1/models/m/examples", params={"subject": "nobody"}))
    webhook = world.ok(world.client.post("/v1/webhooks", json={"url": "https://93.184.215.14/"}))
    delivery = world.ok(world.client.post(f"/v1/webhooks/{webhook['id']}/test"))
    return {
        "model": ["m"], "task": ["t"], "version": [1, 2, 0, 3], "alias": ["champion", "canary"],
        "update": [held["id"], learnt["id"], queued["id"]], "key_id": [key["id"]], "example": ["mine", "ex_1"],
        "strategy": ["replay", "nosuch"], "webhook": [webhook["id"]], "delivery": [delivery["id"], "dlv_1"],
        "erasure": [erasure["id"], "era_1"], "forecast": [forecast["id"], "fct_1"],
    }  # fmt: skip


def harm(operation: schemathesis.schemas.APIOperation) -> tuple[bool, bool, int]:
    """Sorts what takes things away behind what needs them: the innermost first, the model itself last of all."""
    return operation.path.endswith("/purge"), operation.method == "delete", -operation.path.count("/")


def fuzz(operation: schemathesis.schemas.APIOperation, key: str, there: dict[str, list[str | int]]) -> None:
    """Sends generated requests of one operation, most valid ones about things that exist, and validates every answer."""

    known = {parameter.name for parameter in operation.query}

    def call(case: schemathesis.Case) -> None:
        # A request may suit the schema and still ask for what cannot be: a 422 with its reason is a right answer.
        excluded = [positive_data_acceptance]
        if set(case.query or {}) - known:  # what nobody knows in a query is ignored, as everywhere on the web
            excluded.append(negative_data_rejection)
        case.call_and_validate(headers={"Authorization": key}, excluded_checks=excluded)

    @GENTLY
    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        which=st.none() | st.integers(0, 11),
    )
    def valid(case: schemathesis.Case, which: int | None) -> None:
        if which is not None:
            case.path_parameters |= {
                name: there[name][which % len(there[name])] for name in case.path_parameters
            }
            if "tasks" in (case.query or {}):
                case.query["tasks"] = there["task"]
        call(case)

    @GENTLY
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def invalid(case: schemathesis.Case) -> None:
        call(case)

    valid()
    with suppress(Unsatisfiable):  # there is no wrong way to ask for what takes no input
        invalid()
