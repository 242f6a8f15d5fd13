"""What goes with an uploaded adapter: query parameters, since the body is the tar."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Json

from service.imports.checks import LONGEST, SHORTEST
from service.schemas import Metadata, Name

TAR = "application/x-tar"


class ImportQuery(BaseModel):
    """What the caller says of an adapter that was trained elsewhere."""

    tasks: list[Name] = Field(
        min_length=1, max_length=1000,
        description="Tasks of the model that the adapter has learnt: the version is scored on them, and they are old ones to "
        "its descendants",
    )  # fmt: skip
    rows: Literal["learnt", "fresh"] = Field(
        default="learnt",
        description="learnt: it was trained on the tasks' present train rows, so no later update takes them as new, updates "
        "rehearse them, and erasing one taints the version. fresh: it learnt the tasks from other data, and the next update "
        "takes all of these rows",
    )
    parent: Literal["champion"] | Annotated[int, Field(ge=0, le=2**31)] = Field(
        default=0,
        description="What it was trained on from: 0, the base; a version's number where it is that version trained further, so "
        "that what that one has learnt counts as learnt; 'champion' is looked up when a worker starts",
    )
    promotion: Literal["gate", "manual", "always"] = Field(
        default="gate",
        description="As of any update; `always` needs the scope `deploy`. Where the champion is not the parent, a person "
        "decides in any case",
    )
    max_length: int | None = Field(
        default=None, ge=SHORTEST, le=LONGEST,
        description="Tokens to which texts are cut, as in its training; default: what `version.json` says, else 128",
    )  # fmt: skip
    metadata: Json[Metadata] | None = Field(
        default=None, description="A JSON object; kept as it is with the update"
    )

    @property
    def kept_metadata(self) -> dict[str, Any]:
        """The metadata, empty where there is none."""
        return self.metadata or {}


IMPORT_BODY: dict[str, Any] = {
    "required": True,
    "description": "A tar of a PEFT adapter's files at its top: `adapter_config.json`, `adapter_model.safetensors`; for "
    "text-classification also `head.safetensors` (`weight` [labels, width], `bias` [labels]) and `labels.json`; if you like "
    "`version.json`. What GET …/versions/{version}/adapter sends is such a tar.",
    "content": {TAR: {"schema": {"type": "string", "format": "binary"}}},
}
