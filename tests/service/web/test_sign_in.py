"""Signing in: a session that is no key, ends with its key, and is of no use to other sites."""

import re
import time
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.credentials import new_session, read_key
from service.db import session_scope
from service.models import EndedSession
from service.security import valid_keys
from service.web.errors import SIGN_IN
from service.web.routes import PARTS
from service.web.session import COOKIE, read_own_form
from tests.scenes import World, make_client
from tests.service.web.statements import counted
from tests.service.web.visitors import Browser, key_of, paths
from workers.housekeeping import sweep_ended_sessions


def test_whoever_is_signed_out_is_asked_to_sign_in_and_comes_back_to_the_page(client: TestClient) -> None:
    browser = Browser(client, signed_in=False)
    asked = browser.get("/ui/models/triage")
    assert (asked.status_code, asked.headers["Location"]) == (303, "/ui/signin?next=%2Fui%2Fmodels%2Ftriage")
    assert 'value="/ui/models/triage"' in browser.read(asked.headers["Location"])
    answer = browser.send("/ui/signin", key=browser.key, next="/ui/models/triage")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/models/triage")


@pytest.mark.parametrize(
    ("path", "onward"),
    [
        ("/ui/models/triage?version=2", "/ui/models/triage?version=2"),
        ("/ui/models/triage/versions/5?kind=negative&task=a%20b", "/ui/models/triage/versions/5?kind=negative&task=a%20b"),
        ("/ui/models?next=//evil.example", "/ui/models?next=//evil.example"),
        (f"/ui/models?cursor={'x' * 2000}", "/ui/models"),
        ("/ui/models?kind=\\evil.example", "/ui/models"),
    ],
)  # fmt: skip
def test_signing_in_leads_back_to_the_page_with_its_filters(
    client: TestClient, path: str, onward: str
) -> None:
    browser = Browser(client, signed_in=False)
    page = browser.read(browser.get(path).headers["Location"])
    found = re.search(r'name="next" value="([^"]*)"', page)
    assert found is not None
    answer = browser.send("/ui/signin", key=browser.key, next=unescape(found[1]))
    assert (answer.status_code, answer.headers["Location"]) == (303, onward)


@pytest.mark.parametrize(
    ("came_from", "back"),
    [
        ("http://testserver/ui/models/triage?version=2", "/ui/models/triage?version=2"),
        ("https://testserver/ui/models/triage", "/ui/models/triage"),  # a proxy before the service ends TLS
        ("https://evil.example/ui/models/triage", "/ui"),
        ("https://testserver.evil.example/ui/models/triage", "/ui"),
        ("https://testserver@evil.example/ui/models/triage", "/ui"),
        ("https://testserver//evil.example", "/ui"),
        ("https://testserver/v1/models", "/ui"),
        ("/ui/models/triage", "/ui"),
        ("http://[", "/ui"),
        ("", "/ui"),
    ],
)
def test_an_error_leads_back_to_the_page_it_was_come_to_from_and_nowhere_else(
    browser: Browser, came_from: str, back: str
) -> None:
    answer = browser.get("/ui/updates/upd_none", Referer=came_from)
    assert answer.status_code == 404
    assert f'href="{back}"' in answer.text.partition("<main")[2]


def test_the_cookie_holds_neither_key_nor_its_hash_and_is_for_pages_alone(client: TestClient) -> None:
    browser = Browser(client, signed_in=False)
    cookie = browser.send("/ui/signin", key=browser.key).headers["Set-Cookie"]
    key = read_key(browser.key)
    assert key is not None
    assert browser.key.rpartition("_")[2] not in cookie
    assert key.digest.hex() not in cookie
    assert {"HttpOnly", "Path=/ui", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Secure" not in cookie


@pytest.mark.parametrize("origin", ["https://testserver"])
def test_the_cookie_stays_on_https_where_the_browser_came_by_https(client: TestClient, origin: str) -> None:
    browser = Browser(client, signed_in=False)
    answer = browser.send("/ui/signin", origin=origin, key=browser.key)
    assert "Secure" in answer.headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize("origin", ["http://[", "null", "https://elsewhere.example"])
def test_a_form_from_nowhere_or_from_elsewhere_is_refused(client: TestClient, origin: str) -> None:
    browser = Browser(client, signed_in=False)
    assert browser.send("/ui/signin", origin=origin, key=browser.key).status_code == 403


def test_a_session_is_no_bearer_key(browser: Browser) -> None:
    token = browser.http.cookies[COOKIE]
    answer = browser.http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert World(browser.http).problem(answer) == (401, "unauthenticated")


@pytest.mark.parametrize("key", ["", "nonsense", f"plm_{'0' * 12}_{'0' * 64}"])
def test_a_key_that_is_not_known_is_not_let_in(client: TestClient, key: str) -> None:
    answer = Browser(client, signed_in=False).send("/ui/signin", key=key)
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers
    assert "not let in" in answer.text


def test_a_key_that_may_not_read_cannot_sign_in(client: TestClient) -> None:
    answer = Browser(make_client("acme", "ingest"), signed_in=False).send(
        "/ui/signin", key=key_of(make_client("acme", "ingest"))
    )
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_revoking_the_key_ends_its_sessions_at_once(client: TestClient, browser: Browser) -> None:
    assert browser.get("/ui/models").status_code == 200
    mine = client.get("/v1/keys").json()["data"][0]["id"]
    assert client.delete(f"/v1/keys/{mine}").is_success
    ended = browser.get("/ui/models")
    assert (ended.status_code, ended.headers["Location"]) == (303, "/ui/signin?next=%2Fui%2Fmodels&ended=1")


def test_a_page_that_listens_is_told_to_come_no_more_when_its_session_is_over(client: TestClient) -> None:
    nobody = Browser(client, signed_in=False)
    assert (
        nobody.http.get("/ui/updates/upd_1/stream", headers={"Accept": "text/event-stream"}).status_code
        == 204
    )


def test_rotating_the_key_ends_its_sessions_once_the_old_secret_ends(
    client: TestClient, browser: Browser
) -> None:
    mine = client.get("/v1/keys").json()["data"][0]["id"]
    assert client.post(f"/v1/keys/{mine}/rotate").is_success
    assert browser.get("/ui/models").status_code == 303


def test_a_session_ends_by_itself(browser: Browser) -> None:
    key = read_key(browser.key)
    assert key is not None
    browser.http.cookies.set(
        COOKIE, new_session(key, expires_at=int(time.time()) + 60), path="/ui", domain="testserver.local"
    )
    assert browser.get("/ui/models").status_code == 200
    browser.http.cookies.set(
        COOKIE, new_session(key, expires_at=int(time.time()) - 1), path="/ui", domain="testserver.local"
    )
    assert browser.get("/ui/models").status_code == 303


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_a_token_with_a_changed_part_is_worth_nothing(browser: Browser, part: int) -> None:
    parts = browser.http.cookies[COOKIE].split("_")
    parts[part] = ("1" if parts[part][0] != "1" else "2") + parts[part][1:]
    browser.http.cookies.set(COOKIE, "_".join(parts), path="/ui", domain="testserver.local")
    assert browser.get("/ui/models").status_code == 303


def test_signing_out_takes_the_session_away(browser: Browser) -> None:
    answer = browser.send_own("/ui/signout")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/signin")
    assert browser.get("/ui/models").status_code == 303


def test_a_cookie_that_somebody_kept_is_worth_nothing_after_signing_out(
    client: TestClient, browser: Browser
) -> None:
    other = Browser(client)
    kept = browser.http.cookies[COOKIE]
    browser.send_own("/ui/signout")
    browser.http.cookies.set(COOKIE, kept, path="/ui", domain="testserver.local")
    ended = browser.get("/ui/models")
    assert (ended.status_code, ended.headers["Location"]) == (303, "/ui/signin?next=%2Fui%2Fmodels&ended=1")
    assert valid_keys([kept, other.http.cookies[COOKIE], browser.key]) == {
        other.http.cookies[COOKIE],
        browser.key,
    }
    assert other.get("/ui/models").status_code == 200


def test_signing_out_a_second_time_leads_to_the_sign_in(browser: Browser) -> None:
    kept, token = browser.http.cookies[COOKIE], browser.token()
    browser.send("/ui/signout", token=token)
    for cookie in (None, kept):
        if cookie is not None:
            browser.http.cookies.set(COOKIE, cookie, path="/ui", domain="testserver.local")
        answer = browser.send("/ui/signout", token=token)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/signin")


@pytest.fixture
def long_over(browser: Browser) -> str:
    """The nonce of a session that was signed out of years ago."""
    nonce = "0" * 32
    with session_scope(tenant="acme") as session:
        session.add(EndedSession(tenant_id="acme", nonce=nonce, expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    return nonce


def remembered(tenant: str) -> list[str]:
    with session_scope(tenant=tenant) as session:
        return list(session.scalars(select(EndedSession.nonce)))


def test_sessions_that_are_over_anyway_are_forgotten_at_the_next_signing_out(
    browser: Browser, long_over: str
) -> None:
    nonce = browser.nonce
    browser.send_own("/ui/signout")
    assert remembered("acme") == [nonce]


def test_sessions_that_are_over_anyway_are_forgotten_by_the_sweep_of_any_tenant_and_others_are_not(
    browser: Browser, long_over: str, other_client: TestClient
) -> None:
    with session_scope(tenant="globex") as session:
        for nonce, hours in (("1" * 32, 25), ("2" * 32, 1)):  # by another clock the second may go on
            over = datetime.now(UTC) - timedelta(hours=hours)
            session.add(EndedSession(tenant_id="globex", nonce=nonce, expires_at=over))
    assert sweep_ended_sessions() == 2
    assert (remembered("acme"), remembered("globex")) == ([], ["2" * 32])
    assert sweep_ended_sessions() == 0


def test_a_link_from_another_site_opens_a_page_and_changes_nothing(browser: Browser, long: str) -> None:
    """What a browser sends when somebody follows a link in a mail: the cookie, which is lax, and where it came from."""
    for path in paths(browser, long):
        with counted() as statements:
            answer = browser.get(path, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
        assert answer.status_code == 200, path
        written = [text for text in statements if re.match(r"\s*(INSERT|UPDATE|DELETE)", text)]
        assert written == [], path


def test_whatever_changes_something_takes_a_form_of_the_visitors_own_session() -> None:
    forms = {
        (route.path, method): takes_own_form(route.dependant)
        for part in PARTS
        for route in part.routes
        if isinstance(route, APIRoute)
        for method in route.methods - {"GET", "HEAD"}
    }
    assert len(forms) >= 8
    assert {method for _, method in forms} == {"POST"}
    # Whoever signs in has no session yet.
    assert [form for form, own in forms.items() if not own] == [(SIGN_IN, "POST")]


def takes_own_form(dependant: Dependant) -> bool:
    """Whether a route reads its form with the check of the session's token, and so of where it comes from."""
    return dependant.call is read_own_form or any(takes_own_form(part) for part in dependant.dependencies)


def test_other_sites_can_neither_hold_a_page_s_window_nor_use_its_pictures(browser: Browser) -> None:
    headers = browser.get("/ui/models").headers
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "onward", ["https://evil.example/", "//evil.example", "/\\evil.example", "/v1/models", "/uix", "javascript:alert(1)", ""]
)  # fmt: skip
def test_signing_in_leads_to_no_other_place_than_the_pages(client: TestClient, onward: str) -> None:
    browser = Browser(client, signed_in=False)
    assert browser.send("/ui/signin", key=browser.key, next=onward).headers["Location"] == "/ui"


@pytest.mark.parametrize(
    "path", ["/ui/signin", "/ui/signout", "/ui/models/triage/rollback", "/ui/models/triage/updates"]
)
def test_a_form_from_another_site_is_refused(browser: Browser, path: str) -> None:
    token = browser.token()
    for origin in ("https://evil.example", "null", ""):
        assert browser.send(path, origin=origin, token=token, key=browser.key).status_code == 403, origin
    answer = browser.http.post(
        path, data={"token": token, "key": browser.key},
        headers={"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
    )  # fmt: skip
    assert answer.status_code == 403


def test_a_form_without_the_token_of_its_session_is_refused(
    client: TestClient, browser: Browser, long: str
) -> None:
    other = Browser(client)
    assert other.token() != browser.token()
    for token in ("", "0" * 64, other.token()):
        answer = browser.send("/ui/models/long/rollback", token=token, to=1, champion=5, reason="why")
        assert answer.status_code == 403, token
    assert client.get(f"/v1/models/{long}").json()["champion"] == 5


def test_pages_count_against_the_rate_limit_of_the_key(client: TestClient, browser: Browser) -> None:
    def remaining() -> int:
        return int(browser.get("/ui/models").headers["RateLimit"].split("r=")[1].split(";")[0])

    before = remaining()
    client.get("/v1/models")
    assert remaining() == before - 2
