"""`bench.pages` runs from end to end: at tiny size, its figures prove nothing but that it measures."""

import pytest

from bench import pages
from bench.long_lineage import Size


@pytest.mark.slow
def test_every_page_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL"):  # of the tests' own servers
        monkeypatch.delenv(given, raising=False)
    found = pages.measure(Size(versions=4, tasks=2, eval_rows=20, grows_every=2), repeats=2)
    assert set(found) == {
        "model",
        "models",
        "version",
        "rollback",
        "update",
        "matrix_svg",
        "changes_svg",
        "matrix_csv",
        "dial_svg",
        "rehearsed_csv",
    }
    for name, page in found.items():
        assert 0 < page["p50_ms"] <= page["p99_ms"], name
        assert page["answer_bytes"] > 0, name
    pages.show(found)
    assert "The model's page took" in capsys.readouterr().out


def test_a_page_without_dial_and_rehearsal_is_not_taken_for_the_whole_page() -> None:
    bare = '<section aria-labelledby="dial"><p>Nobody has asked for it yet.</p></section>'
    with pytest.raises(RuntimeError, match=r"lacks .*curves.*points.*tasks rehearsed"):
        pages.require_drawn(bare, size=Size(versions=4, tasks=2))
