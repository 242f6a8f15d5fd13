"""Learn a stream with one strategy through the real engine: version folder after version folder.

Training and evaluation are the worker's own functions, run in this process; the replay buffer is chosen by the
product's own rule (`service.replay.quotas`).
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.streams import Row, Stream, Task, label_order
from service.evaluations.metrics import Summary, summarise
from service.examples.content import causal_content, classification_content
from service.replay.quotas import Candidate, priority, select, stratum
from workers.evaluation.kept import forget
from workers.evaluation.runner import evaluate
from workers.strategies.catalogue import STRATEGIES
from workers.training.contract import EvaluateRequest, Outcomes, TrainRequest, TrainResult
from workers.training.loop import train

LONGEST_LABEL = 200

Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What came of a stream: `matrix[k][i]` is version k's score on task i (row 0 is the base), and the cost.

    Scores are accuracies, or a language model's mean log-likelihoods per token in nats. Then `perplexity` has its
    perplexities in the same shape, and general text, where the stream has any, is the last task. `learnt_at` is the
    version that first learnt a task: 0 for general text, which is the base's. `seconds` are those of the train phases,
    `peak_memory_bytes` the largest of any of them.
    """

    tasks: tuple[str, ...]
    matrix: list[Scores]
    learnt_at: tuple[int, ...]
    seconds: float
    peak_memory_bytes: int
    perplexity: list[Scores] | None = None

    @property
    def summary(self) -> Summary:
        """The metrics of the last version."""
        return summarise(self.matrix, self.learnt_at, logarithmic=self.perplexity is not None)

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
    answers, results = [learner.answers(0)], []
    for number in range(1, len(stream.tasks) + 1):
        results.append(learner.update(number))
        answers.append(learner.answers(number))
    return Lineage(
        tasks=tuple(task.name for task in learner.judged),
        matrix=each(answers, score),
        learnt_at=(*range(1, len(stream.tasks) + 1), *(0 for _ in learner.judged[len(stream.tasks) :])),
        seconds=sum(result.train_seconds for result in results),
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        perplexity=each(answers, perplexity) if learner.causal else None,
    )


class Learner:
    """A model in the making: its rows by task, its labels and its newest version."""

    def __init__(
        self, stream: Stream, strategy: str, parameters: Mapping[str, Any], seed: int, folder: Path
    ) -> None:
        self.stream, self.strategy, self.parameters = stream, strategy, parameters
        self.seed, self.folder = seed, folder
        self.causal = stream.task_type == "causal-lm"
        self.judged = [*stream.tasks, *([stream.general] if stream.general else [])]
        self.rows, self.eval = numbered(self.judged, "train"), numbered(self.judged, "eval")
        if stream.general:
            self.rows[0] += self.rows.pop()
        self.labels: tuple[str, ...] = ()

    def update(self, number: int) -> TrainResult:
        """Learn task `number` (from 1) from the version before it."""
        self.labels = label_order(self.rows[number - 1], self.labels)
        forget()  # the model that was scored last would count as this update's memory
        return train(self.request(number), on_progress=lambda _progress: None, should_stop=lambda: None)

    def request(self, number: int) -> TrainRequest:
        """What the training child gets to learn task `number` from the version before it."""
        method = STRATEGIES[self.strategy]
        before, new = joined(self.rows[: number - 1]), self.rows[number - 1]
        buffer = chosen(before, self.stream, seed=self.seed) if method.needs_replay else []
        return TrainRequest(
            task_type=self.stream.task_type,
            base=self.stream.base,
            strategy=self.strategy,
            parameters=self.parameters,
            labels=label_order(new, self.labels),
            fresh=self.write(f"fresh-{number}", before + new if "all_rows" in method.uses else new),
            replay=self.write(f"replay-{number}", buffer) if buffer else "",
            parent=self.version(number - 1) if number > 1 else None,
            output=self.version(number),
            checkpoints=str(self.folder / f"checkpoints-{number}"),
            adapter=self.stream.adapter,
            settings=replace(self.stream.settings, seed=self.seed),
        )

    def answers(self, number: int) -> list[Outcomes | None]:
        """Version `number`'s answers to each task: a language model's to all, a classifier's to those learnt so far."""
        scored = len(self.eval) if self.causal else number
        outcomes = [self.answer(number, task) for task in range(scored)]
        return outcomes + [None] * (len(self.eval) - scored)

    def answer(self, number: int, task: int) -> Outcomes:
        """Score version `number`, or the base as version 0, on one task's eval rows."""
        return self.answer_of(self.version(number) if number else None, task)

    def answer_of(self, version: str | None, task: int) -> Outcomes:
        """Score the version in a folder, or the base, on one task's eval rows."""
        return evaluate(
            EvaluateRequest(
                task_type=self.stream.task_type,
                base=self.stream.base,
                version=version,
                rows=self.write(f"eval-{task}", self.eval[task]),
                max_length=self.stream.settings.max_length,
                batch_size=self.stream.settings.evaluation_batch_size,
            ),
            on_progress=lambda _progress: None,
            should_stop=lambda: None,
        )

    def version(self, number: int) -> str:
        """The folder of version `number`."""
        return str(self.folder / f"v{number}")

    def write(self, name: str, rows: Sequence[Row]) -> str:
        """Write rows as NDJSON; returns the path."""
        path = self.folder / f"{name}.ndjson"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)


def numbered(tasks: Sequence[Task], split: str) -> list[list[Row]]:
    """The rows of each task with the ids and task names that the engine wants."""
    numbered, first = [], 0
    for task in tasks:
        rows = getattr(task, split)
        numbered.append([{**row, "id": first + index, "task": task.name} for index, row in enumerate(rows)])
        first += len(rows)
    return numbered


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


def joined(tasks: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of several tasks in one list."""
    return [row for task in tasks for row in task]


def each(answers: Sequence[Sequence[Outcomes | None]], value: Callable[[Outcomes], float]) -> list[Scores]:
    """A value of every version's answers to every task, None where there are none."""
    return [[None if outcomes is None else value(outcomes) for outcomes in row] for row in answers]


def score(outcomes: Outcomes) -> float:
    """The mean over rows of what the service scores them by: log-likelihood per token, or right and wrong."""
    return statistics.fmean(outcomes.graded or map(float, outcomes.correct))


def perplexity(outcomes: Outcomes) -> float:
    """The perplexity over all answer tokens."""
    return outcomes.measures["perplexity"]
