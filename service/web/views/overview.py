"""The list of models, as its page shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.models import Model, Update, UpdateState
from service.registry.queries import get_model
from service.reports.schemas import ForgettingReport
from service.web import queries
from service.web.charts.lines import sparkline
from service.web.queries import Taught

COLUMNS = (
    "model", "base_model", "champion", "average_accuracy", "worst_retention", "queued", "held", "last_update",
    "last_update_state", "last_update_at",
)  # fmt: skip
AVERAGES = ("version", "average_score")


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model in the list."""

    model: Model
    champion: int
    report: ForgettingReport
    spark: str  # SVG
    last_update: Update | None
    unfinished: Mapping[str, int]  # updates by state

    @property
    def queued(self) -> int:
        """Updates that wait for a worker."""
        return self.unfinished.get(UpdateState.QUEUED, 0)

    @property
    def held(self) -> int:
        """Candidates that wait for a person."""
        return self.unfinished.get(UpdateState.AWAITING_APPROVAL, 0)

    def cells(self) -> tuple[object, ...]:
        """The line in the order of `COLUMNS`."""
        last, found = self.last_update, self.report.summary
        return (
            self.model.name, self.model.base_model, self.champion, found.average_accuracy, found.worst_retention,
            self.queued, self.held, *((last.id, last.state, last.created_at.isoformat()) if last else (None, None, None)),
        )  # fmt: skip


def model_lines(
    session: Session, *, models: Sequence[Model], reports: Mapping[str, ForgettingReport]
) -> list[ModelLine]:
    """Returns the lines of the list; `reports` are those of the champions' lineages by the model's name."""
    champions = queries.champions(session, models=models)
    updates = queries.last_updates(session, models=models)
    counts = queries.unfinished_counts(session, models=models)
    taught = queries.taught_tasks(session, models=models)
    return [
        ModelLine(
            model, champions[model.id], reports[model.name], _spark(reports[model.name], taught[model.id]),
            updates.get(model.id), counts.get(model.id, {}),
        )
        for model in models
        if model.id in champions  # else purged a moment ago
    ]  # fmt: skip


def average_course(report: ForgettingReport, taught: Taught) -> dict[int, float]:
    """Returns, for each version of a lineage that knew a task, its mean score on those learnt by then."""
    course, known = dict[int, float](), set[str]()
    for version, cells in zip(report.versions, report.matrix, strict=True):
        known |= taught.get(version, frozenset())
        scored = [
            cell for task, cell in zip(report.tasks, cells, strict=True) if task in known and cell is not None
        ]
        if scored:
            course[version] = sum(scored) / len(scored)
    return course


def average_chart(session: Session, *, report: ForgettingReport) -> str:
    """Returns the course of a lineage's mean score as a sparkline."""
    return _spark(report, _taught(session, report))


def average_rows(session: Session, *, report: ForgettingReport) -> list[Sequence[object]]:
    """Returns the same as a table."""
    return [AVERAGES, *average_course(report, _taught(session, report)).items()]


def _taught(session: Session, report: ForgettingReport) -> Taught:
    model = get_model(session, model=report.model)
    return queries.taught_tasks(session, models=[model])[model.id]


def _spark(report: ForgettingReport, taught: Taught) -> str:
    course = list(average_course(report, taught).values())
    ends = f" from {course[0]:.2f} to {course[-1]:.2f}" if course else ""
    return sparkline(course, label=f"Mean score of {report.model} over {len(course)} versions{ends}")
