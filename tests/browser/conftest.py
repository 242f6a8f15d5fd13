"""A real Chromium before the real API on a real socket. Nothing it asks for may leave this machine, nothing may go wrong in it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import ConsoleMessage, Page, Request, expect, sync_playwright

from tests.browser.screenshots import reduced
from tests.service.cli.served import serving

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = os.environ.get("PALIMPSEST_SCREENSHOTS")  # a folder, such as docs/img; unset: none are taken
GRAVE = ("serious", "critical")
PATIENCE_MS = 60_000


@dataclass
class Watch:
    """What a page asked for and complained about."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def request(self, request: Request) -> None:
        """Notes whom a request goes to."""
        self.hosts.add(urlsplit(request.url).hostname or "")

    def message(self, message: ConsoleMessage) -> None:
        """Notes what the browser writes to its console."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def error(self, error: Exception) -> None:
        """Notes a script that failed."""
        self.complaints.append(str(error))


@dataclass
class Visit:
    """A person's tab."""

    page: Page
    origin: str
    watch: Watch

    def open(self, path: str) -> None:
        """Goes to a page of the service."""
        self.page.goto(f"{self.origin}{path}")

    def sign_in(self, key: str) -> None:
        """Signs in where the service asks for it."""
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.origin}/ui/models")

    def complaints_expected(self, part: str) -> None:
        """Takes the browser's own note of a status for what the test wanted."""
        assert self.watch.complaints
        assert all(part in complaint for complaint in self.watch.complaints), self.watch.complaints
        self.watch.complaints.clear()

    def faults(self) -> list[str]:
        """What axe-core holds for a serious or critical violation on the page as it is, in both colour schemes."""
        from axe_playwright_python.sync_playwright import Axe

        found = []
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme)
            for violation in Axe().run(self.page).response["violations"]:
                if violation["impact"] in GRAVE:
                    nodes = "; ".join(node["html"][:200] for node in violation["nodes"][:3])
                    found.append(f"{scheme}: {violation['id']}: {violation['help']}: {nodes}")
        return found

    def picture(self, name: str) -> None:
        """Keeps a screenshot of the whole page, where the environment asks for it."""
        if SCREENSHOTS:
            picture = reduced(self.page.screenshot(full_page=True), context=self.page.context)
            (Path(SCREENSHOTS) / f"{name}.png").write_bytes(picture)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH; Debian's package of that name has it")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def origin(database_url: str, redis_url: str) -> Iterator[str]:
    """Where the API listens."""
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def visit(chromium: Chromium, origin: str) -> Iterator[Visit]:
    """A tab of a browser that knows nobody yet. Fails the test for a request that leaves or an error in the console."""
    watch = Watch()
    context = chromium.new_context(viewport={"width": 1200, "height": 820}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", watch.request)
    page.on("console", watch.message)
    page.on("pageerror", watch.error)
    yield Visit(page, origin, watch)
    context.close()
    assert watch.hosts <= {"127.0.0.1"}, "a request left the machine"
    assert watch.complaints == []
