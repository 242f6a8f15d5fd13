"""The pages for people: signing in, the list of models; models, versions and updates have files of their own."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from service.content_negotiation import preferred
from service.db import session_scope
from service.dependencies import PageDep, PageRequest
from service.errors import Forbidden, NotFound, Unauthenticated
from service.models import Model
from service.response_headers import PAGES_PREFIX, STATIC_PREFIX
from service.security import end_session
from service.web import answers, session
from service.web.errors import LONGEST_NEXT, SIGN_IN, SIGN_OUT, install_error_pages, own_path
from service.web.model_routes import router as models
from service.web.rendering import page
from service.web.reports import forgetting_report
from service.web.session import COOKIE, OpenForm, OwnForm, SessionDep, Visitor, VisitorDep
from service.web.update_routes import router as updates
from service.web.version_routes import router as versions
from service.web.views.overview import COLUMNS, ModelLine, model_lines

STATIC = Path(__file__).parent / "static"
MODELS = f"{PAGES_PREFIX}/models"
router = APIRouter(include_in_schema=False)
PARTS = (router, models, versions, updates)
"""The routes of all pages."""


def add_pages(app: FastAPI) -> None:
    """Adds all pages to the app, and makes errors among them pages too. Comes after the handlers of errors."""
    for part in PARTS:
        app.include_router(part)
    app.mount(STATIC_PREFIX.rstrip("/"), StaticFiles(directory=STATIC), name="static")
    install_error_pages(app)


@router.get("/")
def read_root(request: Request) -> RedirectResponse:
    """Sends browsers to the pages; for anybody else there is nothing here."""
    offers = ["application/json", "text/html"]
    if preferred(request.headers.get("accept"), offers) != "text/html":
        raise HTTPException(404)
    return RedirectResponse(PAGES_PREFIX)


@router.get(PAGES_PREFIX)
def read_first_page() -> RedirectResponse:
    """The first page is the list of models."""
    return RedirectResponse(MODELS)


@router.get(SIGN_IN)
def show_sign_in(
    next_: Annotated[str | None, Query(alias="next", max_length=LONGEST_NEXT)] = None,
    ended: Annotated[str | None, Query(max_length=1)] = None,
) -> HTMLResponse:
    """Asks for an API key."""
    fault = "Your session is over, or its key is no longer valid. Sign in again." if ended else None
    return page("signin.html", visitor=None, next=own_path(next_), fault=fault)


@router.post(SIGN_IN)
async def sign_in(request: Request, form: OpenForm) -> Response:
    """Begins a session that stands for the key."""
    onward = own_path(form.one("next"))
    try:
        token = await run_in_threadpool(session.sign_in, form.one("key") or "")
    except Unauthenticated:
        fault = "This key was not let in: it is unknown, revoked or expired."
        return page("signin.html", visitor=None, status=401, next=onward, fault=fault)
    except Forbidden:
        fault = "This key may not read; the pages need a key with the scope read."
        return page("signin.html", visitor=None, status=403, next=onward, fault=fault)
    response = answers.see_other(onward)
    session.set_cookie(request, response, token)
    return response


@router.post(SIGN_OUT)
def sign_out(visitor: VisitorDep, session: SessionDep, _form: OwnForm) -> Response:
    """Ends the session: whoever kept its cookie is let in no more."""
    end_session(session, token=visitor.token, tenant=visitor.principal.tenant)
    response = answers.see_other(SIGN_IN)
    response.delete_cookie(COOKIE, path=PAGES_PREFIX)
    return response


@router.get(MODELS)
async def list_models(
    request: Request, visitor: VisitorDep, session: SessionDep, page_: PageDep
) -> HTMLResponse:
    """Shows the tenant's models, oldest first."""
    lines, cursor = await _lines(visitor, session, page_)
    return await run_in_threadpool(
        page, "models.html", visitor=visitor, lines=lines, cursor=cursor, query=request.url.query
    )


@router.get(f"{PAGES_PREFIX}/models.csv")
async def export_models(visitor: VisitorDep, session: SessionDep, page_: PageDep) -> Response:
    """Sends the list of models."""
    lines, _ = await _lines(visitor, session, page_)
    return answers.csv([COLUMNS, *(line.cells() for line in lines)], name="models")


async def _lines(
    visitor: Visitor, session: Session, page_: PageRequest
) -> tuple[list[ModelLine], str | None]:
    models, cursor = await run_in_threadpool(_models, visitor, page_)
    reports = {}
    for model in models:
        with suppress(NotFound):  # purged a moment ago
            reports[model.name] = await forgetting_report(visitor, model.id)
    shown = [model for model in models if model.name in reports]
    return await run_in_threadpool(model_lines, session, models=shown, reports=reports), cursor


def _models(visitor: Visitor, page_: PageRequest) -> tuple[list[Model], str | None]:
    # In a transaction of its own: none stays open while the reports are read in theirs.
    with session_scope(tenant=visitor.principal.tenant) as session:
        return page_.select(session, select(Model).where(Model.archived_at.is_(None)), key=Model.seq)
