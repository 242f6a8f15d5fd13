"""The dial of one version: how it scores on the way from its parent, and whether it can be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.dials.queries import describe_dial, find_dial
from service.dials.schemas import DialPoint, DialRead, DialTask
from service.errors import Gone, Unprocessable
from service.models import DialState, Model, Version
from service.updates.blends import sides_of
from service.web.charts.dial import Course, Reading, dial_curves

POINTS = (
    "beta", "source", "average_accuracy", "stability", "worst_retention", "plasticity", "negative_flip_rate", "old_tasks",
)  # fmt: skip
SCORES = (
    "beta", "source", "task", "role", "eval_size", "score", "score_low", "score_high", "delta", "negative_flips",
    "positive_flips",
)  # fmt: skip
LEAST_POINTS = 2  # fewer make no course


@dataclass(frozen=True, slots=True)
class DialView:
    """What the report of a version shows of its dial."""

    dial: DialRead
    curves: str | None  # SVG, once two points are there

    @property
    def is_under_way(self) -> bool:
        """More points will come by themselves."""
        return self.dial.status in (DialState.QUEUED, DialState.SCORING)

    @property
    def can_be_asked_for(self) -> bool:
        """Asking would have it taken up again."""
        return self.dial.status == DialState.FAILED


def view_dial(session: Session, *, model: Model, version: Version) -> DialView | None:
    """Returns what the page shows; None where nobody has asked for the dial yet."""
    found = find_dial(session, model=model, version=version.number)
    if found is None:
        return None
    dial = describe_dial(session, model=model, version=version, dial=found)
    return DialView(dial, dial_chart(dial))


def refusal(session: Session, *, model: Model, version: Version) -> str | None:
    """Returns why the version's dial cannot be asked for; None where it can."""
    try:
        sides_of(session, model=model, version=version.number)
    except (Unprocessable, Gone) as error:
        return error.detail
    return None


def dial_chart(dial: DialRead) -> str | None:
    """Returns each task's scores over β as SVG, the gravest loss first; None while there is no course to draw."""
    if len(dial.points) < LEAST_POINTS:
        return None
    tasks = [task.task for task in dial.points[0].tasks]
    courses = [_course(dial.points, at) for at in range(len(tasks))]
    return dial_curves(
        sorted(courses, key=_gravity), recommended=dial.recommended_beta,
        label=f"Scores on {len(tasks)} tasks between version {dial.parent} and version {dial.version} of {dial.model}",
    )  # fmt: skip


def point_rows(dial: DialRead) -> list[Sequence[object]]:
    """Returns the measures of every point as a table."""
    return [POINTS, *(tuple(getattr(point, name) for name in POINTS) for point in dial.points)]


def score_rows(dial: DialRead) -> list[Sequence[object]]:
    """Returns what every point scored on every task as a table."""
    return [SCORES, *(_scores(point, task) for point in dial.points for task in point.tasks)]


def _course(points: Sequence[DialPoint], at: int) -> Course:
    """One task's scores; `at` is its place among the tasks of every point."""
    readings = [
        Reading(point.beta, task.score, (task.interval[0], task.interval[1]) if task.interval else None)
        for point in points
        if (task := point.tasks[at]).score is not None
    ]
    return Course(points[0].tasks[at].task, points[0].tasks[at].role, readings)


def _gravity(course: Course) -> tuple[bool, float]:
    readings = course.readings
    return course.part == "new", readings[-1].score - readings[0].score if readings else 0.0


def _scores(point: DialPoint, task: DialTask) -> tuple[object, ...]:
    low, high = task.interval or (None, None)
    flips = (task.flips.negative, task.flips.positive) if task.flips else (None, None)
    return (
        point.beta, point.source, task.task, task.role, task.eval_size, task.score, low, high, task.delta, *flips,
    )  # fmt: skip
