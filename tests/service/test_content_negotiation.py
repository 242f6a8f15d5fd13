import pytest

from service.content_negotiation import preferred

OFFERS = ["application/json", "text/csv", "application/x-ndjson"]


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("Text/CSV; charset=utf-8", "text/csv"),
        ("text/*", "text/csv"),
        ("application/x-ndjson, */*;q=0.1", "application/x-ndjson"),
        ("application/json;q=0.5, text/csv;q=0.9", "text/csv"),
        ("text/csv;q=0, */*", "application/json"),
        ("application/json;q=0, */*;q=0.5", "text/csv"),
        ("text/html,application/xhtml+xml", "application/json"),
        ("text/csv;q=much", "application/json"),
    ],
)
def test_the_type_of_the_highest_quality_is_answered_and_json_where_none_is_named(
    accept: str | None, answered: str
) -> None:
    assert preferred(accept, OFFERS) == answered
