"""The pages of one model: matrix, lineage, history; requesting updates and rolling back."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.errors import Conflict
from service.idempotency import Idempotency, IdempotentReplay
from service.models import Model
from service.registry.commands import roll_back
from service.registry.queries import get_champion, get_model, get_version
from service.registry.schemas import RollbackRequest
from service.reports.schemas import ForgettingReport
from service.response_headers import PAGES_PREFIX
from service.schemas import ModelPath
from service.security import Scope
from service.updates.commands import request_update
from service.updates.queries import describe_update
from service.updates.schemas import UpdateCreate
from service.web import answers, queries
from service.web.answers import PictureForm
from service.web.charts.heatmap import heatmap
from service.web.rendering import page
from service.web.reports import forgetting_report
from service.web.session import Form, OwnForm, SessionDep, Visitor, VisitorDep, new_form
from service.web.views.lineage import (
    history_rows,
    matrix_picture,
    matrix_rows,
    update_rows,
    view_model,
)
from service.web.views.overview import average_chart, average_rows
from service.web.views.rollbacks import difference_rows, view_rollback
from service.web.views.trade_offs import trade_off_chart, trade_off_rows
from service.web.views.tree import lineage_rows, tree_picture

router = APIRouter(prefix=f"{PAGES_PREFIX}/models/{{model}}", include_in_schema=False)

LineageOf = Annotated[
    int | None, Query(ge=0, le=2**31, description="End of the lineage; default: the champion")
]
ToVersion = Annotated[int | None, Query(ge=0, le=2**31)]
NOTICES = {"rolled-back": "The champion was rolled back."}


@router.get("")
async def show_model(
    model: ModelPath,
    visitor: VisitorDep,
    session: SessionDep,
    version: LineageOf = None,
    done: Annotated[str | None, Query(max_length=20)] = None,
) -> HTMLResponse:
    """Shows the matrix of a lineage, all versions, the history of the aliases, and what may be done."""
    report = await forgetting_report(visitor, model, version)
    return await run_in_threadpool(_model_page, visitor, session, model, report, NOTICES.get(done or ""))


def _model_page(
    visitor: Visitor, session: Session, model: str, report: ForgettingReport, notice: str | None
) -> HTMLResponse:
    view = view_model(session, model=get_model(session, model=model), report=report)
    return page("model.html", visitor=visitor, view=view, notice=notice, form=new_form())


# Tables come before the pictures of their name, whose addresses they would fit as well.
@router.get("/matrix.csv")
async def export_matrix(
    model: ModelPath, visitor: VisitorDep, _session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends the matrix as a table."""
    report = await forgetting_report(visitor, model, version)
    return answers.csv(matrix_rows(report), name=f"{report.model}-v{report.version}-matrix")


@router.get("/matrix.{form}")
async def draw_matrix(
    model: ModelPath, form: PictureForm, visitor: VisitorDep, session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends the matrix as the page shows it."""
    report = await forgetting_report(visitor, model, version)

    def draw() -> str:
        row = get_model(session, model=model)
        taught = queries.taught_tasks(session, models=[row])[row.id]
        champion = get_champion(session, model=row).version
        return heatmap(matrix_picture(report, taught=taught, champion=champion))

    return answers.picture(await run_in_threadpool(draw), form)


@router.get("/averages.csv")
async def export_averages(
    model: ModelPath, visitor: VisitorDep, session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends the mean score of every version of a lineage on what was learnt by then."""
    report = await forgetting_report(visitor, model, version)
    rows = await run_in_threadpool(average_rows, session, report=report)
    return answers.csv(rows, name=f"{report.model}-v{report.version}-averages")


@router.get("/averages.{form}")
async def draw_averages(
    model: ModelPath, form: PictureForm, visitor: VisitorDep, session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends the same as a small line."""
    report = await forgetting_report(visitor, model, version)
    return answers.picture(await run_in_threadpool(average_chart, session, report=report), form)


@router.get("/lineage.csv")
def export_lineage(model: ModelPath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends all versions: parents, aliases, what each learnt, verdicts, outcomes."""
    row = get_model(session, model=model)
    return answers.csv(lineage_rows(session, model=row), name=f"{row.name}-lineage")


@router.get("/lineage.{form}")
def draw_lineage(
    model: ModelPath, form: PictureForm, _visitor: VisitorDep, session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends the tree of all versions; the lineage of `version`, by default the champion's, runs straight."""
    row = get_model(session, model=model)
    end = get_champion(session, model=row).version if version is None else _existing(session, row, version)
    return answers.picture(tree_picture(session, model=row, end=end), form)


@router.get("/trade-offs.csv")
def export_trade_offs(model: ModelPath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends stability and plasticity of all versions."""
    row = get_model(session, model=model)
    return answers.csv(trade_off_rows(session, model=row), name=f"{row.name}-trade-offs")


@router.get("/trade-offs.{form}")
def draw_trade_offs(
    model: ModelPath, form: PictureForm, _visitor: VisitorDep, session: SessionDep, version: LineageOf = None
) -> Response:
    """Sends stability against plasticity of all versions; `version` stands out."""
    row = get_model(session, model=model)
    this = None if version is None else _existing(session, row, version)
    return answers.picture(trade_off_chart(session, model=row, this=this), form)


def _existing(session: Session, model: Model, version: int) -> int:
    """The number of a version that the model has. Raises `NotFound`."""
    return get_version(session, model=model, version=version).number


@router.get("/updates.csv")
def export_updates(model: ModelPath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends all of the model's updates, the newest first."""
    row = get_model(session, model=model)
    return answers.csv(update_rows(session, model=row), name=f"{row.name}-updates")


@router.get("/history.csv")
def export_history(model: ModelPath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends every move of the model's aliases."""
    row = get_model(session, model=model)
    return answers.csv(history_rows(queries.alias_moves(session, model=row)), name=f"{row.name}-history")


@router.post("/updates")
def send_update(model: ModelPath, visitor: VisitorDep, session: SessionDep, form: OwnForm) -> Response:
    """Requests an update and shows it; the same form sent again shows the update that it asked for the first time."""
    visitor.principal.require(Scope.TRAIN)
    # Every form carries a number of its own: two that ask for the same are two, one sent twice is one.
    key = f"form-{form.digest()}" if form.one("form") else None
    once = Idempotency(session, tenant=visitor.principal.tenant, key=key, request=f"form {model}/updates")
    try:
        once.begin(b"", wait=True)
    except IdempotentReplay as earlier:
        return answers.see_other(f"{PAGES_PREFIX}/updates/{earlier.body['id']}")
    update = request_update(session, model=model, request=_update_of(form), principal=visitor.principal)
    once.keep(202, describe_update(session, update=update))
    return answers.see_other(f"{PAGES_PREFIX}/updates/{update.id}")


def _update_of(form: Form) -> UpdateCreate:
    training = {name: value for name in ("epochs", "learning_rate") if (value := form.one(name)) is not None}
    return answers.validated(
        UpdateCreate,
        {
            "tasks": form.many("tasks"),
            "strategy": {"name": form.one("strategy")},
            "training": training,
            "promotion": form.one("promotion") or "gate",
            "relearn": form.one("relearn") is not None,
        },
    )


@router.get("/rollback")
def confirm_rollback(
    model: ModelPath, visitor: VisitorDep, session: SessionDep, to: ToVersion = None
) -> HTMLResponse:
    """Says what a rollback will change, and asks for its reason."""
    visitor.principal.require(Scope.DEPLOY)
    view = view_rollback(session, model=get_model(session, model=model, for_change=True), to=to)
    return page("rollback.html", visitor=visitor, view=view)


@router.get("/rollback.csv")
def export_rollback(
    model: ModelPath, visitor: VisitorDep, session: SessionDep, to: ToVersion = None
) -> Response:
    """Sends the scores before and after a rollback."""
    visitor.principal.require(Scope.DEPLOY)
    view = view_rollback(session, model=get_model(session, model=model), to=to)
    name = f"{view.model.name}-v{view.champion.number}-to-v{view.target.number}"
    return answers.csv(difference_rows(view), name=name)


@router.post("/rollback")
def send_rollback(model: ModelPath, visitor: VisitorDep, session: SessionDep, form: OwnForm) -> Response:
    """Rolls back, if the champion still is the one that the confirmation spoke of."""
    visitor.principal.require(Scope.DEPLOY)
    request = answers.validated(RollbackRequest, {"to": form.one("to"), "reason": form.one("reason")})
    row = get_model(session, model=model, for_change=True, lock=True)
    champion = get_champion(session, model=row, lock=True)
    if str(champion.version) != form.one("champion"):
        raise Conflict(
            f"The champion is version {champion.version} now, another one than the page spoke of. Open it again.",
            code="champion_moved",
        )
    roll_back(session, model=row.id, to=request.to, reason=request.reason, actor=visitor.principal.actor)
    return answers.see_other(f"{PAGES_PREFIX}/models/{row.name}?done=rolled-back")
