"""What the calls on tasks take and answer."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from service.schemas import NAME_PATTERN, Metadata

TaskPath = Annotated[
    str,
    Path(
        alias="task",
        min_length=1,
        max_length=128,
        pattern=NAME_PATTERN,
        description="Name of the task: letters, digits, '.', '_' and '-'",
    ),
]


class TaskPut(BaseModel):
    """What a task may carry besides its name. The body may be left out."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"metadata": {"team": "billing"}}]}
    )

    metadata: Metadata | None = Field(
        default=None, description="Yours; replaces what is stored. Left out, it stays as it is"
    )
    guarded: bool | None = Field(
        default=None,
        description="true: every update is evaluated on this task and must not lose on it, learnt or not; for what the "
        "base can do, such as general text. Needs the scope `admin`. Left out, it stays as it is",
    )


class SplitCounts(BaseModel):
    """A number of examples for each split."""

    train: int
    eval: int


class TaskRead(BaseModel):
    """A task and how many examples it holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "refunds",
                    "counts": {"train": 27, "eval": 3},
                    "labels": {"approve": {"train": 18, "eval": 2}, "refuse": {"train": 9, "eval": 1}},
                    "guarded": False,
                    "metadata": {},
                    "created_at": "2026-03-01T09:30:00Z",
                }
            ]
        }
    )

    name: str
    counts: SplitCounts = Field(
        description="Present examples per split; corrected and erased rows do not count"
    )
    labels: dict[str, SplitCounts] = Field(description="The same per label; empty for causal-lm")
    guarded: bool = Field(description="Evaluated at every update and held by the gate, learnt or not")
    metadata: dict[str, Any]
    created_at: datetime
