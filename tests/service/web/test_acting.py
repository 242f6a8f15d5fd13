"""What may be done on pages, by whom, and what comes of it."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy import update as change

from service.db import session_scope
from service.errors import Conflict
from service.idempotency import Idempotency
from service.models import Update, UpdateState
from tests.scenes import World, make_client
from tests.service.web.visitors import Browser, visible_text

FORM = {"tasks": ["colours"], "strategy": "replay", "epochs": "2", "promotion": "gate"}


@pytest.fixture
def colours(world: World) -> str:
    """The name of a model with a task that can be learnt."""
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/colours"))
    rows = [
        {"text": f"row {n}", "label": "ab"[n % 2], "split": "train" if n < 8 else "eval"} for n in range(16)
    ]
    world.examples("colours", rows)
    return "triage"


def test_the_form_requests_the_update_that_it_shows(world: World, browser: Browser, colours: str) -> None:
    assert 'value="colours"' in browser.read("/ui/models/triage")
    answer = browser.send_own("/ui/models/triage/updates", **FORM)
    assert answer.status_code == 303
    update = world.update(answer.headers["Location"].rpartition("/")[2])
    assert (update["tasks"], update["strategy"]["name"], update["training"]["epochs"]) == (
        ["colours"],
        "replay",
        2,
    )
    assert (update["promotion"], update["relearn"], update["requested_by"]) == (
        "gate",
        False,
        "key:acme-test",
    )
    assert "○ queued" in browser.read(answer.headers["Location"])
    assert "1 queued" in visible_text(browser.read("/ui/models"))


def number_of(html: str) -> str:
    """The number that the form of a page carries."""
    found = re.search(r'name="form" value="(\w+)"', html)
    assert found is not None
    return found[1]


def test_a_form_that_is_sent_twice_asks_for_one_update(world: World, browser: Browser, colours: str) -> None:
    form = {**FORM, "form": number_of(browser.read("/ui/models/triage"))}
    first = browser.send_own("/ui/models/triage/updates", **form)
    again = browser.send_own("/ui/models/triage/updates", **form)
    assert (first.status_code, again.status_code) == (303, 303)
    assert again.headers["Location"] == first.headers["Location"]
    assert len(world.get("/models/triage/updates")["data"]) == 1


def test_a_form_that_is_sent_by_a_double_click_asks_for_one_update(
    world: World, browser: Browser, colours: str
) -> None:
    form = {**FORM, "form": number_of(browser.read("/ui/models/triage")), "token": browser.token()}
    with ThreadPoolExecutor(4) as clicks:
        sent = [clicks.submit(browser.send, "/ui/models/triage/updates", **form) for _ in range(4)]
        places = {click.result().headers["Location"] for click in sent}
    assert len(places) == 1
    assert len(world.get("/models/triage/updates")["data"]) == 1


def test_a_form_whose_twin_takes_long_is_told_so(
    world: World, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.idempotency.WAIT_SECONDS", 1)
    with session_scope(tenant="acme") as first, session_scope(tenant="acme") as second:
        Idempotency(first, tenant="acme", key="form-1", request="form").begin(b"", wait=True)
        with pytest.raises(Conflict) as refused:
            Idempotency(second, tenant="acme", key="form-1", request="form").begin(b"", wait=True)
        second.rollback()
        # Whatever else is waited for in the same transaction is waited for as long as ever.
        assert first.scalar(text("SHOW lock_timeout")) == "0"
    assert refused.value.code == "idempotency_key_in_flight"


def test_another_form_asks_for_another_update_and_so_does_a_changed_one(
    world: World, browser: Browser, colours: str
) -> None:
    form = {**FORM, "form": number_of(browser.read("/ui/models/triage"))}
    browser.send_own("/ui/models/triage/updates", **form)
    browser.send_own("/ui/models/triage/updates", **{**form, "epochs": "3"})
    browser.send_own(
        "/ui/models/triage/updates", **{**FORM, "form": number_of(browser.read("/ui/models/triage"))}
    )
    assert len(world.get("/models/triage/updates")["data"]) == 3


def test_a_form_that_was_refused_may_be_mended_and_sent_again(
    world: World, browser: Browser, colours: str
) -> None:
    form = {**FORM, "form": number_of(browser.read("/ui/models/triage"))}
    assert browser.send_own("/ui/models/triage/updates", **{**form, "tasks": ["none"]}).status_code == 404
    assert browser.send_own("/ui/models/triage/updates", **form).status_code == 303
    assert len(world.get("/models/triage/updates")["data"]) == 1


def test_the_form_offers_the_strategies_that_an_update_may_ask_for(browser: Browser, colours: str) -> None:
    offered = re.findall(r'<option value="(\w+)">\1 – ', browser.read("/ui/models/triage"))
    assert offered[0] == "replay"
    assert {"joint", "analytic"} < set(offered)
    assert "blend" not in offered


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["none"]}, "has no task"),
        ({"strategy": "none"}, "Unknown strategy"),
        ({"epochs": "many"}, "training.epochs"),
        ({"promotion": "never"}, "promotion"),
    ],
)
def test_a_form_that_asks_for_what_cannot_be_is_told_why(
    browser: Browser, colours: str, changed: dict[str, object], told: str
) -> None:
    answer = browser.send_own("/ui/models/triage/updates", **{**FORM, **changed})
    assert answer.status_code in (404, 422)
    assert told in visible_text(answer.text)
    assert (
        browser.http.get(
            "/v1/models/triage/updates", headers={"Authorization": f"Bearer {browser.key}"}
        ).json()["data"]
        == []
    )


def test_a_queued_update_is_cancelled(world: World, browser: Browser, colours: str) -> None:
    page = browser.send_own("/ui/models/triage/updates", **FORM).headers["Location"]
    assert "Cancel this update" in browser.read(page)
    assert browser.send_own(f"{page}/cancel").headers["Location"] == page
    text = browser.read(page)
    assert "– cancelled" in text
    assert "Cancel this update" not in text
    assert browser.send_own(f"{page}/cancel").status_code == 409
    stream = browser.get(f"{page}/stream?after=9223372036854775807")
    assert stream.status_code == 204


def test_a_finished_update_streams_its_events_and_ends(browser: Browser, colours: str) -> None:
    page = browser.send_own("/ui/models/triage/updates", **FORM).headers["Location"]
    browser.send_own(f"{page}/cancel")
    stream = browser.get(f"{page}/stream", accept="text/event-stream")
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert re.findall(r"^event: (\w+)", stream.text, re.MULTILINE) == ["queued", "cancelled"]


@pytest.mark.parametrize(
    ("decision", "champion", "state"), [("approve", 5, "promoted"), ("reject", 4, "rejected")]
)
def test_a_held_candidate_is_decided_with_a_reason(
    world: World, browser: Browser, long: str, decision: str, champion: int, state: str
) -> None:
    page = hold_newest(world, browser)
    assert "Approve v5" in browser.read(page)
    assert "1 to decide" in browser.read("/ui/models")
    fields = {"reason": "as discussed", "compared_with": compared_with(browser.read(page))}
    assert browser.send_own(f"{page}/{decision}", **fields).status_code == 303
    assert world.get(f"/models/{long}")["champion"] == champion
    text = visible_text(browser.read(page))
    assert state in text
    assert "reason: as discussed" in text


def compared_with(html: str) -> str:
    """The champion that the verdict on the page speaks of."""
    found = re.search(r'name="compared_with" value="(\d+)"', html)
    assert found is not None
    return found[1]


def test_a_candidate_is_not_approved_on_a_verdict_that_nobody_saw(
    world: World, browser: Browser, long: str
) -> None:
    page = hold_newest(world, browser)
    seen = int(compared_with(browser.read(page)))
    answer = browser.send_own(f"{page}/approve", reason="from an old page", compared_with=seen - 1)
    assert answer.status_code == 409
    assert "made anew" in visible_text(answer.text)
    assert world.get(f"/models/{long}")["champion"] == 4
    assert world.update(page.rsplit("/", 1)[1])["status"] == "awaiting_approval"


def hold_newest(world: World, browser: Browser) -> str:
    """Sets the lineage's newest version back to a candidate that waits for a person; returns its update's page."""
    world.rollback("long", to=4)
    with session_scope(tenant="acme", role="worker") as session:
        found = session.execute(
            change(Update)
            .where(Update.version == 5)
            .values(state=UpdateState.AWAITING_APPROVAL, compared_with=4)
            .returning(Update.id)
        ).scalar_one()
    return f"/ui/updates/{found}"


def test_without_scripts_a_page_loads_itself_again_but_not_while_a_person_decides_on_it(
    world: World, browser: Browser, colours: str
) -> None:
    again = '<noscript><meta http-equiv="refresh"'
    update = world.request("colours", promotion="manual")["id"]
    page = f"/ui/updates/{update}"
    assert again in browser.read(page)
    with session_scope(tenant="acme", role="worker") as session:
        waits = {"state": UpdateState.AWAITING_APPROVAL, "compared_with": 0}
        session.execute(change(Update).where(Update.id == update).values(waits))
    held = browser.read(page)
    assert 'id="reason"' in held
    assert again not in held


def test_a_rollback_says_what_it_changes_and_then_does_it(world: World, browser: Browser, long: str) -> None:
    asked = visible_text(browser.read(f"/ui/models/{long}/rollback"))
    assert "from v5 to v4" in asked
    answer = browser.send_own(
        f"/ui/models/{long}/rollback", champion=5, to=4, reason="too many wrong refunds"
    )
    assert answer.headers["Location"] == f"/ui/models/{long}?done=rolled-back"
    text = visible_text(browser.read(answer.headers["Location"]))
    assert "The champion was rolled back. It is version 4 now." in text
    assert "v5 → v4 rolled back key:acme-test too many wrong refunds" in text
    assert world.get(f"/models/{long}")["champion"] == 4


def test_a_rollback_goes_to_any_version_and_back(world: World, browser: Browser, long: str) -> None:
    assert "from v5 to v2" in visible_text(browser.read(f"/ui/models/{long}/rollback?to=2"))
    browser.send_own(f"/ui/models/{long}/rollback", champion=5, to=2, reason="why")
    browser.send_own(f"/ui/models/{long}/rollback", champion=2, to=5, reason="why not")
    assert world.get(f"/models/{long}")["champion"] == 5


def test_a_rollback_that_was_confirmed_for_another_champion_is_refused(
    world: World, browser: Browser, long: str
) -> None:
    world.rollback(long, to=3)
    answer = browser.send_own(f"/ui/models/{long}/rollback", champion=5, to=4, reason="why")
    assert answer.status_code == 409
    assert "The champion is version 3 now" in answer.text
    assert world.get(f"/models/{long}")["champion"] == 3


def test_a_rollback_needs_a_reason_and_a_version_to_go_to(browser: Browser, long: str) -> None:
    assert browser.send_own(f"/ui/models/{long}/rollback", champion=5, to=4, reason="  ").status_code == 422
    assert browser.send_own(f"/ui/models/{long}/rollback", champion=5, to=99, reason="why").status_code == 404
    assert browser.get(f"/ui/models/{long}/rollback?to=5").status_code == 409


def test_a_key_that_may_only_read_is_offered_nothing_and_refused_everything(
    client: TestClient, world: World, browser: Browser, long: str
) -> None:
    page = hold_newest(world, browser)
    watcher = Browser(make_client("acme", "read"))
    offered = re.compile(r"/rollback|/updates\"|/approve|/reject|/cancel")
    for path in (f"/ui/models/{long}", f"/ui/models/{long}/versions/3", page):
        assert offered.search(browser.read(path)), path
        assert not offered.search(watcher.read(path)), path
    assert watcher.get(f"/ui/models/{long}/rollback").status_code == 403
    forms = {
        f"/ui/models/{long}/rollback": {"champion": 4, "to": 3, "reason": "why"},
        f"/ui/models/{long}/updates": {**FORM, "tasks": ["task-0"]},
        f"{page}/approve": {}, f"{page}/reject": {}, f"{page}/cancel": {},
    }  # fmt: skip
    for path, fields in forms.items():
        assert watcher.send_own(path, **fields).status_code == 403, path
    assert world.get(f"/models/{long}")["champion"] == 4


def test_promotion_whatever_the_verdict_needs_a_key_that_may_deploy(client: TestClient, colours: str) -> None:
    trainer = Browser(make_client("acme", "read", "train"))
    assert "whatever the verdict" not in trainer.read("/ui/models/triage")
    answer = trainer.send_own("/ui/models/triage/updates", **{**FORM, "promotion": "always"})
    assert answer.status_code == 403


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_texts_that_people_send_stay_texts(world: World, browser: Browser, long: str) -> None:
    world.rollback(long, to=4, reason=HOSTILE)
    world.client.patch(f"/v1/models/{long}", json={"metadata": {"note": HOSTILE}})
    with_text(HOSTILE)
    pages = [browser.read(path) for path in (f"/ui/models/{long}", f"/ui/models/{long}/versions/5")]
    for html in pages:
        assert "&lt;script&gt;alert(1)" in html
        assert "<script>" not in html
        assert "<img src=x" not in html


def with_text(text: str) -> None:
    """Gives every stored example a text and a label."""
    from service.db import session_scope
    from service.models import Example

    with session_scope(tenant="acme") as session:
        for example in session.query(Example):
            example.content = {"text": text}


@pytest.mark.parametrize(
    "path",
    [
        "/ui/models/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/ui/%3Cimg%20src=x%3E",
        "/ui/signin?next=%22%3E%3Cscript%3E",
    ],
)
def test_addresses_are_not_written_into_pages_as_they_are(browser: Browser, path: str) -> None:
    html = browser.get(path).text
    assert "<script>" not in html
    assert "<img src=x" not in html


def test_the_caption_of_the_changes_says_whose_they_are_and_how_they_are_bounded(
    browser: Browser, long: str
) -> None:
    page = f"/ui/models/{long}/versions/5"
    said = visible_text(browser.read(page))
    assert "Against version 4, on the examples both answered; whiskers are exact bounds at 95" in said
    assert "The gate compared with" not in said
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE updates SET compared_with = 3 WHERE version = 5"))
        session.execute(text("UPDATE models SET task_type = 'causal-lm'"))
    said = visible_text(browser.read(page))
    assert "whiskers are bounds by the bootstrap or Student’s t, the wider, at 95" in said
    assert "The gate compared with version 3 instead, the champion of then" in said
