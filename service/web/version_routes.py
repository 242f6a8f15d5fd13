"""The pages of one version: what its update gave and cost, down to the example."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.dependencies import Cursor
from service.dials.commands import request_dial
from service.dials.queries import read_dial
from service.dials.schemas import DialRequest
from service.errors import NotFound, Unprocessable
from service.registry.queries import get_champion, get_model, get_version
from service.reports import flip_exports, flips
from service.reports.schemas import UpdateReport
from service.response_headers import PAGES_PREFIX
from service.schemas import NAME_PATTERN, ModelPath, VersionPath
from service.security import Scope
from service.web import answers
from service.web.answers import PictureForm
from service.web.rendering import page
from service.web.reports import update_report
from service.web.session import OwnForm, SessionDep, Visitor, VisitorDep
from service.web.views.dials import dial_chart, point_rows, refusal, score_rows, view_dial
from service.web.views.rehearsals import MOST_ROWS, strata_rows, view_rehearsal
from service.web.views.report import RULES, changes_chart, content_in_words, reason_rows, task_rows
from service.web.views.trade_offs import trade_off_chart

router = APIRouter(prefix=f"{PAGES_PREFIX}/models/{{model}}/versions/{{version}}", include_in_schema=False)

FLIPS_PER_PAGE = 20
UNTOUCHED = 0


def get_flip_query(
    task: Annotated[str | None, Query(max_length=128, pattern=f"{NAME_PATTERN}|^$")] = None,
    kind: Annotated[str | None, Query(pattern="^(negative|positive|)$")] = None,
    sort: flips.Sort = "confidence",
) -> flips.FlipQuery:
    """Reads which flips are wanted; empty fields of the form are no filters. The most confident answers come first."""
    wanted: flips.Kind | None = (
        "negative" if kind == "negative" else "positive" if kind == "positive" else None
    )
    return flips.FlipQuery(task=task or None, kind=wanted, sort=sort)


FlipQueryDep = Annotated[flips.FlipQuery, Depends(get_flip_query)]


@router.get("")
async def show_version(
    model: ModelPath,
    version: VersionPath,
    visitor: VisitorDep,
    session: SessionDep,
    query: FlipQueryDep,
    cursor: Cursor = None,
) -> Response:
    """Shows the report of the update that made the version. The base has none: its model is shown instead."""
    if version == UNTOUCHED:
        return answers.see_other(f"{PAGES_PREFIX}/models/{model}?version={UNTOUCHED}")
    report = await update_report(visitor, model, version)
    return await run_in_threadpool(_version_page, visitor, session, report, query, cursor)


def _version_page(
    visitor: Visitor, session: Session, report: UpdateReport, query: flips.FlipQuery, cursor: str | None
) -> Response:
    row = get_model(session, model=report.model)
    found = get_version(session, model=row, version=report.version)
    flipped = flips.list_flips(
        session, model=row.id, version=report.version, query=query, limit=FLIPS_PER_PAGE, cursor=cursor
    )
    return page(
        "version.html", visitor=visitor, model=row, version=found, report=report, flipped=flipped, query=query,
        champion=get_champion(session, model=row).version, rules=RULES, content=content_in_words,
        changes=changes_chart(report, tolerated=row.gate["max_regression"]),
        trade_offs=trade_off_chart(session, model=row, this=report.version),
        rehearsal=view_rehearsal(session, model=row, version=found),
        dial=view_dial(session, model=row, version=found),
        dial_refusal=refusal(session, model=row, version=found),
    )  # fmt: skip


@router.get("/reasons.csv")
async def export_reasons(
    model: ModelPath, version: VersionPath, visitor: VisitorDep, _session: SessionDep
) -> Response:
    """Sends what each rule of the gate found on each task."""
    report = await update_report(visitor, model, version)
    return answers.csv(reason_rows(report), name=f"{report.model}-v{report.version}-reasons")


@router.get("/changes.csv")
async def export_changes(
    model: ModelPath, version: VersionPath, visitor: VisitorDep, _session: SessionDep
) -> Response:
    """Sends the changes as a table."""
    report = await update_report(visitor, model, version)
    return answers.csv(task_rows(report), name=f"{report.model}-v{report.version}-changes")


@router.get("/changes.{form}")
async def draw_changes(
    model: ModelPath, version: VersionPath, form: PictureForm, visitor: VisitorDep, session: SessionDep
) -> Response:
    """Sends the changes with their intervals as the page shows them."""
    report = await update_report(visitor, model, version)
    row = await run_in_threadpool(get_model, session, model=model)
    return answers.picture(changes_chart(report, tolerated=row.gate["max_regression"]), form)


@router.post("/dial")
def ask_for_dial(
    model: ModelPath, version: VersionPath, visitor: VisitorDep, session: SessionDep, _form: OwnForm
) -> Response:
    """Has the dial scored at the usual points; one that failed is taken up again."""
    visitor.principal.require(Scope.TRAIN)
    request_dial(session, model=model, version=version, request=DialRequest(), principal=visitor.principal)
    return answers.see_other(f"{PAGES_PREFIX}/models/{model}/versions/{version}#dial")


@router.get("/dial.csv")
def export_dial(
    model: ModelPath, version: VersionPath, _visitor: VisitorDep, session: SessionDep
) -> Response:
    """Sends the measures of every point of the dial."""
    dial = read_dial(session, model=model, version=version)
    return answers.csv(point_rows(dial), name=f"{dial.model}-v{dial.version}-dial")


@router.get("/dial-scores.csv")
def export_dial_scores(
    model: ModelPath, version: VersionPath, _visitor: VisitorDep, session: SessionDep
) -> Response:
    """Sends what every point of the dial scored on every task."""
    dial = read_dial(session, model=model, version=version)
    return answers.csv(score_rows(dial), name=f"{dial.model}-v{dial.version}-dial-scores")


@router.get("/dial.{form}")
def draw_dial(
    model: ModelPath, version: VersionPath, form: PictureForm, _visitor: VisitorDep, session: SessionDep
) -> Response:
    """Sends each task's scores over β."""
    return answers.picture(dial_chart(read_dial(session, model=model, version=version)), form)


@router.get("/rehearsed.csv")
def export_rehearsal(
    model: ModelPath, version: VersionPath, _visitor: VisitorDep, session: SessionDep
) -> Response:
    """Sends how many rows of which task and label the version's update rehearsed."""
    row = get_model(session, model=model)
    view = view_rehearsal(session, model=row, version=get_version(session, model=row, version=version))
    if view is None:
        raise NotFound(f"The update that made version {version} read no buffer.", code="no_rehearsal")
    if view.is_too_large:
        raise Unprocessable(
            f"The buffer of {view.capacity} rows at most is too large to be counted again; {MOST_ROWS} can be.",
            code="buffer_too_large",
        )
    return answers.csv(strata_rows(view), name=f"{row.name}-v{version}-rehearsed")


@router.get("/flips.csv")
def export_flips(
    model: ModelPath, version: VersionPath, visitor: VisitorDep, session: SessionDep, query: FlipQueryDep
) -> Response:
    """Sends every example that changed sides."""
    ledger = flips.read_ledger(session, model=model, version=version, query=query)
    return flip_exports.ExportResponse(ledger, tenant=visitor.principal.tenant, form="csv")
