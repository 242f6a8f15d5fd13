"""Tasks over HTTP."""

from fastapi import APIRouter, Body, Response

from service.dependencies import Ingester, Page, PageDep, Reader, SessionDep, page_of
from service.models import Task
from service.registry.queries import get_model
from service.schemas import ModelPath
from service.security import Scope
from service.tasks import commands, queries
from service.tasks.schemas import TaskPath, TaskPut, TaskRead

router = APIRouter(tags=["Tasks"])


@router.put(
    "/models/{model}/tasks/{task}",
    summary="Create a task",
    responses={
        200: {"description": "The task existed already"},
        201: {"description": "The task was created", "model": TaskRead},
    },
)
def put_task(
    model: ModelPath,
    task: TaskPath,
    principal: Ingester,
    session: SessionDep,
    response: Response,
    body: TaskPut | None = Body(default=None),
) -> TaskRead:
    """Creates the task, or finds it as it is: sending this again is harmless.

    A task is a named body of data the model should handle, such as `refunds`. Fill it with
    `POST …/tasks/{task}/examples`, then post an update that learns it.
    """
    owner = get_model(session, model=model, for_change=True, hold=True)
    given = body or TaskPut()
    if given.guarded is not None:
        principal.require(Scope.ADMIN)  # it changes what the gate asks for
    row, created = commands.put_task(
        session, model=owner, task=task, metadata=given.metadata, guarded=given.guarded, actor=principal.actor
    )
    if created:
        response.status_code = 201
        response.headers["Location"] = f"/v1/models/{owner.name}/tasks/{row.name}"
    return queries.describe_task(session, task=row)


@router.get("/models/{model}/tasks", summary="List tasks")
def list_tasks(model: ModelPath, _principal: Reader, session: SessionDep, page: PageDep) -> Page[TaskRead]:
    """Lists the model's tasks with their counts, oldest first."""
    statement = queries.live_tasks(model=get_model(session, model=model))
    rows, cursor = page.select(session, statement, key=Task.seq)
    return Page[TaskRead](**page_of(queries.describe_tasks(session, tasks=rows), cursor))


@router.get("/models/{model}/tasks/{task}", summary="Read a task")
def read_task(model: ModelPath, task: TaskPath, _principal: Reader, session: SessionDep) -> TaskRead:
    """Shows how many examples the task holds, per split and per label."""
    row = queries.get_task(session, model=get_model(session, model=model), task=task)
    return queries.describe_task(session, task=row)


@router.delete("/models/{model}/tasks/{task}", status_code=204, summary="Delete a task and its examples")
def delete_task(model: ModelPath, task: TaskPath, principal: Ingester, session: SessionDep) -> None:
    """Deletes the task with all its examples, for good. Versions that learnt it stay, and so do their scores.

    While an update that is to learn the task has not ended, this answers 409 and names it.
    """
    owner = get_model(session, model=model)
    commands.delete_task(session, model=owner, task=task, actor=principal.actor)
