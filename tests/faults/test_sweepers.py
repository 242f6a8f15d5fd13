"""Several sweepers over the same expired leases: each expiry is counted once."""

from collections import Counter

import pytest

from tests.faults.rig import Part, Rig, until

pytestmark = pytest.mark.slow  # processes to start

MODELS = 12
LEASED_TO_THE_SAME_MOMENT = (
    "UPDATE updates SET lease_expires_at = now() + interval '1 second' WHERE state = 'training'"
)


def start_sweeper(rig: Rig) -> Part:
    """Starts a sweeper as operators do."""
    part = rig.start_sweeper(PALIMPSEST_SWEEP_SECONDS="0.05")
    until(lambda: "sweeper_started" in part.log, what="the sweeper")
    return part


def swept(rig: Rig) -> list[str]:
    """What the sweepers say that they took back."""
    return [line for part in rig.parts for line in part.log.splitlines() if '"lease_expired"' in line]


def test_two_and_then_four_sweepers_count_each_expired_lease_once(rig: Rig) -> None:
    rows = [{"text": split, "label": "a", "split": split} for split in ("train", "eval")]
    for number in range(MODELS):
        name = f"model-{number}"
        rig.world.model(name)
        rig.world.ok(rig.world.client.put(f"/v1/models/{name}/tasks/one"))
        rig.world.examples("one", rows, model=name)
        rig.world.request("one", model=name)
    for round_, sweepers in enumerate((2, 2), start=1):
        for _ in range(sweepers):
            start_sweeper(rig)
        claims = [rig.world.claim() for _ in range(MODELS)]
        assert {claim.attempt for claim in claims} == {round_}
        rig.sql(LEASED_TO_THE_SAME_MOMENT)
        until(
            lambda: not rig.sql("SELECT 1 FROM updates WHERE state = 'training'"), what="the leases' return"
        )
        assert rig.sql("SELECT DISTINCT state, attempts_used, fence FROM updates") == [
            ("queued", round_, round_)
        ]
        counted = rig.sql(
            "SELECT update_id, count(*) FROM update_events WHERE type = 'lease_expired' GROUP BY update_id"
        )
        assert [count for _, count in counted] == [round_] * MODELS
    until(lambda: len(swept(rig)) >= 2 * MODELS, what="the sweepers' logs")
    assert len(swept(rig)) == 2 * MODELS, "one sweeper took each back"

    # The last attempt: half of them are to be cancelled.
    claims = [rig.world.claim() for _ in range(MODELS)]
    for claim in claims[::2]:
        rig.world.ok(rig.world.client.post(f"/v1/updates/{claim.update_id}/cancel"))
    rig.sql(LEASED_TO_THE_SAME_MOMENT)
    ended = Counter(rig.ended(claim.update_id)["status"] for claim in claims)
    assert ended == {"cancelled": MODELS // 2, "failed": MODELS // 2}
    rig.check_ledger()
