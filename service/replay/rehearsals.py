"""What the update that made a version had to rehearse: its parent's buffer, read again as it was."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.models import BLEND, Model, Version
from service.replay.queries import Buffer, read_buffer
from service.replay.quotas import PLAIN_WEIGHT


def rehearsed_buffer(session: Session, *, model: Model, version: Version) -> Buffer | None:
    """Returns the buffer as the version's update read it; None where it read none, as a blend or a start from the base.

    Parent, cut, capacity and boosted shares are those of the update. Rows removed since, by an erasure or by retention, are
    missing, and others of their stratum may have moved up into their places: `rows` of the record tells how many there were.
    """
    recorded = rehearsal_record(version)
    if recorded is None:
        return None
    return read_buffer(
        session, model=model, lineage=version.lineage[:-1], cut=version.cut, capacity=int(recorded["capacity"]),
        weights=boosted_weights(recorded),
    )  # fmt: skip


def rehearsal_record(version: Version) -> Mapping[str, Any] | None:
    """Returns what the version says of the buffer that its update read; None where it read none."""
    recorded: Mapping[str, Any] | None = version.provenance.get("replay")
    return None if version.strategy == BLEND or not recorded else recorded


def boosted_weights(recorded: Mapping[str, Any]) -> dict[str, int]:
    """Returns the weights of the strata that the version's record says were boosted, in thousandths (`quotas.water_fill`)."""
    boosted: Mapping[str, Mapping[str, float]] = recorded.get("boosted", {})
    return {stratum: round(PLAIN_WEIGHT * entry["weight"]) for stratum, entry in boosted.items()}
