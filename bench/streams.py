"""What a bench learns: tasks in a row, and the base, budget and knobs they are learnt with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.training.contract import AdapterSettings, BaseFolder, TrainingSettings

CACHE = Path(__file__).parents[1] / ".cache"

Row = dict[str, Any]  # as the API takes it: text and label, or one of the causal-lm shapes


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a stream: rows to learn from and rows to be judged on."""

    name: str
    train: Sequence[Row]
    eval: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Stream:
    """Tasks to learn one after the other, under one budget for every strategy.

    `capacity` is the replay buffer's, in rows. `parameters` holds, by strategy, what this stream sets apart from
    the strategy's defaults. `general` is text of the kind that a language model's base has mastered: the first
    update learns its training rows beside its own task, so that they are in the buffer from then on, and its eval
    rows show what became of the base's ability.
    """

    name: str
    task_type: str
    base: BaseFolder
    tasks: Sequence[Task]
    capacity: int
    settings: TrainingSettings
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    general: Task | None = None


def label_order(rows: Sequence[Row], known: Sequence[str]) -> tuple[str, ...]:
    """The head's labels once `rows` are learnt: those `known`, in their order, then the new ones by name."""
    new = {row["label"] for row in rows if row.get("label") is not None} - set(known)
    return (*known, *sorted(new))
