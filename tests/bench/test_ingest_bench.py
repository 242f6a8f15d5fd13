"""`bench.ingest` runs from end to end, and what it says about exactness holds however few the rows."""

import json
import sys
from pathlib import Path

import pytest

from bench import ingest, loads


@pytest.mark.slow  # it starts a stack of its own
@pytest.mark.timeout(900)
def test_the_bench_measures_everything_it_has_a_target_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL"):  # the bench's stack brings its own
        monkeypatch.delenv(name)
    written = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench.ingest", "--rows", "2000", "--json", str(written)])
    ingest.main()
    figures = json.loads(written.read_text())["figures"]
    assert ingest.TARGETS.keys() <= figures.keys()
    assert figures["rows"] == 2000
    for policy in ingest.POLICIES:
        for size in ("large", "small"):
            assert figures[f"{policy}.{size}_buffer"] == 20
            assert figures[f"{policy}.{size}_mismatches"] == 0
    assert figures["http_to_copy"] > 0
    assert figures["api_megabytes_at_most"] >= figures["api_megabytes_at_first"] > 0


def test_rows_reach_postgres_as_the_api_would_store_them() -> None:
    body = loads.make_body(first=7, rows=3)
    sent = [json.loads(line) for line in body.splitlines()]
    fields = [line.split("\t") for line in loads.prepare(body).decode().splitlines()]
    assert [row["id"] for row in sent] == [line[1] for line in fields] == ["row-7", "row-8", "row-9"]
    assert [row["text"] for row in sent] == [json.loads(line[3])["text"] for line in fields]
    assert all(line[5].startswith("\\\\x") and len(line[5]) == 3 + 64 for line in fields)
