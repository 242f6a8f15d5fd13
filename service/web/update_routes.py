"""The page of one update, which follows it to its end; cancelling it, deciding on it."""

import json
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.errors import Conflict
from service.response_headers import PAGES_PREFIX
from service.schemas import UpdatePath
from service.security import Scope
from service.updates import commands
from service.updates.event_stream import EventStream, LastEventId
from service.updates.queries import get_update, has_ended
from service.updates.schemas import Decision
from service.web import answers, queries
from service.web.answers import PictureForm
from service.web.rendering import page
from service.web.session import Form, OwnForm, SessionDep, Visitor, VisitorDep
from service.web.views.progress import EVENTS, LOSSES, view_update

router = APIRouter(prefix=f"{PAGES_PREFIX}/updates/{{update}}", include_in_schema=False)


@router.get("")
def show_update(update: UpdatePath, visitor: VisitorDep, session: SessionDep) -> HTMLResponse:
    """Shows the update; where scripts run, the page follows it to its end."""
    return _page("update.html", visitor, session, update)


@router.get("/now")
def show_update_now(update: UpdatePath, visitor: VisitorDep, session: SessionDep) -> HTMLResponse:
    """Shows the part of the page that changes."""
    return _page("update_now.html", visitor, session, update)


def _page(template: str, visitor: Visitor, session: Session, update: str) -> HTMLResponse:
    view = view_update(session, update=get_update(session, update_id=update))
    return page(template, visitor=visitor, view=view)


@router.get("/stream")
async def listen(
    update: UpdatePath,
    visitor: VisitorDep,
    session: SessionDep,
    last_event_id: LastEventId = None,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
) -> Response:
    """Streams the update's events past the one that the page shows, or past the last one received."""
    row = await run_in_threadpool(get_update, session, update_id=update)
    known = after if last_event_id is None else last_event_id
    if await run_in_threadpool(has_ended, session, update=row, after=known):
        return Response(status_code=204)  # which tells browsers to come no more
    return EventStream((visitor.principal.tenant, row.id), api_key=visitor.token, after=known)


@router.get("/events.csv")
def export_events(update: UpdatePath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends everything that happened to the update."""
    row = get_update(session, update_id=update)
    events = queries.update_events(session, update_id=row.id)
    rows = ((event.id, event.type, event.at.isoformat(), json.dumps(event.data)) for event in events)
    return answers.csv([EVENTS, *rows], name=f"{row.id}-events")


@router.get("/loss.csv")
def export_losses(update: UpdatePath, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends the loss over the steps taken so far."""
    view = view_update(session, update=get_update(session, update_id=update))
    return answers.csv([LOSSES, *view.losses], name=f"{view.update.id}-loss")


@router.get("/loss.{form}")
def draw_losses(update: UpdatePath, form: PictureForm, _visitor: VisitorDep, session: SessionDep) -> Response:
    """Sends the same as a curve."""
    view = view_update(session, update=get_update(session, update_id=update))
    return answers.picture(view.curve, form)


@router.post("/cancel")
def cancel(update: UpdatePath, visitor: VisitorDep, session: SessionDep, _form: OwnForm) -> Response:
    """Cancels the update."""
    visitor.principal.require(Scope.TRAIN)
    commands.cancel_update(session, update_id=update, actor=visitor.principal.actor)
    return _back(update)


@router.post("/approve")
def approve(update: UpdatePath, visitor: VisitorDep, session: SessionDep, form: OwnForm) -> Response:
    """Promotes the held candidate."""
    visitor.principal.require(Scope.DEPLOY)
    row = commands.approve_update(
        session, update_id=update, actor=visitor.principal.actor, reason=_reason(form)
    )
    if form.one("compared_with") != str(row.compared_with):  # nothing is committed yet
        raise Conflict(
            "The champion has moved since this page was made, and the verdict was made anew. Read it, then decide.",
            code="verdict_changed",
        )
    return _back(update)


@router.post("/reject")
def reject(update: UpdatePath, visitor: VisitorDep, session: SessionDep, form: OwnForm) -> Response:
    """Keeps the held candidate from becoming champion."""
    visitor.principal.require(Scope.DEPLOY)
    commands.reject_update(session, update_id=update, actor=visitor.principal.actor, reason=_reason(form))
    return _back(update)


def _reason(form: Form) -> str | None:
    return answers.validated(Decision, {"reason": form.one("reason")}).reason


def _back(update: str) -> Response:
    return answers.see_other(f"{PAGES_PREFIX}/updates/{update}")
