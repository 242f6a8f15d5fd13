"""A bucket that goes away while an update trains costs attempts, and nothing else."""

from collections.abc import Iterator

import pytest

from tests.buckets import Bucket, bucket
from tests.faults.rig import QUICK, SHORT, Rig, until
from tests.faults.test_artifact_faults import failed_attempts

pytestmark = pytest.mark.slow


@pytest.fixture
def s3() -> Iterator[Bucket]:
    """A bucket for the processes of a rig."""
    with bucket() as made:
        yield made


def test_updates_are_learnt_into_a_bucket_and_outlive_its_absence(rig: Rig, s3: Bucket) -> None:
    rig.environment |= {**s3.environment, "ARTIFACT_URL": s3.url, "PALIMPSEST_RETRY_SECONDS": "3"}
    rig.start_api()
    rig.start_worker()
    rig.learnable("one", "two")
    until(lambda: rig.world.client.get("/readyz").json()["checks"]["artifacts"] == "ok", what="the store")
    assert rig.ended(rig.world.request("one", training=QUICK)["id"])["version"] == 1

    update = rig.world.request("two", training=SHORT)["id"]
    rig.at(update)
    s3.stop()
    assert rig.world.client.get("/readyz").status_code == 503
    absent = rig.world.client.get("/v1/models/triage/versions/1/adapter")
    assert (absent.status_code, absent.json()["code"]) == (503, "artifact_store_unavailable")
    until(lambda: failed_attempts(rig, update), what="an attempt that could not store its version")
    s3.start()
    end = rig.ended(update)
    assert (end["status"], end["version"]) == ("promoted", 2)
    assert end["attempt"] > 1
    assert set(failed_attempts(rig, update)) == {"artifact_store_unavailable"}
    assert len(s3.keys()) == 2
    assert rig.world.client.get("/v1/models/triage/versions/1/adapter").is_success
    rig.check_ledger()
