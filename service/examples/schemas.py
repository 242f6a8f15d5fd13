"""What the calls on examples take and answer."""

from datetime import datetime
from typing import Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from service.examples.rows import MAX_ID_LENGTH, MAX_SUBJECT_LENGTH
from service.tasks.schemas import TaskRead

Split = Literal["train", "eval"]
NO_NUL = r"^[^\x00]*$"
SubjectQuery = Query(
    min_length=1,
    max_length=MAX_SUBJECT_LENGTH,
    pattern=NO_NUL,
    description="Whose data it is, as sent with the rows",
)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(min_length=1)


class ExampleCreate(BaseModel):
    """One row. `text` and `label` for text-classification; `prompt` and `completion`, `messages`, or `text` for causal-lm."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, min_length=1, description="The text")
    label: str | None = Field(
        default=None, min_length=1, description="text-classification only: the right answer for `text`"
    )
    prompt: str | None = Field(default=None, min_length=1, description="causal-lm: what the model is given")
    completion: str | None = Field(default=None, min_length=1, description="causal-lm: what it shall answer")
    messages: list[Message] | None = Field(
        default=None, description="causal-lm: a conversation with at least one assistant message"
    )
    id: str | int | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID_LENGTH,
        description="Your id of the row, unique in the task. Sent again with other content, it replaces the row. "
        "Ids that start with `ex_` are the service's own",
    )
    split: Split | None = Field(
        default=None,
        description="Where the row goes. Left out, one text in ten goes to eval, by a hash of the normalised text",
    )
    subject: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SUBJECT_LENGTH,
        description="Whose data this is, so that all of it can be erased in one call. Left out of a correction, it stays; "
        "of a duplicate, a stored row without one takes it",
    )
    weight: float | None = Field(
        default=None, gt=0, description="How much the row counts in a `weighted` replay buffer; 1 by default"
    )
    metadata: dict[str, Any] | None = Field(default=None, description="Yours; kept as it is")


class ExamplesCreate(BaseModel):
    """A small body of examples."""

    model_config = ConfigDict(extra="forbid")

    examples: list[ExampleCreate] = Field(min_length=1)


class RowProblemRead(BaseModel):
    """Why one row was not stored."""

    line: int = Field(description="Line of the body, counted from 1; for JSON, the row's position from 1")
    code: str = Field(description="Stable machine-readable code", examples=["missing_label"])
    detail: str


class IngestRead(BaseModel):
    """What became of the rows of one body."""

    accepted: int = Field(description="Rows stored, replacements included")
    duplicates: int = Field(
        description="Rows whose content the task or the body held already; not stored again"
    )
    replaced: int = Field(description="Stored rows that gave way to a row of this body with the same `id`")
    rejected: int = Field(description="Rows with an error; above zero only with `on_error=skip`")
    errors: list[RowProblemRead] = Field(description="The first 100 errors, by line")
    batch: int | None = Field(description="Number of the ingest batch; null when nothing was stored")
    task: TaskRead


class ExampleRead(BaseModel):
    """A stored example. Of `text`, `prompt`, `completion` and `messages` it shows those it was sent with."""

    id: str = Field(description="Your id, or `ex_…`", examples=["ticket-8841", "ex_1042"])
    split: Split
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[Message] | None = None
    label: str | None
    subject: str | None
    weight: float
    metadata: dict[str, Any] | None
    batch: int = Field(description="The ingest batch that brought the row")
    created_at: datetime
