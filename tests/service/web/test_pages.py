"""What the pages show, and that they show it to whom it belongs."""

import csv
import io
import re
from html import unescape
from xml.etree import ElementTree

import pytest

from tests.scenes import World
from tests.service.web.visitors import PICTURES, TABLES, Browser, paths, visible_text

SVG = "{http://www.w3.org/2000/svg}"


def test_a_browser_at_the_root_finds_the_pages_and_a_client_does_not(scene: World, reader: Browser) -> None:
    assert reader.get("/").headers["Location"] == "/ui"
    assert scene.problem(scene.client.get("/", headers={"Accept": "application/json"})) == (404, "not_found")


def test_the_list_says_how_each_model_stands(scene: World, reader: Browser) -> None:
    text = visible_text(reader.read("/ui/models"))
    report = scene.get("/models/long/reports/forgetting")["summary"]
    assert f"{report['average_accuracy']:.2f}" in text
    assert f"{100 * report['worst_retention']:.1f} %" in text
    assert "v5" in text
    assert "fresh minilm-l6 v0" in text


def test_the_page_of_a_model_shows_the_matrix_that_the_report_has(scene: World, reader: Browser) -> None:
    report = scene.get("/models/long/reports/forgetting")
    drawn = matrix_of(reader.read("/ui/models/long"))
    assert drawn[0] == ["version", *report["tasks"]]
    expected = [
        [
            f"{'★ ' if version == 5 else ''}v{version}",
            *("·" if cell is None else f"{cell:.2f}" for cell in cells),
        ]
        for version, cells in zip(report["versions"], report["matrix"], strict=True)
    ]
    assert drawn[1:] == expected[::-1]


def matrix_of(html: str) -> list[list[str]]:
    """The rows of the heatmap as they are read out."""
    picture = ElementTree.fromstring(re.search(r"<svg[^>]*role=\"table\".*?</svg>", html, re.DOTALL)[0])  # type: ignore[index]
    rows = [element for element in picture.iter() if element.get("role") == "row"]
    return [
        [
            cell.get("aria-label")
            if cell.get("role") == "columnheader" and cell.get("aria-label")
            else spoken(cell)
            for cell in row.iter()
            if cell.get("role") in ("cell", "columnheader", "rowheader")
        ]
        for row in rows
    ]


def spoken(element: ElementTree.Element) -> str:
    """The text that is written within an element, its hover texts left out."""
    texts = [part.text or "" for part in element.iter() if part.tag.endswith("text")]
    return "".join(texts)


def test_a_version_says_its_verdict_in_words_and_its_changes_in_numbers(
    scene: World, reader: Browser
) -> None:
    report = scene.get("/models/long/versions/5/report")
    text = visible_text(reader.read("/ui/models/long/versions/5"))
    for reason in report["verdict"]["reasons"]:
        assert reason["detail"].replace("  ", " ") in text
    for task in report["tasks"]:
        assert f"{task['task']} {task['role']} {task['eval_size']}" in text


def test_flips_are_shown_and_filtered(scene: World, reader: Browser) -> None:
    flips = scene.get("/models/long/versions/5/flips")["data"]
    html = reader.read("/ui/models/long/versions/5")
    assert all(flip["id"] in html for flip in flips)
    only = reader.read("/ui/models/long/versions/5?kind=negative&task=")
    negative = {flip["id"] for flip in flips if flip["kind"] == "negative"}
    assert {flip["id"] for flip in flips if flip["id"] in only} == negative
    assert 0 < len(negative) < len(flips)


def test_the_base_has_no_report_and_leads_to_its_model(reader: Browser) -> None:
    assert reader.get("/ui/models/long/versions/0").headers["Location"] == "/ui/models/long?version=0"
    assert reader.get("/ui/models/long?version=0").status_code == 200


def test_a_model_that_learnt_nothing_yet_has_a_page(reader: Browser) -> None:
    text = visible_text(reader.read("/ui/models/fresh"))
    assert "Nothing has been learnt yet" in text
    assert "Roll back" not in text
    assert reader.get("/ui/models/fresh/rollback").status_code == 409


@pytest.mark.parametrize("name", [*PICTURES, "averages"])
def test_pictures_stand_alone_and_are_those_of_the_page(reader: Browser, name: str) -> None:
    answer = reader.get(f"/ui/models/long/{name}.svg?version=5")
    assert answer.headers["Content-Type"] == "image/svg+xml"
    root = ElementTree.fromstring(answer.text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [
        element
        for element in root.iter()
        if element.get("style") or element.tag.endswith(("style", "script"))
    ]
    pages = {"matrix": "/long", "lineage": "/long", "averages": ""}
    assert answer.text in reader.read(f"/ui/models{pages.get(name, '/long/versions/5')}")


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_of_a_page_is_offered_in_both_forms(reader: Browser, name: str) -> None:
    page = "/ui/models/long" if name in ("matrix", "lineage") else "/ui/models/long/versions/5"
    html = reader.read(page)
    assert {f"/ui/models/long/{name}.{form}" for form in ("svg", "png")} <= addresses(html)


def addresses(html: str) -> set[str]:
    """Where a page's links lead, without their queries."""
    return {link.partition("?")[0] for link in re.findall(r'href="([^"]+)"', html)}


def test_every_table_is_offered_as_csv_and_every_offer_is_there(reader: Browser) -> None:
    offered = set()
    for page in ("/ui/models", "/ui/models/long", "/ui/models/long/versions/5", "/ui/models/long/rollback"):
        html = reader.read(page)
        found = {link for link in re.findall(r'href="([^"]+)"', html) if ".csv" in link}
        assert len(found) >= html.count("<table>"), page
        offered |= found
    for link in offered:
        assert reader.get(unescape(link)).headers["Content-Type"].startswith("text/csv"), link


def test_the_lineage_as_a_table_says_what_the_page_says(scene: World, reader: Browser) -> None:
    rows = list(csv.DictReader(io.StringIO(reader.read("/ui/models/long/lineage.csv"))))
    assert [row["version"] for row in rows] == ["5", "4", "3", "2", "1", "0"]
    assert (rows[0]["parent"], rows[0]["aliases"], rows[0]["learnt"]) == ("4", "champion", "task-1")
    assert rows[0]["verdict"] == scene.get("/models/long/versions/5/report")["verdict"]["decision"]
    assert (rows[5]["parent"], rows[5]["strategy"]) == ("", "")


def test_the_tree_leads_to_every_version(reader: Browser) -> None:
    tree = ElementTree.fromstring(reader.read("/ui/models/long/lineage.svg"))
    links = {link.get("href"): " ".join(link.itertext()) for link in tree.iter(f"{SVG}a")}
    assert set(links) == {f"/ui/models/long/versions/{number}" for number in range(6)}
    assert "v5" in links["/ui/models/long/versions/5"]
    assert "champion" in links["/ui/models/long/versions/5"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_rows_of_one_length(reader: Browser, name: str) -> None:
    answer = reader.get(f"/ui/models/long/{name}")
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert len(rows) > 1
    assert len({len(row) for row in rows}) == 1


def test_the_matrix_as_a_table_has_every_digit(scene: World, reader: Browser) -> None:
    report = scene.get("/models/long/reports/forgetting")
    rows = list(csv.reader(io.StringIO(reader.read("/ui/models/long/matrix.csv"))))
    assert rows[0] == ["version", *report["tasks"]]
    cells = [[None if cell == "" else float(cell) for cell in row[1:]] for row in rows[1:]]
    assert cells == report["matrix"]


def test_what_is_not_there_is_a_page_that_says_so(reader: Browser) -> None:
    for path in (
        "/ui/models/none",
        "/ui/models/long/versions/99",
        "/ui/updates/upd_none",
        "/ui/nothing",
        "/ui/models/long/x",
    ):
        answer = reader.get(path)
        assert answer.status_code == 404, path
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "<h1>Not Found</h1>" in answer.text


def test_every_page_asks_for_a_session(scene: World, reader: Browser) -> None:
    nobody = Browser(scene.client, signed_in=False)
    for path in paths(reader):
        answer = nobody.get(path)
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (303, "/ui/signin"), path


def test_pages_forbid_what_is_not_their_own_and_nothing_in_them_needs_it(reader: Browser) -> None:
    for path in [*paths(reader), "/ui/signin", "/ui/none", "/ui/static/live.js"]:
        answer = reader.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy, path
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=\"/ui/static/)|\sstyle=|\son\w+=|<style|javascript:|https?://(?!www\.w3\.org/2000/svg)",
                             answer.text.replace("http://testserver", "")) or path.endswith(".js"), path  # fmt: skip
        if "/static/" not in path:
            assert answer.headers["Cache-Control"] == "no-store", path


def test_pages_are_no_part_of_the_api_document(scene: World) -> None:
    assert not [
        path
        for path in scene.client.get("/openapi.json").json()["paths"]
        if path == "/" or path.startswith("/ui")
    ]


@pytest.mark.parametrize("name", ["lineage", "trade-offs"])
@pytest.mark.parametrize("version", [2, 999])
def test_a_picture_of_a_version_that_is_not_there_is_not_drawn(
    reader: Browser, name: str, version: int
) -> None:
    answer = reader.get(f"/ui/models/long/{name}.svg?version={version}")
    assert answer.status_code == (200 if version == 2 else 404)
