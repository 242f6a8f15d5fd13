"""What every answer tells browsers and caches, and whose pages may call."""

import re

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.config import get_settings
from tests.scenes import World

ORIGIN = "https://console.example"


@pytest.mark.parametrize(
    "path", ["/livez", "/v1/models", "/v1/nothing", "/v1/models/none", "/docs", "/openapi.json"]
)
def test_every_answer_forbids_browsers_what_it_does_not_need(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ("script-src" in headers["Content-Security-Policy"]) == (path == "/docs")


def test_what_a_key_may_see_is_kept_by_no_cache(client: TestClient) -> None:
    assert client.get("/v1/models").headers["Cache-Control"] == "no-store"
    assert client.get("/v1/models", headers={"Authorization": ""}).headers["Cache-Control"] == "no-store"
    assert "Cache-Control" not in client.get("/docs").headers


def test_the_documentation_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert "https:" not in page.headers["Content-Security-Policy"]
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)", page.text)
    assert len(loaded) == 4
    for address in loaded:
        assert address.startswith("/")
        assert client.get(address).status_code == 200, address


def test_an_unexpected_error_shows_nothing_of_its_inside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("connection to secret-host with password hunter2")

    monkeypatch.setattr("service.registry.queries.get_model", broken)
    answer = world.client.get("/v1/models/triage")
    assert world.problem(answer) == (500, "internal_error")
    assert not [
        word for word in ("hunter2", "secret-host", "RuntimeError", "Traceback") if word in answer.text
    ]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def preflight(client: TestClient) -> dict[str, str]:
    """What a browser is told that asks whether a page of ORIGIN may read the models."""
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    answer = client.options(
        "/v1/models", headers={**asked, "Access-Control-Request-Headers": "authorization"}
    )
    return dict(answer.headers)


def test_no_page_of_another_origin_may_call_by_default(client: TestClient) -> None:
    assert not [name for name in preflight(client) if name.startswith("access-control")]
    answer = client.get("/v1/models", headers={"Origin": ORIGIN})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_pages_of_the_origins_that_are_set_may_call_and_no_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_CORS_ORIGINS", f'["{ORIGIN}"]')
    get_settings.cache_clear()
    try:
        opened = TestClient(create_app(), headers=client.headers)
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    told = preflight(opened)
    assert told["access-control-allow-origin"] == ORIGIN
    assert told["access-control-allow-headers"] == "authorization"
    assert "access-control-allow-credentials" not in told
    strange = opened.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in strange.headers
