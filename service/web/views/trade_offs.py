"""Stability against plasticity, for all versions of a model at once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from service.evaluations.queries import StoredScore, stored_scores
from service.models import Model
from service.registry.queries import get_champion, task_names
from service.web import queries
from service.web.charts.scatter import TradeOff, scatter
from service.web.queries import VersionLine

TRADE_OFFS = ("version", "worst_change", "new_score", "decision")
BySet = dict[str, float]  # scores by eval set, the newest last


def trade_off_chart(session: Session, *, model: Model, this: int | None = None) -> str | None:
    """Returns the scatter of all versions as SVG; None while none has learnt beside older tasks. `this` stands out."""
    points = trade_offs(session, model=model, this=this)
    if not points:
        return None
    bounds = model.gate["max_regression"], model.gate["min_new_score"]
    return scatter(points, tolerated=bounds[0], least_new=bounds[1])


def trade_off_rows(session: Session, *, model: Model) -> list[Sequence[object]]:
    """Returns the same as a table."""
    points = trade_offs(session, model=model, this=None)
    return [TRADE_OFFS, *((p.version, p.worst_change, p.new_score, p.decision) for p in points)]


def trade_offs(session: Session, *, model: Model, this: int | None = None) -> list[TradeOff]:
    """Returns every version's worst change on an old task against its parent, and its mean score on what it learnt.

    Changes are on the newest eval set that both were scored on. Versions without old tasks or new scores are left out.
    """
    lines = sorted(queries.version_lines(session, model=model), key=lambda line: line.number)
    names = task_names(session, model=model)
    taught = queries.taught_tasks(session, models=[model])[model.id]
    stored = stored_scores(session, model=model, versions=[line.number for line in lines], task_ids=names)
    scores = _by_task(stored, names)
    special = {get_champion(session, model=model).version: "champion"}
    if this is not None:
        special[this] = "this version"
    known: dict[int, frozenset[str]] = {}
    points = []
    for line in lines:
        before = known.get(line.parent, frozenset()) if line.parent is not None else frozenset()
        own = taught.get(line.number, frozenset())
        known[line.number] = before | own
        point = _point(line, scores, old=before, own=own, stands_out=special.get(line.number))
        points += [point] if point else []
    return points


def _point(
    line: VersionLine,
    scores: Mapping[tuple[int, str], BySet],
    *,
    old: frozenset[str],
    own: frozenset[str],
    stands_out: str | None,
) -> TradeOff | None:
    changes = [
        change
        for task in old
        if (change := _change(scores.get((line.parent or 0, task), {}), scores.get((line.number, task), {})))
        is not None
    ]
    learnt = [list(scores[line.number, task].values())[-1] for task in own if (line.number, task) in scores]
    if not changes or not learnt:
        return None
    return TradeOff(line.number, min(changes), sum(learnt) / len(learnt), line.decision, stands_out)


def _change(before: BySet, after: BySet) -> float | None:
    shared = [eval_set for eval_set in after if eval_set in before]
    return after[shared[-1]] - before[shared[-1]] if shared else None


def _by_task(stored: Sequence[StoredScore], names: Mapping[str, str]) -> dict[tuple[int, str], BySet]:
    found: dict[tuple[int, str], BySet] = defaultdict(dict)
    for score in stored:
        found[score.version, names[score.task_id]][score.eval_set_id] = score.score
    return dict(found)
