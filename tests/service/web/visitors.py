"""A browser without scripts: it keeps cookies, follows forms, and says where they come from."""

import os
import re
from html import unescape

import httpx
from fastapi.testclient import TestClient

from bench.client import Client

PICTURES = ("matrix", "lineage", "trade-offs", "versions/5/changes")
"""Of the model's page and of a version's; a small one, the averages, stands in the list."""
TABLES = (
    "matrix.csv", "averages.csv", "lineage.csv", "history.csv", "trade-offs.csv", "updates.csv", "rollback.csv",
    "versions/5/reasons.csv", "versions/5/changes.csv", "versions/5/flips.csv",
)  # fmt: skip


def key_of(client: TestClient) -> str:
    """The API key that a client of the tests calls with."""
    return str(client.headers["Authorization"]).removeprefix("Bearer ")


class Browser:
    """Looks at the pages of the app that `client` calls, with the key that it calls with."""

    def __init__(self, client: TestClient, *, signed_in: bool = True) -> None:
        self.key = key_of(client)
        self.http = TestClient(client.app, raise_server_exceptions=False, follow_redirects=False)
        if signed_in:
            answer = self.send("/ui/signin", key=self.key)
            assert answer.status_code == 303, answer.text

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GETs a page as a browser does."""
        return self.http.get(path, headers={"Accept": "text/html,*/*;q=0.8", **headers})

    def read(self, path: str) -> str:
        """Returns the text of a page that is there."""
        answer = self.get(path)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.text

    def send(self, path: str, *, origin: str = "http://testserver", **fields: object) -> httpx.Response:
        """POSTs a form from a page of this service, or of another one."""
        return self.http.post(path, data=fields, headers={"Origin": origin})

    def send_own(self, path: str, **fields: object) -> httpx.Response:
        """POSTs a form with the token of this session."""
        return self.send(path, token=self.token(), **fields)

    @property
    def nonce(self) -> str:
        """What tells this session from others."""
        return str(self.http.cookies["palimpsest_session"]).split("_")[3]

    def token(self) -> str:
        """The token that the forms of this session carry."""
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.read("/ui/models"))
        assert found is not None
        return found[1]


class InProcess(Client):
    """The benches' client, upon the tests' app."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http


def lineage(client: TestClient, *, model: str = "long", tenant: str = "acme", versions: int = 5) -> None:
    """Writes a model with a line of promoted versions, all scored and the newest judged; nothing is trained."""
    from bench.long_lineage import (  # here: it reads the settings, which the conftest fixes first
        Size,
        write_lineage,
    )

    size = Size(versions=versions, tasks=3, eval_rows=40, grows_every=3)
    write_lineage(
        InProcess(client), database_url=os.environ["DATABASE_URL"], tenant=tenant, model=model, size=size
    )


def visible_text(html: str) -> str:
    """What a page says, without its markup."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def update_page(browser: Browser, model: str) -> str:
    """The address of the page of the model's newest update."""
    found = re.search(r"/ui/updates/\w+", browser.read(f"/ui/models/{model}"))
    assert found is not None
    return found[0]


def paths(browser: Browser, model: str = "long") -> list[str]:
    """Every page of a written lineage."""
    update = update_page(browser, model)
    pictures = [f"{name}.svg" for name in (*PICTURES, "averages")]
    of_model = ["", "?version=2", "/versions/5", "/rollback", *(f"/{name}" for name in (*pictures, *TABLES))]
    return ["/ui/models", "/ui/models.csv", *(f"/ui/models/{model}{rest}" for rest in of_model),
            update, f"{update}/now", f"{update}/events.csv"]  # fmt: skip
