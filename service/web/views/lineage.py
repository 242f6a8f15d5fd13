"""One model: its matrix, its lineage, who moved its aliases."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.models import AliasMove, Model, Task, Update
from service.registry.queries import get_champion, list_aliases, previous_champion
from service.registry.schemas import AdapterSpec
from service.reports.schemas import ForgettingReport
from service.response_headers import PAGES_PREFIX
from service.tasks.queries import live_tasks
from service.updates.catalogue import strategies
from service.updates.schemas import StrategyInfo
from service.web import queries
from service.web.charts.heatmap import MatrixPicture, heatmap
from service.web.charts.tree import Node, lineage_tree
from service.web.queries import Taught, VersionLine
from service.web.wording import alias_in_words

NEWEST_UPDATES, NEWEST_MOVES = 12, 20
UNTOUCHED = "the untouched base"
LINEAGE = (
    "version", "parent", "aliases", "learnt", "strategy", "verdict", "outcome", "update", "made_at", "adapter_removed",
)  # fmt: skip
UPDATES = ("id", "state", "strategy", "requested_by", "created_at", "parent_version", "version")
HISTORY = ("alias", "kind", "from_version", "to_version", "by", "reason", "update", "at")

Aliases = Mapping[int, Sequence[str]]
"""The names of the aliases that point at each version, by its number."""


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
        tree=_tree(model, versions=versions, taught=taught, aliases=aliases, end=report.version),
        versions=versions, taught=taught, aliases=aliases,
        updates=queries.newest_updates(session, model=model, limit=NEWEST_UPDATES),
        moves=queries.alias_moves(session, model=model, limit=NEWEST_MOVES),
        tasks=session.scalars(live_tasks(model=model).order_by(Task.seq)).all(),
        strategies=fitting_strategies(model),
    )  # fmt: skip


def aliases_by_version(session: Session, *, model: Model) -> Aliases:
    """Returns the names of the aliases that point at each version."""
    aliases: dict[int, list[str]] = defaultdict(list)
    for alias in list_aliases(session, model=model):
        aliases[alias.version].append(alias.name)
    return dict(aliases)


def tree_picture(session: Session, *, model: Model, end: int) -> str:
    """Returns the tree of all versions as SVG; the lineage that ends with version `end` runs straight."""
    return _tree(
        model, versions=queries.version_lines(session, model=model), end=end,
        taught=queries.taught_tasks(session, models=[model])[model.id],
        aliases=aliases_by_version(session, model=model),
    )  # fmt: skip


def _tree(
    model: Model, *, versions: Sequence[VersionLine], taught: Taught, aliases: Aliases, end: int
) -> str:
    nodes = [
        Node(
            line.number, line.parent, line.decision,
            [alias_in_words(alias) for alias in aliases.get(line.number, [])],
            ", ".join(sorted(taught.get(line.number, []))) if line.parent is not None else UNTOUCHED,
        )
        for line in versions
    ]  # fmt: skip
    return lineage_tree(
        nodes, trunk=_ancestors(versions, end), label=f"Lineage of {model.name}: {len(nodes)} versions",
        address=f"{PAGES_PREFIX}/models/{model.name}/versions/{{}}",
    )  # fmt: skip


def _ancestors(versions: Sequence[VersionLine], end: int) -> list[int]:
    """The lineage that ends with a version, the newest first."""
    parent_of = {line.number: line.parent for line in versions}
    lineage: list[int] = []
    at: int | None = end
    while at is not None:
        lineage.append(at)
        at = parent_of.get(at)
    return lineage


def lineage_rows(session: Session, *, model: Model) -> list[Sequence[object]]:
    """Returns all versions as a table, the newest first."""
    taught = queries.taught_tasks(session, models=[model])[model.id]
    aliases = aliases_by_version(session, model=model)
    return [
        LINEAGE,
        *(
            (
                line.number, line.parent, " ".join(aliases.get(line.number, [])),
                " ".join(sorted(taught.get(line.number, []))), line.strategy, line.decision, line.state, line.update,
                line.made_at.isoformat(), line.is_removed,
            )
            for line in queries.version_lines(session, model=model)
        ),
    ]  # fmt: skip


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
