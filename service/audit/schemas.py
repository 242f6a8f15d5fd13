"""What the audit's calls answer."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class AuditEntryRead(BaseModel):
    """One audited act."""

    id: int
    at: datetime
    actor: str = Field(description="Who acted: `key:<name>`, `gate`, or `command line`")
    key_id: str | None = Field(description="The very key; null where no request acted")
    action: str = Field(examples=["key.created"])
    target: str = Field(description="Id of what was acted on")
    data: dict[str, Any] = Field(description="What else is worth knowing of this act")
