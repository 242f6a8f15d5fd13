"""Examples over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from service.config import get_settings
from service.db import session_scope
from service.dependencies import Ingester, LaterSessionDep, Page, PageDep, Reader, SessionDep, page_of
from service.errors import problem_responses
from service.examples import commands, queries
from service.examples.bodies import rows_of
from service.examples.openapi import INGEST_BODY
from service.examples.rows import MAX_ID_LENGTH
from service.examples.schemas import NO_NUL, ExampleRead, IngestRead, Split, SubjectQuery
from service.examples.spool import spooled_body
from service.idempotency import StreamIdempotencyDep
from service.models import Example
from service.registry.queries import get_model
from service.schemas import ModelPath
from service.tasks.queries import get_task
from service.tasks.schemas import TaskPath
from service.turns import TurnDep

router = APIRouter(tags=["Examples"])

ExamplePath = Annotated[
    str,
    Path(
        alias="example",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern=NO_NUL,
        description="Your id of the row, or the `ex_…` it was given",
    ),
]


def _may_ingest(model: ModelPath, task: TaskPath, principal: Ingester) -> None:
    # Asked before the body is taken in, in a transaction of its own: none is open while a socket waits.
    with session_scope(tenant=principal.tenant) as session:
        get_task(session, model=get_model(session, model=model, for_change=True), task=task)


@router.post(
    "/models/{model}/tasks/{task}/examples",
    response_model=IngestRead,
    dependencies=[Depends(_may_ingest)],
    summary="Add examples to a task",
    openapi_extra={"requestBody": INGEST_BODY},
    responses=problem_responses(415),
)
async def ingest_examples(
    model: ModelPath,
    task: TaskPath,
    request: Request,
    session: LaterSessionDep,
    turn: TurnDep,
    idempotency: StreamIdempotencyDep,
    on_error: Annotated[
        commands.OnError,
        Query(description="abort: a single bad row refuses the whole body; skip: the good rows are stored"),
    ] = "abort",
) -> Response:
    """Stores rows, either one JSON object per line (`application/x-ndjson`, any length up to the body limit)
    or as `{"examples": […]}` (`application/json`, for small bodies).

    Rows without a `split` are split by their text: one text in ten goes to eval, and no text ever stands on both
    sides, in any task of the model. Content the task holds already counts as a duplicate and is not stored
    again, under whichever `id` it comes; as another `subject`'s it is an error. A row whose `id` is known, with other content, replaces the stored one.

    By default a single bad row refuses the body: 422 with the line, a code and a reason for each of the first
    100, and nothing is stored.
    """
    settings = get_settings()
    async with spooled_body(
        request, max_body_bytes=settings.max_body_bytes, directory=settings.spool_dir
    ) as body:

        def store() -> Response:
            idempotency.begin(body.digest)
            owner = get_model(session, model=model, for_change=True, hold=True)
            row = get_task(session, model=owner, task=task, hold=True)
            rows = rows_of(body.file, media_type=body.media_type, rules=commands.row_rules(owner))
            answer = commands.ingest(session, model=owner, task=row, rows=rows, on_error=on_error)
            return idempotency.keep(200, answer)

        await turn.take()
        return await run_in_threadpool(store)


@router.get(
    "/models/{model}/tasks/{task}/examples",
    response_model_exclude_unset=True,
    summary="List a task's examples",
)
def list_examples(
    model: ModelPath,
    task: TaskPath,
    _principal: Reader,
    session: SessionDep,
    page: PageDep,
    split: Annotated[Split | None, Query(description="Only this split")] = None,
    label: Annotated[
        str | None, Query(max_length=1024, pattern=NO_NUL, description="Only this label")
    ] = None,
    subject: Annotated[str | None, SubjectQuery] = None,
) -> Page[ExampleRead]:
    """Lists the present rows in the order they came in; corrected and erased ones are not shown."""
    row = get_task(session, model=get_model(session, model=model), task=task)
    statement = queries.live_examples(task=row, split=split, label=label, subject=subject)
    rows, cursor = page.select(session, statement, key=Example.id)
    return Page[ExampleRead](**page_of([_read(item) for item in rows], cursor))


@router.get(
    "/models/{model}/tasks/{task}/examples/{example:path}",
    response_model_exclude_unset=True,
    summary="Read an example",
)
def read_example(
    model: ModelPath, task: TaskPath, example: ExamplePath, _principal: Reader, session: SessionDep
) -> ExampleRead:
    """Shows one row, by your id or by the one it was given."""
    row = get_task(session, model=get_model(session, model=model), task=task)
    return _read(queries.get_example(session, task=row, example=example))


@router.delete(
    "/models/{model}/tasks/{task}/examples/{example:path}", status_code=204, summary="Delete an example"
)
def delete_example(
    model: ModelPath, task: TaskPath, example: ExamplePath, principal: Ingester, session: SessionDep
) -> None:
    """Deletes one row for good, with the rows it replaced. In a replay buffer the next in rank takes its place."""
    row = get_task(session, model=get_model(session, model=model), task=task)
    commands.delete_example(session, task=row, example=example, actor=principal.actor)


def _read(row: Example) -> ExampleRead:
    return ExampleRead(
        id=queries.public_id(row), split=row.split, **row.content, label=row.label, subject=row.subject,
        weight=row.weight, metadata=row.user_metadata, batch=row.batch, created_at=row.created_at,
    )  # fmt: skip
