"""What the calls on storage answer."""

from pydantic import BaseModel, Field


class Amounts(BaseModel):
    """How much is stored."""

    examples: int = Field(description="Rows, corrected ones included")
    example_bytes: int = Field(description="Contents and metadata as the database holds them")
    versions: int = Field(description="Trained versions, those without an adapter included")
    artifacts: int = Field(
        description="Stored adapters, strategy states, and uploads of imports that wait; the same content counts once"
    )
    artifact_bytes: int
    replay_entries: int = Field(description="What versions admitted to replay, over all of them")


class ModelStorage(Amounts):
    """How much one model stores."""

    model: str
    id: str
    archived: bool


class StorageRead(BaseModel):
    """How much the tenant stores, model by model; adapters that two models share count in both."""

    total: Amounts
    models: list[ModelStorage]


class PurgeRead(Amounts):
    """What a purge removed."""

    model: str
    id: str
