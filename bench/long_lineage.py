"""A model with a long lineage, as hundreds of updates would have left it, written without training any of them.

Tasks and examples go in through the API, and the newest version's dial is asked for there. Versions, what each learnt and
rehearsed, eval sets, outcomes, the verdict, the dial's points and the champion's history are written through the product's own
tables and commands, in the packed form that workers store.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from bench.client import Client
from bench.written_dial import write_dial
from service.db import session_scope
from service.evaluations.commands import ensure_eval_set
from service.evaluations.gate import Comparison, GatePolicy, decide, to_json
from service.evaluations.outcomes import Flags, Ids, Outcomes, flips, mean_score, pack, pair
from service.evaluations.queries import load_outcomes
from service.examples.queries import fresh_rows
from service.models import Example, Model, Score, Task, Update, UpdateState, Version, VersionTask, new_id
from service.registry.commands import promote
from service.registry.queries import get_model
from service.replay.commands import admit_examples
from service.updates.schemas import ReplayRequest, TrainingRequest

LABELS = [f"label-{number}" for number in range(8)]
LEARNT, CHANGED = (
    0.92,
    0.03,
)  # shares of eval rows: right after learning a task, changing sides at any other update
FIRST_SHARE = 0.7  # of the eval rows that a growing task has in the first half of the lineage


@dataclass(frozen=True, slots=True)
class Size:
    """How much to write: two versions at least, for a dial lies between two.

    Of every `grows_every` tasks one gets more eval rows halfway, so that its eval set changes.
    """

    versions: int
    tasks: int
    eval_rows: int = 200
    train_rows: int = 16
    grows_every: int = 10


@dataclass(slots=True)
class Exam:
    """A task with its eval examples, and which of them the newest version answers rightly."""

    task: Task
    ids: Ids
    correct: Flags
    grows: bool

    def size_at(self, number: int, *, of: int) -> int:
        """How many of the examples were there when version `number` of `of` was scored."""
        return int(FIRST_SHARE * len(self.ids)) if self.grows and number <= of // 2 else len(self.ids)


def write_lineage(
    client: Client, *, database_url: str, tenant: str, model: str, size: Size, seed: int = 0
) -> None:
    """Write a model whose champion is version `size.versions`, the end of one line of promoted updates.

    Version k learns task (k − 1) mod `size.tasks`: every task in turn, then again, and rehearses its parent's buffer. Each
    version is scored on every task learnt by then, and its parent too on an eval set that is new to it. The newest has a dial.
    """
    fill(client, model=model, size=size)
    random = np.random.default_rng(seed)
    with session_scope(tenant=tenant, database_url=database_url) as session:
        row = get_model(session, model=model)
        exams = read_exams(session, model=row, size=size)
        updates = [
            add_update(
                session, model=row, taught=exams[(number - 1) % size.tasks].task, number=number, size=size
            )
            for number in range(1, size.versions + 1)
        ]
        session.flush()
    with session_scope(tenant=tenant, role="worker", database_url=database_url) as session:
        row = get_model(session, model=model, lock=True)
        for update in updates:
            write_version(session, model=row, exams=exams, update=update, size=size, random=random)
        judge(session, model=row, exams=exams, number=size.versions)
    write_dial(client, database_url=database_url, tenant=tenant, model=model, version=size.versions)


def fill(client: Client, *, model: str, size: Size) -> None:
    """Create the model, and its tasks with their rows."""
    client.post("/models", {"name": model, "base_model": "minilm-l6", "task_type": "text-classification"})
    for number in range(size.tasks):
        client.put(f"/models/{model}/tasks/task-{number}")
        rows = (
            {
                "text": f"{split} row {turn} of task {number}",
                "label": LABELS[turn % len(LABELS)],
                "split": split,
            }
            for split, count in (("train", size.train_rows), ("eval", size.eval_rows))
            for turn in range(count)
        )
        client.stream_examples(model, f"task-{number}", rows, on_error="abort")


def read_exams(session: Session, *, model: Model, size: Size) -> list[Exam]:
    """The model's tasks in the order they are learnt, with nothing answered yet."""
    tasks = session.scalars(select(Task).where(Task.model_id == model.id).order_by(Task.seq)).all()
    exams = []
    for position, task in enumerate(tasks):
        ids = session.scalars(
            select(Example.id).where(Example.task_id == task.id, Example.split == "eval").order_by(Example.id)
        ).all()
        grows = position % size.grows_every == size.grows_every - 1
        exams.append(Exam(task, np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.bool_), grows))
    return exams


def write_version(
    session: Session,
    *,
    model: Model,
    exams: Sequence[Exam],
    update: Update,
    size: Size,
    random: np.random.Generator,
) -> None:
    """Write the version that an update made, with its scores, and promote it."""
    number = update.version or 0
    taught = exams[(number - 1) % size.tasks]
    add_version(session, model=model, update=update, taught=taught, number=number, size=size)
    rows = []
    for exam in exams[: min(number, size.tasks)]:
        before = exam.correct
        exam.correct = answered(exam, taught=exam is taught, random=random)
        shown = exam.size_at(number, of=size.versions)
        rows.append(score_row(session, model=model, exam=exam, version=number, shown=shown, random=random))
        if number > 1 and (
            shown != exam.size_at(number - 1, of=size.versions) or number == exams.index(exam) + 1
        ):
            exam_before = Exam(exam.task, exam.ids, before, exam.grows)
            rows.append(
                score_row(
                    session, model=model, exam=exam_before, version=number - 1, shown=shown, random=random
                )
            )
    session.execute(insert(Score), rows)
    model.last_version = number
    promote(
        session, model=model, version=number, kind="promoted", actor="gate", reason=None, update_id=update.id
    )


def answered(exam: Exam, *, taught: bool, random: np.random.Generator) -> Flags:
    """Which examples the next version answers rightly: most of them once taught, else nearly the same as before."""
    draw = random.random(len(exam.ids))
    return draw < LEARNT if taught else exam.correct ^ (draw < CHANGED)


def score_row(
    session: Session, *, model: Model, exam: Exam, version: int, shown: int, random: np.random.Generator
) -> dict[str, object]:
    """The stored score of a version on the first `shown` examples of a task."""
    eval_set = ensure_eval_set(
        session, model=model, task_id=exam.task.id, example_ids=exam.ids[:shown].tolist()
    )
    correct = exam.correct[:shown]
    truth = np.arange(shown) % len(LABELS)
    outcomes = Outcomes(
        example_ids=exam.ids[:shown],
        correct=correct,
        predicted=np.where(correct, truth, (truth + 1) % len(LABELS)),
        confidence=random.uniform(0.3, 1.0, shown).astype(np.float32),
    )
    return {
        "tenant_id": model.tenant_id, "model_id": model.id, "version": version, "eval_set_id": eval_set.id,
        "task_id": exam.task.id, "score": mean_score(outcomes), "measures": {}, **asdict(pack(outcomes, exam.ids[:shown])),
    }  # fmt: skip


def add_update(session: Session, *, model: Model, taught: Task, number: int, size: Size) -> Update:
    """Add the finished update that made version `number`."""
    update = Update(
        tenant_id=model.tenant_id, id=new_id("upd"), model_id=model.id, task_ids=[taught.id], strategy="replay",
        parameters={}, training=TrainingRequest().model_dump(), replay=ReplayRequest().model_dump(),
        parent="champion", relearn=number > size.tasks, promotion="gate",
        user_metadata={}, cut=model.last_batch, warnings=[], requested_by="key:bench", state=UpdateState.PROMOTED,
        max_attempts=3, parent_version=number - 1, version=number, compared_with=number - 1, decided_by="gate",
    )  # fmt: skip
    session.add(update)
    return update


def add_version(
    session: Session, *, model: Model, update: Update, taught: Exam, number: int, size: Size
) -> None:
    """Add version `number`, the child of the one before it, what it learnt and rehearsed, and what it gives to rehearse."""
    capacity = int(model.replay["capacity"])
    rehearsed = min(capacity, size.train_rows * min(number - 1, size.tasks))
    session.add(
        Version(
            tenant_id=model.tenant_id, model_id=model.id, number=number, parent=number - 1,
            lineage=list(range(number + 1)), update_id=update.id, strategy=update.strategy, parameters={},
            training=update.training, cut=update.cut, labels=LABELS,
            statistics={
                "steps": size.train_rows, "train_seconds": 1.0, "fresh_rows": size.train_rows, "replay_rows": rehearsed,
            },
            provenance={
                "base_model": model.base_model, "replay": {**update.replay, "capacity": capacity, "rows": rehearsed},
            },
        )
    )  # fmt: skip
    session.flush()
    learnt = fresh_rows(session, task_id=taught.task.id, after_batch=0, up_to_batch=update.cut)
    rows = admit_examples(session, model=model, version=number, task=taught.task.name, examples=learnt)
    session.add(
        VersionTask(
            tenant_id=model.tenant_id, model_id=model.id, version=number, task_id=taught.task.id,
            after_batch=0, up_to_batch=update.cut, rows=rows,
        )
    )  # fmt: skip
    session.flush()


def judge(session: Session, *, model: Model, exams: Sequence[Exam], number: int) -> None:
    """Give version `number` the gate's verdict on its stored outcomes."""
    tasks = [exam.task for exam in exams]
    outcomes = load_outcomes(
        session, model=model, versions={number - 1, number}, task_ids=[task.id for task in tasks]
    )
    comparisons = [
        compare(task, before=outcomes[number - 1, task.id], after=outcomes[number, task.id])
        for task in tasks
        if (number - 1, task.id) in outcomes
    ]
    update = session.scalars(
        select(Update).where(Update.model_id == model.id, Update.version == number)
    ).one()
    update.verdict = dict(to_json(decide(GatePolicy(**model.gate), comparisons)))


def compare(task: Task, *, before: Outcomes, after: Outcomes) -> Comparison:
    """What the gate sees of one old task."""
    both = pair(before, after)
    negative, positive = flips(both)
    champion, candidate = both.scores()
    return Comparison(task.name, "old", len(both), candidate, champion, len(negative), len(positive))
