"""What erasures take and answer."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from service.registry.schemas import Body
from service.schemas import Metadata
from service.updates.schemas import StrategyRequest, TrainingRequest


class RebuildPlan(BaseModel):
    """What a rebuild would do now: learn the remaining rows of `tasks` on top of `parent`."""

    parent: int = Field(description="The champion's last ancestor that learnt nothing from the subject")
    tasks: list[str] = Field(description="Tasks whose remaining rows the champion learnt since")


class ErasureRead(BaseModel):
    """What the erasure of a data subject removed, and which versions still carry what they learnt from it."""

    id: str
    deleted: int = Field(description="Rows deleted, corrected ones included")
    versions: list[int] = Field(description="Versions that were trained on the subject's examples")
    inherited_by: list[int] = Field(
        description="Further versions built on those, which carry the learning on and may have rehearsed the examples"
    )
    rebuild: RebuildPlan | None = Field(
        description="Null where the champion carries nothing of the subject, or nothing is left to learn"
    )
    rebuild_update: str | None = Field(description="The update that was requested to rebuild the model")
    retired_at: datetime | None = Field(description="When the adapters of all those versions were removed")
    by: str
    created_at: datetime


class RebuildCreate(Body):
    """How to learn anew what is left. Left out, as any update does."""

    strategy: StrategyRequest = Field(default_factory=lambda: StrategyRequest(name="replay"))
    training: TrainingRequest = Field(default_factory=TrainingRequest)
    promotion: Literal["gate", "manual", "always"] = Field(
        default="gate",
        description="Its parent is no longer champion, so that with 'gate' a passing rebuild waits for a person; "
        "always: promote whatever the verdict (needs the scope `deploy`)",
    )
    metadata: Metadata = Field(default_factory=dict)


class TaintedVersion(BaseModel):
    """A version that learnt from the subject, or was built on one that did."""

    version: int
    trained_on: bool = Field(description="False where it was built on one that was")
    aliases: list[str]
    adapter_sha256: str | None = Field(description="Null once the adapter is removed")
    adapter_removed_at: datetime | None


class RebuildRead(BaseModel):
    """The update that learnt anew."""

    update: str
    status: str
    version: int | None
    parent: int | None


class Receipt(BaseModel):
    """What was erased, what had learnt from it, and where the model stands now."""

    erasure: str
    model: str
    model_id: str
    subject_digest: str = Field(
        description="HMAC-SHA256 of tenant, model id and subject under the service's pepper; holds nothing of the subject"
    )
    rows_deleted: int = Field(
        description="By this erasure; rows that had been deleted otherwise are not known any more"
    )
    erased_at: datetime
    erased_by: str
    tainted_versions: list[TaintedVersion] = Field(
        description="Of the rows that were stored at the moment of this erasure, or of an earlier one of this subject"
    )
    strategy_states_left: int = Field(description="Of those versions; an erasure drops them, so 0")
    rebuild: RebuildRead | None
    champion: int
    champion_is_clean: bool
    complete: bool = Field(
        description="No alias leads to a tainted version, and none of them has an adapter left"
    )
    issued_at: datetime


class Signature(BaseModel):
    """An Ed25519 signature (RFC 8032) over the receipt as JSON: sorted keys, no spaces, UTF-8."""

    algorithm: Literal["Ed25519"] = "Ed25519"
    key_id: str
    value: str = Field(description="base64url, without padding")


class SignedReceipt(BaseModel):
    """A receipt and the service's signature over it."""

    receipt: Receipt
    signature: Signature


class SigningKey(BaseModel):
    """The public key that receipts are verified with, as a JSON Web Key (RFC 8037)."""

    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    kid: str
    x: str = Field(description="The public key, base64url without padding")
