"""All versions of a model: as a tree, and as a table."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from service.models import Model
from service.registry.queries import list_aliases
from service.response_headers import PAGES_PREFIX
from service.web import queries
from service.web.charts.tree import Node, lineage_tree
from service.web.queries import Taught, VersionLine
from service.web.wording import alias_in_words

UNTOUCHED = "the untouched base"
LINEAGE = (
    "version", "parent", "aliases", "learnt", "strategy", "verdict", "outcome", "update", "made_at", "adapter_removed",
)  # fmt: skip
Aliases = Mapping[int, Sequence[str]]
"""The names of the aliases that point at each version, by its number."""


def aliases_by_version(session: Session, *, model: Model) -> Aliases:
    """Returns the names of the aliases that point at each version."""
    aliases: dict[int, list[str]] = defaultdict(list)
    for alias in list_aliases(session, model=model):
        aliases[alias.version].append(alias.name)
    return dict(aliases)


def tree_picture(session: Session, *, model: Model, end: int) -> str:
    """Returns the tree of all versions as SVG; the lineage that ends with version `end` runs straight."""
    return draw_tree(
        model, versions=queries.version_lines(session, model=model), end=end,
        taught=queries.taught_tasks(session, models=[model])[model.id],
        aliases=aliases_by_version(session, model=model),
    )  # fmt: skip


def draw_tree(
    model: Model, *, versions: Sequence[VersionLine], taught: Taught, aliases: Aliases, end: int
) -> str:
    """Returns the same of what has been read already."""
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
