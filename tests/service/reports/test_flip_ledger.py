"""The flip ledger over HTTP: hand-worked answers of a lineage, filtered, sorted, paged, exported."""

import csv
import io
import itertools
import json
from typing import Any

import pytest
from sqlalchemy import event

from service.config import get_settings
from service.db import engine_for
from service.reports import flip_exports
from service.reports.flip_exports import MAX_EXPORTS, ExportResponse, csv_lines, inert
from tests.scenes import World
from tests.scored_lineage import add_version

FLIPS = "/models/triage/versions/3/flips"


@pytest.fixture
def lineage(world: World) -> World:
    """Three versions that answered two tasks; e-4 joined with the second, and never flipped."""
    world.model()
    expected = {"e-0": "a", "e-1": "a", "e-2": "b", "e-3": "b", "e-4": "a"}
    for task in ("one", "two"):
        world.ok(world.client.put(f"/v1/models/triage/tasks/{task}"))
        world.examples(
            task,
            [{"id": id_, "text": f"{task} {id_}", "label": label, "split": "eval"} for id_, label in expected.items()],
        )  # fmt: skip
    add_version(
        1, answers={"one": {"e-0": ("a", 0.9), "e-1": ("a", 0.8), "e-2": ("c", 0.7), "e-3": ("b", 0.6)}}
    )
    add_version(
        2,
        answers={
            "one": {
                "e-0": ("b", 0.5),
                "e-1": ("a", 0.8),
                "e-2": ("c", 0.7),
                "e-3": ("b", 0.6),
                "e-4": ("a", 0.9),
            },
            "two": {"e-0": ("a", 0.9), "e-1": ("b", 0.9)},
        },
    )
    add_version(
        3,
        answers={
            "one": {"e-0": ("a", 0.6), "e-1": ("b", 0.75), "e-2": ("b", 0.7), "e-3": ("c", 0.5), "e-4": ("a", 0.9)},
            "two": {"e-0": ("b", 0.75), "e-1": ("b", 0.9)},
        },
    )  # fmt: skip
    return world


def ids(world: World, query: str = "") -> list[str]:
    """Task and id of every flip that is listed, in order."""
    return [f"{flip['task']}/{flip['id']}" for flip in world.get(f"{FLIPS}?{query}")["data"]]


def test_every_flip_tells_how_often_and_where_the_example_has_flipped(lineage: World) -> None:
    page = lineage.get(FLIPS)
    assert (page["model"], page["before"], page["after"], page["has_more"]) == ("triage", 2, 3, False)
    flips = {f"{flip['task']}/{flip['id']}": flip for flip in page["data"]}
    assert list(flips) == ["one/e-0", "one/e-1", "one/e-2", "one/e-3", "two/e-0"]
    assert flips["one/e-0"]["lineage"] == {
        "negative": 1, "positive": 1, "negative_at": [2], "positive_at": [3],
    }  # fmt: skip
    assert flips["one/e-1"]["lineage"] == {
        "negative": 1, "positive": 0, "negative_at": [3], "positive_at": [],
    }  # fmt: skip
    first = flips["one/e-0"]
    assert (first["kind"], first["expected"], first["content"]) == ("positive", "a", {"text": "one e-0"})
    assert first["before"] == {"label": "b", "confidence": 0.5, "score": None}
    assert first["after"] == {"label": "a", "confidence": 0.6001, "score": None}  # 0.6 in half precision


def test_flips_against_another_version_are_its_own_and_the_lineage_stays(lineage: World) -> None:
    page = lineage.get(f"{FLIPS}?against=1")
    flips = {flip["id"]: flip["lineage"] for flip in page["data"]}
    assert list(flips) == ["e-1", "e-2", "e-3"]  # e-0 is as it was in version 1
    assert ids(lineage, "against=3") == []


def test_every_filter_narrows_the_list_and_they_combine(lineage: World) -> None:
    assert ids(lineage, "kind=negative") == ["one/e-1", "one/e-3", "two/e-0"]
    assert ids(lineage, "kind=positive") == ["one/e-0", "one/e-2"]
    assert ids(lineage, "task=two") == ["two/e-0"]
    assert ids(lineage, "label=b") == ["one/e-2", "one/e-3"]
    assert ids(lineage, "predicted=b") == ["one/e-1", "one/e-2", "two/e-0"]
    assert ids(lineage, "min_confidence=0.75") == ["one/e-1", "two/e-0"]
    assert ids(lineage, "min_flips=2") == ["one/e-0"]
    assert ids(lineage, "label=a&predicted=b&kind=negative&task=one") == ["one/e-1"]
    assert ids(lineage, "label=nobody") == ids(lineage, "predicted=nobody") == ids(lineage, "label=%00") == []


def test_the_most_confident_or_the_most_often_flipped_come_first_and_ties_by_arrival(lineage: World) -> None:
    assert ids(lineage, "sort=confidence") == ["one/e-1", "two/e-0", "one/e-2", "one/e-0", "one/e-3"]
    assert ids(lineage, "sort=flips") == ["one/e-0", "one/e-1", "one/e-2", "one/e-3", "two/e-0"]


@pytest.mark.parametrize("sort", ["id", "confidence", "flips"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_pages_make_up_the_whole_list_in_every_order(lineage: World, sort: str, limit: int) -> None:
    pages = list(paged(lineage, f"sort={sort}&limit={limit}"))
    assert list(itertools.chain(*pages)) == ids(lineage, f"sort={sort}")
    assert all(len(page) == limit for page in pages[:-1])


def paged(world: World, query: str) -> Any:
    cursor = ""
    while cursor is not None:
        page = world.get(f"{FLIPS}?{query}{cursor and f'&cursor={cursor}'}")
        assert page["has_more"] == (page["next_cursor"] is not None)
        yield [f"{flip['task']}/{flip['id']}" for flip in page["data"]]
        cursor = page["next_cursor"]


@pytest.mark.parametrize("sort", ["id", "confidence", "flips"])
def test_an_erased_example_vanishes_and_the_next_page_goes_on_where_the_last_ended(
    lineage: World, sort: str
) -> None:
    whole = ids(lineage, f"sort={sort}")
    first = lineage.get(f"{FLIPS}?sort={sort}&limit=2")
    task, example = whole[1].split("/")  # the very one that the cursor stands on
    assert lineage.client.delete(f"/v1/models/triage/tasks/{task}/examples/{example}").status_code == 204
    rest = lineage.get(f"{FLIPS}?sort={sort}&cursor={first['next_cursor']}")
    assert [f"{flip['task']}/{flip['id']}" for flip in rest["data"]] == whole[2:]
    assert ids(lineage, f"sort={sort}") == [name for name in whole if name != whole[1]]
    assert example not in {row["id"] for row in exported(lineage) if row["task"] == task}


def test_a_cursor_of_another_order_or_of_nobody_is_refused(lineage: World) -> None:
    cursor = lineage.get(f"{FLIPS}?sort=flips&limit=1")["next_cursor"]
    assert len(cursor) <= 64
    for query in (
        f"sort=id&cursor={cursor}",
        "cursor=MQ",
        "cursor=%C3%A9",
        "cursor=aWQ6eDp5",
    ):  # 1; é; id:x:y
        answer = lineage.client.get(f"/v1{FLIPS}?{query}")
        assert lineage.problem(answer) == (422, "invalid_cursor"), query


def exported(world: World, query: str = "") -> list[dict[str, str]]:
    answer = world.client.get(f"/v1{FLIPS}?format=csv&{query}")
    assert answer.is_success, answer.text
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_a_csv_holds_the_whole_list_as_it_is_filtered_and_sorted(lineage: World) -> None:
    rows = exported(lineage, "sort=flips&limit=1&kind=positive")
    assert [row["id"] for row in rows] == ["e-0", "e-2"]
    assert rows[0] == {
        "task": "one", "kind": "positive", "id": "e-0", "expected": "a",
        "before_label": "b", "before_confidence": "0.5", "before_score": "",
        "after_label": "a", "after_confidence": "0.6001", "after_score": "",
        "negative_flips": "1", "positive_flips": "1", "negative_at": "2", "positive_at": "3", "content": "one e-0",
    }  # fmt: skip


def test_an_ndjson_export_has_the_flips_of_the_pages_line_by_line(lineage: World) -> None:
    answer = lineage.client.get(f"/v1{FLIPS}?sort=confidence", headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == 'attachment; filename="triage-v2-v3-flips.ndjson"'
    assert [json.loads(line) for line in answer.text.splitlines()] == lineage.get(f"{FLIPS}?sort=confidence")[
        "data"
    ]


def test_the_format_goes_before_the_header(lineage: World) -> None:
    answer = lineage.client.get(f"/v1{FLIPS}", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="triage-v2-v3-flips.csv"'
    assert answer.headers["vary"] == "Accept"
    answer = lineage.client.get(f"/v1{FLIPS}?format=json", headers={"Accept": "text/csv"})
    assert answer.json() == lineage.get(FLIPS)
    assert lineage.problem(lineage.client.get(f"/v1{FLIPS}?format=xml"))[0] == 422


def test_an_export_reads_a_few_texts_at_a_time(lineage: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flip_exports, "FLIPS_PER_PIECE", 2)
    read: list[int] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "examples.content" in statement:
            read.append(cursor.rowcount)

    engine = engine_for(get_settings().database_url)
    event.listen(engine, "after_cursor_execute", note)
    try:
        rows = exported(lineage)
    finally:
        event.remove(engine, "after_cursor_execute", note)
    assert len(rows) == 5
    assert read == [2, 2, 1]


def test_a_spreadsheet_takes_no_text_of_an_export_for_a_formula(world: World) -> None:
    world.model()
    world.ok(world.client.put("/v1/models/triage/tasks/one"))
    text = '=HYPERLINK("http://evil.example","click")\n+1'
    world.examples("one", [{"id": "@SUM(1)", "text": text, "label": "a", "split": "eval"}])
    add_version(1, answers={"one": {"@SUM(1)": ("a", 0.5)}})
    add_version(2, answers={"one": {"@SUM(1)": ("b", 0.5)}})
    answer = world.client.get("/v1/models/triage/versions/2/flips?format=csv")
    (row,) = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert row["content"] == "'" + text
    assert row["id"] == "'@SUM(1)"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1", " =1", "\ufeff=1", "＝1"]
)
def test_what_looks_like_a_formula_is_made_inert(text: str) -> None:
    assert inert(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "plain", "a=b", "1-1", "'=1", "é"])
def test_what_does_not_look_like_one_stays_as_it_is(text: str) -> None:
    assert inert(text) == text


def test_numbers_below_nought_are_no_formulas() -> None:
    assert csv_lines([[-1.5, None, "-1.5"]]) == "-1.5,,'-1.5\r\n"


def test_another_tenant_gets_no_export(lineage: World, other_client: Any) -> None:
    for form in ("csv", "ndjson"):
        answer = other_client.get(f"/v1{FLIPS}?format={form}")
        assert lineage.problem(answer) == (404, "model_not_found")


def test_more_exports_at_once_than_memory_is_set_aside_for_are_refused(
    lineage: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExportResponse, "open_now", MAX_EXPORTS)
    answer = lineage.client.get(f"/v1{FLIPS}?format=csv")
    assert lineage.problem(answer) == (503, "too_many_exports")
    assert answer.headers["Retry-After"] == "10"
    monkeypatch.setattr(ExportResponse, "open_now", 0)
    assert lineage.client.get(f"/v1{FLIPS}?format=csv").status_code == 200
    assert ExportResponse.open_now == 0
