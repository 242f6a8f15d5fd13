"""Models over HTTP."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

MODEL = {"name": "triage", "base_model": "minilm-l6", "task_type": "text-classification"}


def test_a_new_model_starts_at_the_untouched_base(client: TestClient) -> None:
    created = client.post("/v1/models", json=MODEL)
    assert created.status_code == 201
    assert created.headers["Location"] == "/v1/models/triage"
    body = client.get("/v1/models/triage").json()
    assert body == created.json()
    assert (body["champion"], body["previous"], body["labels"], body["active_update"]) == (0, None, [], None)
    assert body["gate"]["max_regression"] == 0.02
    assert body["replay"] == {"capacity": 500, "policy": "balanced", "seed": 0}


def test_an_unknown_base_model_is_refused_and_the_offer_named(client: TestClient) -> None:
    answer = client.post("/v1/models", json={**MODEL, "base_model": "gpt-7"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unknown_base_model"
    assert "minilm-l6" in answer.json()["detail"]


def test_two_models_cannot_share_a_name_even_after_archiving(client: TestClient) -> None:
    assert client.post("/v1/models", json=MODEL).status_code == 201
    assert client.post("/v1/models", json=MODEL).json()["code"] == "model_exists"
    assert client.delete("/v1/models/triage").status_code == 204
    assert client.post("/v1/models", json=MODEL).status_code == 409
    assert client.get("/v1/models").json()["data"] == []
    assert [m["name"] for m in client.get("/v1/models?archived=true").json()["data"]] == ["triage"]


def test_another_tenants_model_is_not_found(client: TestClient, other_client: TestClient) -> None:
    model = client.post("/v1/models", json=MODEL).json()
    for name in (model["name"], model["id"]):
        answer = other_client.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    assert other_client.get("/v1/models").json()["data"] == []
    assert other_client.post("/v1/models", json=MODEL).status_code == 201


def test_models_are_listed_page_by_page(client: TestClient) -> None:
    for number in range(5):
        client.post("/v1/models", json={**MODEL, "name": f"m{number}"})
    names, cursor = [], ""
    for _ in range(3):
        page = client.get(f"/v1/models?limit=2{cursor}").json()
        names += [model["name"] for model in page["data"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert names == ["m0", "m1", "m2", "m3", "m4"]
    assert page["has_more"] is False
    assert page["next_cursor"] is None
    assert client.get("/v1/models?cursor=nonsense!").json()["code"] == "invalid_cursor"


def test_a_model_changes_in_what_may_change(client: TestClient) -> None:
    client.post("/v1/models", json=MODEL)
    changed = client.patch(
        "/v1/models/triage",
        json={"replay": {"capacity": 7}, "gate": {"max_regression": 0.1}, "metadata": {"a": 1}},
    ).json()
    assert changed["replay"] == {"capacity": 7, "policy": "balanced", "seed": 0}
    assert changed["gate"]["max_regression"] == 0.1
    assert changed["metadata"] == {"a": 1}
    unknown = client.patch("/v1/models/triage", json={"base_model": "x"})
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["loc"] == ["body", "base_model"]


def test_text_that_postgres_cannot_store_is_a_validation_error(client: TestClient) -> None:
    answer = client.post("/v1/models", json={**MODEL, "metadata": {"note": "a\x00b"}})
    assert answer.status_code == 422
    assert "NUL" in answer.json()["detail"]
    assert client.get("/v1/models/a%00b").status_code == 422


def test_an_idempotency_key_makes_a_repeat_harmless(client: TestClient) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/v1/models", json=MODEL, headers=headers)
    again = client.post("/v1/models", json=MODEL, headers=headers)
    assert again.status_code == 201
    assert again.json() == first.json()
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    other = client.post("/v1/models", json={**MODEL, "name": "x"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_metadata_may_speak_of_escapes_but_not_hold_a_nul_or_nest_without_end(client: TestClient) -> None:
    talk = {"pattern": "\\u0000 is written with a backslash"}
    assert client.post("/v1/models", json={**MODEL, "metadata": talk}).json()["metadata"] == talk
    deep: dict[str, object] = {}
    for _ in range(500):
        deep = {"a": deep}
    assert client.patch("/v1/models/triage", json={"metadata": deep}).status_code == 422
    assert client.patch("/v1/models/triage", content=b'{"metadata": {"a": ["\\ud800"]}}').status_code == 422


def test_a_body_over_the_limit_is_413(client: TestClient) -> None:
    body = b'{"name": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    answer = client.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_large_body_cannot_hide_behind_a_content_type(client: TestClient) -> None:
    header = {"Content-Type": "application/x-ndjson", "Authorization": ""}
    answer = client.post("/v1/models", content=b"x" * (17 * 1024 * 1024), headers=header)
    assert answer.status_code == 413


def test_target_modules_must_be_storable_and_matchable(client: TestClient) -> None:
    for modules in ("a\x00", "([", "a{99999999999}"):
        answer = client.post("/v1/models", json={**MODEL, "adapter": {"target_modules": modules}})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")


@pytest.mark.parametrize(
    "adapter",
    [
        {"type": "lora", "r": 512, "max_rank": 512, "use_rslora": True},
        {"type": "lora", "r": 128, "use_dora": True},
        {"type": "oft", "oft_block_size": 16, "target_modules": ["query"]},
    ],
)
def test_every_kind_of_adapter_is_stored_as_it_was_asked_for(
    client: TestClient, adapter: dict[str, Any]
) -> None:
    made = client.post("/v1/models", json={**MODEL, "adapter": adapter})
    assert made.status_code == 201, made.text
    shown = client.get(f"/v1/models/{MODEL['name']}").json()["adapter"]
    assert shown.items() >= adapter.items()


@pytest.mark.parametrize(
    ("adapter", "word"),
    [
        ({"type": "oft", "use_dora": True}, "use_dora is no option"),
        ({"type": "oft", "r": 4}, "r is no option"),
        ({"type": "lora", "oft_block_size": 8}, "oft_block_size is no option"),
        ({"type": "lora", "r": 513}, "less than or equal to 512"),
        ({"type": "ia3"}, "'lora' or 'oft'"),
    ],
)
def test_options_of_another_adapter_type_are_refused(
    client: TestClient, adapter: dict[str, Any], word: str
) -> None:
    answer = client.post("/v1/models", json={**MODEL, "adapter": adapter})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")
    assert word in str(answer.json()["errors"])
