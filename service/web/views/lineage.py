"""One model: its matrix, its versions and updates, who moved its aliases."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.models import AliasMove, Model, Task, Update
from service.registry.queries import get_champion, previous_champion
from service.registry.schemas import AdapterSpec
from service.reports.schemas import ForgettingReport
from service.response_headers import PAGES_PREFIX
from service.tasks.queries import live_tasks
from service.updates.catalogue import strategies
from service.updates.schemas import StrategyInfo
from service.web import queries
from service.web.charts.heatmap import MatrixPicture, heatmap
from service.web.queries import Taught, VersionLine
from service.web.views.tree import Aliases, aliases_by_version, draw_tree

NEWEST_UPDATES, NEWEST_MOVES = 12, 20
UPDATES = ("id", "state", "strategy", "requested_by", "created_at", "parent_version", "version")
HISTORY = ("alias", "kind", "from_version", "to_version", "by", "reason", "update", "at")


@dataclass(frozen=True, slots=True)
class ModelView:
    """What the page of a model shows."""

    model: Model
    champion: int
    previous: int | None
    report: ForgettingReport
    picture: str  # the matrix, as SVG
    tree: str  # all versions, as SVG
    versions: Sequence[VersionLine]
    taught: Taught
    aliases: Aliases
    updates: Sequence[Update]
    moves: Sequence[AliasMove]
    tasks: Sequence[Task]
    strategies: Sequence[StrategyInfo]


def view_model(session: Session, *, model: Model, report: ForgettingReport) -> ModelView:
    """Returns what the page shows; `report` is that of the lineage to show."""
    champion = get_champion(session, model=model)
    previous = previous_champion(session, champion=champion)
    taught = queries.taught_tasks(session, models=[model])[model.id]
    aliases = aliases_by_version(session, model=model)
    versions = queries.version_lines(session, model=model)
    return ModelView(
        model=model, champion=champion.version, previous=previous.to_version if previous else None, report=report,
        picture=heatmap(matrix_picture(report, taught=taught, champion=champion.version)),
        tree=draw_tree(model, versions=versions, taught=taught, aliases=aliases, end=report.version),
        versions=versions, taught=taught, aliases=aliases,
        updates=queries.newest_updates(session, model=model, limit=NEWEST_UPDATES),
        moves=queries.alias_moves(session, model=model, limit=NEWEST_MOVES),
        tasks=session.scalars(live_tasks(model=model).order_by(Task.seq)).all(),
        strategies=fitting_strategies(model),
    )  # fmt: skip


def update_rows(session: Session, *, model: Model) -> list[Sequence[object]]:
    """Returns all of the model's updates as a table, the newest first."""
    return [
        UPDATES,
        *(
            (u.id, u.state, u.strategy, u.requested_by, u.created_at.isoformat(), u.parent_version, u.version)
            for u in queries.newest_updates(session, model=model)
        ),
    ]


def matrix_picture(report: ForgettingReport, *, taught: Taught, champion: int) -> MatrixPicture:
    """Returns what the heatmap of a lineage shows."""
    return MatrixPicture(
        model=report.model, tasks=report.tasks, versions=report.versions, matrix=report.matrix, learnt=taught,
        marks={champion: "★"}, address=f"{PAGES_PREFIX}/models/{report.model}/versions/{{}}",
    )  # fmt: skip


def matrix_rows(report: ForgettingReport) -> list[list[object]]:
    """Returns the matrix as a table, oldest version first."""
    rows: list[list[object]] = [["version", *report.tasks]]
    for version, cells in zip(report.versions, report.matrix, strict=True):
        rows.append([version, *cells])
    return rows


def history_rows(moves: Sequence[AliasMove]) -> list[Sequence[object]]:
    """Returns alias moves as a table."""
    return [
        HISTORY,
        *(
            (m.alias, m.kind, m.from_version, m.to_version, m.actor, m.reason, m.update_id, m.at.isoformat())
            for m in moves
        ),
    ]


def fitting_strategies(model: Model) -> list[StrategyInfo]:
    """Returns the strategies that an update of the model may ask for, the default one first."""
    adapter = AdapterSpec.model_validate(model.adapter).kind
    fitting = [
        info
        for info in strategies().values()
        if info.offered and model.task_type in info.task_types and adapter in info.adapter_types
    ]
    return sorted(fitting, key=lambda info: (info.name != "replay", info.name))
