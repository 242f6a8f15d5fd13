"""Reads behind the reports: the scores of a lineage, never a model run again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db import among
from service.dependencies import PageRequest, encode_cursor
from service.errors import NotFound
from service.evaluations.gate import Role, Verdict, from_json
from service.evaluations.metrics import LearntAt, Matrix, best_earlier_score, summarise
from service.evaluations.outcomes import Outcomes, Paired, flips, graded_interval, mean_score, pair
from service.evaluations.queries import Pair, load_outcomes, score_matrix, stored_scores
from service.evaluations.repeats import load_repeats
from service.examples.queries import public_id
from service.models import Example, Model, Task, Update, Version, VersionTask
from service.registry.queries import get_champion, get_model, get_version
from service.reports.answers import Answers, named_tasks
from service.reports.forgetting import PairedOutcome, TaskEvidence, forgetting_report, update_report
from service.reports.noise import TaskAnswers, UpdateNoise, update_noise
from service.reports.schemas import ForgettingReport, Outcome, UpdateReport


@dataclass(frozen=True, slots=True)
class Lineage:
    """A lineage's tasks in the order they were learnt, its scores, and the row each task was learnt at."""

    versions: Sequence[int]
    tasks: Sequence[Task]
    scores: Matrix  # as each version scored
    matrix: Matrix  # carried to the last version's examples: to be subtracted in
    learnt_at: LearntAt
    measures: Mapping[str, Matrix]  # further aggregates by name, in the matrix's shape


def read_lineage(session: Session, *, model: Model, version: Version) -> Lineage:
    """Returns the tasks and the score matrix of a version's lineage; erased tasks are left out."""
    first_learnt = _first_learnt(session, model=model, lineage=version.lineage)
    scored = {score.task_id for score in stored_scores(
        session, model=model, versions=[version.number], task_ids=_task_ids(session, model=model))}  # fmt: skip
    tasks = session.scalars(
        select(Task).where(Task.id.in_({*first_learnt, *scored}), Task.deleted_at.is_(None))
    ).all()
    rows = {number: row for row, number in enumerate(version.lineage)}
    ordered = sorted(tasks, key=lambda task: (first_learnt.get(task.id, version.number + 1), task.seq))
    ids = [task.id for task in ordered]
    scores = score_matrix(session, model=model, versions=version.lineage, task_ids=ids)
    learnt_at = [
        rows[first_learnt[task.id]] if task.id in first_learnt else _guarded_from(task, column, scores.own)
        for column, task in enumerate(ordered)
    ]
    return Lineage(
        versions=version.lineage, tasks=ordered, scores=scores.own, matrix=scores.carried, learnt_at=learnt_at,
        measures=scores.measures,
    )  # fmt: skip


def _guarded_from(task: Task, column: int, scores: Matrix) -> int | None:
    """The first row that was scored on a guarded task which nobody learnt; None for any other."""
    return next((row for row, cells in enumerate(scores) if task.guarded and cells[column] is not None), None)


def _first_learnt(session: Session, *, model: Model, lineage: Sequence[int]) -> dict[str, int]:
    rows = session.execute(
        select(VersionTask.task_id, func.min(VersionTask.version))
        .where(VersionTask.model_id == model.id, among(VersionTask.version, lineage))
        .group_by(VersionTask.task_id)
    )
    return {task_id: version for task_id, version in rows}  # noqa: C416


def _task_ids(session: Session, *, model: Model) -> list[str]:
    return list(session.scalars(select(Task.id).where(Task.model_id == model.id)))


def forgetting(session: Session, *, model: str, version: int | None) -> ForgettingReport:
    """Returns the accuracy matrix of the champion's lineage, or of the lineage of `version`."""
    row = get_model(session, model=model)
    number = get_champion(session, model=row).version if version is None else version
    lineage = read_lineage(session, model=row, version=get_version(session, model=row, version=number))
    document = forgetting_report(
        model=row.name, version=number, tasks=[task.name for task in lineage.tasks], versions=lineage.versions,
        matrix=lineage.matrix, learnt_at=lineage.learnt_at, measures=lineage.measures,
        logarithmic=row.is_graded,
    )  # fmt: skip
    document["matrix"] = [list(row) for row in lineage.scores]
    return ForgettingReport.model_validate(document)


def version_report(session: Session, *, model: str, version: int) -> UpdateReport:
    """Returns the report of the update that made a version. Raises `NotFound` for the base, which none made."""
    row = get_model(session, model=model)
    found = get_version(session, model=row, version=version)
    if found.parent is None or found.strategy is None:
        raise NotFound(
            "Version 0 is the untouched base; no update made it.", code="no_report", param="version"
        )
    lineage = read_lineage(session, model=row, version=found)
    update = session.scalar(select(Update).where(Update.id == found.update_id))
    outcomes = load_outcomes(
        session, model=row, versions={version, found.parent}, task_ids=[task.id for task in lineage.tasks]
    )
    evidence = _evidence(session, model=row, version=found, lineage=lineage, outcomes=outcomes)
    document = update_report(
        model=row.name, version=version, parent=found.parent, strategy=found.strategy, tasks=evidence,
        lineage=summarise(lineage.matrix, lineage.learnt_at, logarithmic=row.is_graded), verdict=_verdict(update),
        confidence=float(row.gate["confidence"]),
    )  # fmt: skip
    noise = _noise(session, model=row, version=found, lineage=lineage, evidence=evidence, outcomes=outcomes)
    return UpdateReport.model_validate(
        {
            **document,
            **(noise.added_to(document["tasks"]) if noise else {}),
            "compared_with": update.compared_with if update else None,
            "trained": found.statistics,
            "created_at": found.created_at,
        }
    )


def _verdict(update: Update | None) -> Verdict | None:
    if update is None or update.verdict is None:
        return None
    return from_json(update.verdict)  # type: ignore[arg-type]  # to_json wrote it


def _noise(
    session: Session, *, model: Model, version: Version, lineage: Lineage, evidence: Sequence[TaskEvidence],
    outcomes: Mapping[Pair, Outcomes],
) -> UpdateNoise | None:  # fmt: skip
    """What other seeds of the update gave; None where there were to be none."""
    if version.training.get("repeats", 1) == 1:
        return None
    seeds = load_repeats(session, update_id=version.update_id)
    answers = [
        TaskAnswers(
            own=outcomes.get((version.number, task.id)),
            parent=outcomes.get((version.parent or 0, task.id)),
            seeds={seed: tasks[task.id] for seed, tasks in seeds.items() if task.id in tasks},
        )
        for task in lineage.tasks
    ]
    return update_noise(
        seed=version.training["seed"], evidence=evidence, answers=answers, matrix=lineage.matrix,
        learnt_at=lineage.learnt_at, confidence=float(model.gate["confidence"]), logarithmic=model.is_graded,
        told=version.statistics.get("repeats") or {},
    )  # fmt: skip


def _evidence(
    session: Session, *, model: Model, version: Version, lineage: Lineage, outcomes: Mapping[Pair, Outcomes]
) -> list[TaskEvidence]:
    parent = version.parent or 0
    taught = taught_by(session, model=model, version=version)
    evidence = []
    for column, task in enumerate(lineage.tasks):
        ours, theirs = outcomes.get((version.number, task.id)), outcomes.get((parent, task.id))
        learnt_at = lineage.learnt_at[column]
        both = None if ours is None or theirs is None else _nonempty(pair(theirs, ours))
        evidence.append(
            TaskEvidence(
                task=task.name,
                role=role_at(learnt_at, last_row=len(lineage.versions) - 1, taught=task.id in taught),
                eval_size=_size(both, ours),
                score=_score(ours) if both is None else both.scores()[1],
                parent_score=_score(theirs) if both is None else both.scores()[0],
                learned_score=lineage.matrix[learnt_at][column] if learnt_at is not None else None,
                best_score=best_earlier_score(lineage.matrix, column),
                paired=_paired(both),
                graded_interval=graded_interval(both, confidence=float(model.gate["confidence"])),
                lineage_score=lineage.matrix[-1][column],
                measures=_cell(lineage, row=len(lineage.versions) - 1, column=column),
                parent_measures=_cell(lineage, row=len(lineage.versions) - 2, column=column),
            )
        )
    return evidence


def taught_by(session: Session, *, model: Model, version: Version) -> set[str]:
    """Returns the ids of the tasks that a version learnt."""
    return set(
        session.scalars(
            select(VersionTask.task_id).where(
                VersionTask.model_id == model.id, VersionTask.version == version.number
            )
        )
    )


def role_at(learnt_at: int | None, *, last_row: int, taught: bool) -> Role:
    """Returns a task's part in the update that made the last row, which `taught` it or did not."""
    if learnt_at == last_row:
        return "new"
    return "relearnt" if taught else "old"


def _cell(lineage: Lineage, *, row: int, column: int) -> dict[str, float]:
    """The further aggregates of one version on one task."""
    cells = {name: matrix[row][column] for name, matrix in lineage.measures.items()}
    return {name: value for name, value in cells.items() if value is not None}


def _nonempty(both: Paired) -> Paired | None:
    return both if len(both.example_ids) else None


def _score(outcomes: Outcomes | None) -> float | None:
    return None if outcomes is None else mean_score(outcomes)


def _size(both: Paired | None, ours: Outcomes | None) -> int:
    if both is not None:
        return len(both.example_ids)
    return 0 if ours is None else len(ours)


def _paired(both: Paired | None) -> PairedOutcome | None:
    if both is None:
        return None
    negative, positive = flips(both)
    return PairedOutcome(
        size=len(both.example_ids), negative_flips=len(negative), positive_flips=len(positive)
    )


def list_outcomes(
    session: Session, *, model: str, version: int, task: str | None, page: PageRequest
) -> tuple[list[Outcome], str | None]:
    """Returns what a version answered on its eval examples, by example; and the cursor of the next page."""
    row = get_model(session, model=model)
    found = get_version(session, model=row, version=version)
    names = named_tasks(session, model=row, task=task)
    outcomes = load_outcomes(session, model=row, versions=[found.number], task_ids=list(names))
    scored = sorted(int(example) for answers in outcomes.values() for example in answers.example_ids)
    examples = _page_of(session, ids=scored, page=page)
    answers = Answers(outcomes)
    data = [
        _outcome(example, answers=answers, version=found, names=names) for example in examples[: page.limit]
    ]
    return data, encode_cursor(examples[page.limit - 1].id) if len(examples) > page.limit else None


def _outcome(example: Example, *, answers: Answers, version: Version, names: Mapping[str, str]) -> Outcome:
    answer = answers.answer(version, example)
    return Outcome(
        task=names[example.task_id], id=public_id(example), content=example.content, expected=example.label,
        predicted=answer.label, confidence=answer.confidence, score=answer.score,
        correct=answers.correct(version, example),
    )  # fmt: skip


def _page_of(session: Session, *, ids: Iterable[int], page: PageRequest) -> Sequence[Example]:
    """The stored examples among `ids` from the page's start on; one more than its limit where there are more."""
    wanted = [example for example in ids if page.after is None or example > page.after]
    return session.scalars(
        select(Example).where(among(Example.id, wanted)).order_by(Example.id).limit(page.limit + 1)
    ).all()
