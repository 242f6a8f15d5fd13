"""Pages of several tenants, and of lineages of different lengths."""

from fastapi.testclient import TestClient

from tests.scenes import make_client
from tests.service.web.statements import counted
from tests.service.web.visitors import Browser, lineage, paths, update_page, visible_text


def test_another_tenants_pages_are_not_there(client: TestClient, browser: Browser, long: str) -> None:
    stranger = Browser(make_client("globex"))
    for path in paths(browser, long)[2:]:
        assert browser.get(path).status_code == 200, path
        assert stranger.get(path).status_code == 404, path
    update = update_page(browser, long)
    assert stranger.get(f"{update}/stream").status_code == 404
    for path in (
        f"{update}/cancel",
        f"{update}/approve",
        f"{update}/reject",
        "/ui/models/long/updates",
        "/ui/models/long/rollback",
    ):
        form = {"to": 1, "champion": 5, "reason": "why", "tasks": "task-0", "strategy": "replay"}
        assert stranger.send_own(path, **form).status_code == 404, path
    assert long not in stranger.read("/ui/models")
    assert client.get(f"/v1/models/{long}").json()["champion"] == 5


def test_two_tenants_with_models_of_one_name_see_their_own(
    client: TestClient, browser: Browser, long: str
) -> None:
    stranger = make_client("globex")
    lineage(stranger, tenant="globex", versions=2)
    assert "v2" in visible_text(Browser(stranger).read("/ui/models"))
    assert "v5" in visible_text(browser.read("/ui/models"))


def test_the_number_of_statements_does_not_grow_with_the_lineage(
    client: TestClient, browser: Browser
) -> None:
    lineage(client, model="short", versions=7)
    lineage(client, model="longer", versions=13)
    # Of both, tasks were taught twice and an eval set grew. The newest versions have a dial and rehearsed.
    for pages in (("short", "longer"), ("short/versions/7", "longer/versions/13")):
        for page in pages:
            browser.read(f"/ui/models/{page}")  # its report is kept from here on
        with counted() as short:
            browser.read(f"/ui/models/{pages[0]}")
        with counted() as longer:
            browser.read(f"/ui/models/{pages[1]}")
        assert len(longer) == len(short) < 60, pages
