"""`bench.api` runs from end to end: at tiny size, its figures prove nothing but that it measures."""

import pytest

from bench import api
from bench.load import Seen
from bench.long_lineage import Size


def test_a_percentile_is_a_latency_that_occurred():
    latencies = [number / 100 for number in range(100, 0, -1)]
    seen = Seen(seconds=1, client_cpu_seconds=0, latencies=latencies, errors={}, answer_bytes=0)
    assert (seen.percentile(0.5), seen.percentile(0.99)) == (0.50, 0.99)


@pytest.mark.slow
def test_every_operation_is_measured_without_errors(monkeypatch, capsys):
    for given in ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL"):  # of the tests' own servers
        monkeypatch.delenv(given, raising=False)
    loads = api.measure(Size(versions=4, tasks=2, eval_rows=20, grows_every=2), clients=3, seconds=0.5)
    names = ["get_update", "get_report", "matrix", "post_update"]
    assert set(loads) == {*names, *(f"{name}.alone" for name in names), "matrix_first_read.alone"}
    for name, load in loads.items():
        assert (load["errors"], load["first_errors"]) == (0, []), name
        assert 0 < load["p50_ms"] <= load["p99_ms"], name
        assert min(load["api_cpu_ms"], load["client_cpu_ms"], load["answer_bytes"]) > 0, name
    api.show(loads, clients=3)
    assert "post_update.alone" in capsys.readouterr().out
