"""A person's way through the pages in a real browser: sign in, read the matrix, watch an update to its end, open a flip, roll back.

Real updates, trained by a real child. The screenshots of docs/img are made here:
`PALIMPSEST_SCREENSHOTS=docs/img python -m pytest tests/browser`.
"""

import re
import threading

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import expect
from sqlalchemy import update as change

from service.db import session_scope
from service.models import Update
from tests.browser.conftest import Visit
from tests.scenes import World
from tests.service.web.visitors import key_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASKS = {
    "numbers": ("math", "calendar"),
    "files": ("os", "shutil"),
    "code": ("ast", "tokenize"),
    "events": ("logging", "socket"),
}


@pytest.fixture
def taught(world: World) -> World:
    """A model that learnt three tasks, and has a fourth one to learn; rehearsing too little to keep everything."""
    world.model(replay={"capacity": 4})
    for task, labels in TASKS.items():
        world.task(task, labels)
    for task in list(TASKS)[:3]:
        world.learn(task)
    return world


def test_a_person_finds_their_way_from_signing_in_to_a_rollback(taught: World, visit: Visit) -> None:
    page = visit.page
    visit.open("/ui/models/triage")
    visit.picture("signin")
    assert visit.faults() == []
    page.get_by_label("API key").fill(key_of(taught.client))
    page.get_by_role("button", name="Sign in").click()

    read_the_matrix(visit, taught)
    follow_an_update(visit, taught)
    open_a_flip(visit, taught)
    roll_back(visit, taught)

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def read_the_matrix(visit: Visit, world: World) -> None:
    """The cells are those of the report, for eyes and for screen readers."""
    report = world.get("/models/triage/reports/forgetting")
    table = visit.page.get_by_role("table", name="Scores of 4 versions")
    rows = table.get_by_role("row")
    expect(rows).to_have_count(1 + len(report["versions"]))
    newest = rows.nth(1).get_by_role("cell").all_text_contents()
    assert newest == [f"{cell:.2f}" for cell in report["matrix"][-1]]


def follow_an_update(visit: Visit, world: World) -> None:
    """The page goes from queued to the end without being loaded again."""
    page = visit.page
    page.get_by_label("events").check()
    page.get_by_label("Epochs").fill("24")
    page.get_by_label("Promotion").select_option("whatever the verdict")
    page.get_by_role("button", name="Request the update").click()
    live = page.locator("#state")
    expect(live).to_have_attribute("data-state", "queued")
    page.evaluate("window.loadedOnce = true")
    assert visit.faults() == []
    worker = threading.Thread(target=world.work_once)
    worker.start()
    try:
        expect(page.get_by_role("progressbar")).to_be_visible()
        expect(page.get_by_role("img", name=re.compile(r"Loss curve over \d\d steps"))).to_be_visible()
        visit.picture("update")
        expect(live).to_have_attribute("data-state", "promoted", timeout=300_000)
    finally:
        worker.join()
    expect(page.get_by_role("status")).to_have_text("The update is ✓ promoted")
    assert page.evaluate("window.loadedOnce"), "the page was loaded again"
    expect(page.locator(".events strong")).to_have_text(["queued", "training", "evaluating", "promoted"])
    visit.picture("update-finished")
    assert visit.faults() == []


def open_a_flip(visit: Visit, world: World) -> None:
    """With the keyboard alone, from the update's page to the text of an example."""
    page = visit.page
    flip = world.get("/models/triage/versions/4/flips?sort=confidence&limit=1")["data"][0]
    page.get_by_role("link", name="v4").first.click()
    expect(page.get_by_role("heading", name="Version 4")).to_be_visible()
    summary = page.locator(".flips summary").first
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".flips blockquote").first).to_have_text(flip["content"]["text"])
    turn_the_dial(visit, world)
    visit.picture("version")
    assert visit.faults() == []


def turn_the_dial(visit: Visit, world: World) -> None:
    """The dial is asked for on the page and shown there once a worker has scored it; what was rehearsed stands above it."""
    page = visit.page
    expect(page.get_by_role("region", name="What was rehearsed").get_by_role("row")).to_have_count(1 + 4)
    page.get_by_role("button", name="Have it scored").click()
    expect(page.get_by_text("It waits for a worker")).to_be_visible()
    assert visit.faults() == []
    world.dial(4)
    page.reload()
    expect(
        page.get_by_role("img", name=re.compile("Scores on 4 tasks between version 3 and"))
    ).to_be_visible()
    page.locator(".flips summary").first.click()


def roll_back(visit: Visit, world: World) -> None:
    """The champion changes after a confirmation, and the pages show it."""
    page = visit.page
    visit.open("/ui/models/triage")
    visit.picture("model")
    assert visit.faults() == []
    climb_the_tree(visit)
    page.get_by_role("link", name="Roll back to v3…").click()
    expect(page.get_by_role("heading", name="Roll back from v4 to v3?")).to_be_visible()
    visit.picture("rollback")
    assert visit.faults() == []
    page.get_by_label("Reason").fill("wrong answers about files")
    page.get_by_role("button", name="Roll back to v3").click()
    expect(page.get_by_role("status")).to_contain_text("It is version 3 now")
    assert world.get("/models/triage")["champion"] == 3
    visit.open("/ui/models")
    expect(page.get_by_role("row", name=re.compile("triage")).get_by_role("link", name="v3")).to_be_visible()
    visit.picture("models")
    assert visit.faults() == []


def climb_the_tree(visit: Visit) -> None:
    """Every version of the tree can be reached with the keyboard and leads to its page."""
    page = visit.page
    tree = page.get_by_role("group", name="Lineage of triage: 5 versions")
    expect(tree.get_by_role("link")).to_have_count(5)
    tree.get_by_role("link", name=re.compile("v2")).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Version 2")).to_be_visible()
    page.go_back()


def test_a_link_in_a_mail_leads_to_its_page(client: TestClient, visit: Visit) -> None:
    World(client).model()
    visit.open("/ui/signin")
    visit.sign_in(key_of(client))
    page = visit.page
    page.goto("about:blank")  # a mail program's window: no page of the service
    page.set_content(f'<a href="{visit.origin}/ui/models/triage">Your update was held</a>')
    page.get_by_role("link", name="Your update was held").click()
    expect(page.get_by_role("heading", name="triage")).to_be_visible()


def test_a_page_that_follows_an_update_stays_under_the_hands_of_its_reader(
    client: TestClient, visit: Visit
) -> None:
    world = World(client)
    world.model()
    world.task("numbers", ("math", "calendar"))
    world.examples("numbers", [{"text": "a misspelt label", "label": "maths", "split": "eval"}])
    update = world.request("numbers")["id"]
    report_progress(update, step=1)
    visit.open("/ui/signin")
    visit.sign_in(key_of(client))
    visit.open(f"/ui/updates/{update}")
    page = visit.page

    def refreshed(step: int) -> None:
        report_progress(update, step=step)
        expect(page.get_by_role("progressbar", name=f"step {step} of 9")).to_be_visible()

    refreshed(2)  # by the script: the page listens by now
    warnings = page.locator("summary")
    warnings.click()
    cancel = page.get_by_role("button", name="Cancel this update")
    for control in (warnings, page.get_by_role("link", name="SVG"), cancel):
        control.focus()
        refreshed(3)
        refreshed(4)
        expect(control).to_be_focused()
    expect(page.locator("details")).not_to_have_attribute("open")
    cancel.hover()
    page.mouse.down()
    refreshed(5)
    page.mouse.up()
    expect(page.locator("#state")).to_have_attribute("data-state", "cancelled")


def report_progress(update: str, *, step: int) -> None:
    """Says of an update what its worker would: that it trains, and how far it is."""
    losses = [[one, 1 / one] for one in range(1, step + 1)]
    progress = {"phase": "training", "step": step, "total_steps": 9, "loss": 1 / step, "losses": losses}
    with session_scope(tenant="acme", role="worker") as session:
        session.execute(change(Update).where(Update.id == update).values(progress=progress))


def test_pages_can_be_read_where_scripts_are_off(client: TestClient, visit: Visit) -> None:
    world = World(client)
    world.model()
    world.task("numbers", ("math", "calendar"))
    update = world.request("numbers")
    context = visit.page.context.browser.new_context(java_script_enabled=False)  # type: ignore[union-attr]  # it has one
    page = context.new_page()
    page.goto(f"{visit.origin}/ui/updates/{update['id']}")
    page.get_by_label("API key").fill(key_of(client))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#state")).to_have_attribute("data-state", "queued")
    client.post(f"/v1/updates/{update['id']}/cancel")
    expect(page.locator("#state")).to_have_attribute("data-state", "cancelled")  # it loads itself again
    context.close()


def test_an_error_is_a_page_without_grave_faults(client: TestClient, visit: Visit) -> None:
    visit.open("/ui/signin")
    visit.sign_in(key_of(client))
    visit.page.goto(f"{visit.origin}/ui/updates/upd_none")
    expect(visit.page.get_by_role("heading", name="Not Found")).to_be_visible()
    assert visit.faults() == []
    visit.complaints_expected("404")


def test_a_session_that_ended_meanwhile_leads_to_signing_in(client: TestClient, visit: Visit) -> None:
    world = World(client)
    world.model()
    world.task("numbers", ("math", "calendar"))
    update = world.request("numbers")
    visit.open("/ui/signin")
    visit.sign_in(key_of(client))
    visit.open(f"/ui/updates/{update['id']}")
    expect(visit.page.locator("#state")).to_have_attribute("data-state", "queued")
    key = client.get("/v1/keys").json()["data"][0]["id"]
    client.delete(f"/v1/keys/{key}")
    expect(visit.page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_documentation_needs_nothing_from_elsewhere(database: str, visit: Visit) -> None:
    visit.open("/docs")
    visit.page.get_by_role("button", name="POST /v1/models", exact=False).first.click()
    expect(visit.page.get_by_role("button", name="Try it out").first).to_be_visible()
    visit.page.wait_for_load_state("networkidle")
