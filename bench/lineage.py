"""Learn a stream with one strategy through the real engine: version folder after version folder.

Training and evaluation are the worker's own functions, run in this process; the replay buffer is chosen by the
product's own rule (`service.replay.quotas`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.streams import Row, Stream, label_order
from service.evaluations.metrics import Summary, summarise
from service.examples.content import causal_content, classification_content
from service.replay.quotas import Candidate, priority, select, stratum
from workers.evaluation.runner import evaluate
from workers.strategies.catalogue import STRATEGIES
from workers.training.contract import EvaluateRequest, Outcomes, TrainRequest, TrainResult
from workers.training.loop import train

LONGEST_LABEL = 200

Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What came of a stream: `matrix[k][i]` is version k's score on task i (row 0 is the base), and the cost.

    `seconds` are those of the train phases, `peak_memory_bytes` the largest of any of them.
    """

    matrix: list[Scores]
    seconds: float
    peak_memory_bytes: int

    @property
    def summary(self) -> Summary:
        """The metrics of the last version."""
        return summarise(self.matrix, range(1, len(self.matrix)))

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {**asdict(self), "summary": asdict(self.summary)}


def learn(
    stream: Stream, strategy: str, *, seed: int, folder: Path, parameters: Mapping[str, Any] | None = None
) -> Lineage:
    """Learn every task of the stream in turn and score each version on the tasks learnt so far.

    Args:
        stream: what to learn.
        strategy: the name of the strategy that every update trains with.
        seed: of training and of the replay buffer.
        folder: an empty folder for versions and row files.
        parameters: of the strategy; those of the stream unless given.

    Raises:
        TrainingFailed: whatever an update fails with.
    """
    given = stream.parameters.get(strategy, {}) if parameters is None else parameters
    learner = Learner(stream, strategy, dict(given), seed, folder)
    matrix: list[Scores] = [[None] * len(stream.tasks)]
    results = []
    for number in range(1, len(stream.tasks) + 1):
        results.append(learner.update(number))
        matrix.append(learner.scores(number))
    return Lineage(
        matrix,
        seconds=sum(result.train_seconds for result in results),
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
    )


class Learner:
    """A model in the making: its rows by task, its labels and its newest version."""

    def __init__(
        self, stream: Stream, strategy: str, parameters: Mapping[str, Any], seed: int, folder: Path
    ) -> None:
        self.stream, self.strategy, self.parameters = stream, strategy, parameters
        self.seed, self.folder = seed, folder
        self.rows = numbered(stream, "train")
        self.judged = numbered(stream, "eval")
        self.labels: tuple[str, ...] = ()

    def update(self, number: int) -> TrainResult:
        """Learn task `number` (from 1) from the version before it."""
        method = STRATEGIES[self.strategy]
        before, new = joined(self.rows[: number - 1]), self.rows[number - 1]
        self.labels = label_order(new, self.labels)
        buffer = chosen(before, self.stream, seed=self.seed) if method.needs_replay else []
        return train(
            TrainRequest(
                task_type=self.stream.task_type,
                base=self.stream.base,
                strategy=self.strategy,
                parameters=self.parameters,
                labels=self.labels,
                fresh=self.write(f"fresh-{number}", before + new if "all_rows" in method.uses else new),
                replay=self.write(f"replay-{number}", buffer) if buffer else "",
                parent=self.version(number - 1) if number > 1 else None,
                output=self.version(number),
                checkpoints=str(self.folder / f"checkpoints-{number}"),
                adapter=self.stream.adapter,
                settings=replace(self.stream.settings, seed=self.seed),
            ),
            on_progress=lambda _progress: None,
            should_stop=lambda: None,
        )

    def scores(self, number: int) -> Scores:
        """Score version `number` on the tasks it has learnt; the others have no score."""
        outcomes = evaluate(
            EvaluateRequest(
                task_type=self.stream.task_type,
                base=self.stream.base,
                version=self.version(number),
                rows=self.write(f"eval-{number}", joined(self.judged[:number])),
                batch_size=self.stream.settings.evaluation_batch_size,
            ),
            on_progress=lambda _progress: None,
            should_stop=lambda: None,
        )
        by_id = example_scores(outcomes)
        learnt: Scores = [mean([by_id[row["id"]] for row in task]) for task in self.judged[:number]]
        return learnt + [None] * (len(self.judged) - number)

    def version(self, number: int) -> str:
        """The folder of version `number`."""
        return str(self.folder / f"v{number}")

    def write(self, name: str, rows: Sequence[Row]) -> str:
        """Write rows as NDJSON; returns the path."""
        path = self.folder / f"{name}.ndjson"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)


def numbered(stream: Stream, split: str) -> list[list[Row]]:
    """The rows of each task with the ids and task names that the engine wants."""
    tasks, first = [], 0
    for task in stream.tasks:
        rows = getattr(task, split)
        tasks.append([{**row, "id": first + index, "task": task.name} for index, row in enumerate(rows)])
        first += len(rows)
    return tasks


def chosen(rows: Sequence[Row], stream: Stream, *, seed: int) -> list[Row]:
    """The replay buffer after learning `rows`: per task and label, those of lowest priority."""
    by_id = {row["id"]: row for row in rows}
    candidates = (
        Candidate(
            stratum("balanced", row["task"], row.get("label")),
            priority(seed, row["task"], content_hash(row, stream.task_type)),
            row["id"],
        )
        for row in rows
    )
    return [by_id[candidate.example_id] for candidate in select(candidates, stream.capacity)]


def content_hash(row: Row, task_type: str) -> bytes:
    """The hash that the service files this row under."""
    if task_type == "text-classification":
        return classification_content(row, max_label_length=LONGEST_LABEL).content_hash
    return causal_content(row).content_hash


def example_scores(outcomes: Outcomes) -> dict[int, float]:
    """One score per example id: right or wrong."""
    return dict(zip(outcomes.example_ids, map(float, outcomes.correct), strict=True))


def joined(tasks: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of several tasks in one list."""
    return [row for task in tasks for row in task]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
