"""`palimpsest task`: named bodies of data of a model."""

from typing import Annotated

import typer

from service.cli.assignments import Assignments, assigned
from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, TaskName, Yes, confirm, over_http
from service.cli.output import moment, print_facts, print_list

app = typer.Typer(no_args_is_help=True, help="Make, list, show and delete a model's tasks.")


@over_http(app, "list")
def list_tasks(call: Call, model: ModelName, limit: Limit = DEFAULT_LIMIT) -> None:
    """List a model's tasks with their counts, oldest first."""
    page = call.api.pages(_of(model), limit=limit)
    columns = ("task", "train", "eval", "labels", "guarded", "created")

    def view(page: Json) -> None:
        rows = (
            (
                task["name"], task["counts"]["train"], task["counts"]["eval"], len(task["labels"]), task["guarded"],
                moment(task["created_at"]),
            )
            for task in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=columns[1:4])

    call.show(page, view)


@over_http(app, "create")
def create_task(
    call: Call,
    model: ModelName,
    task: TaskName,
    guarded: Annotated[
        bool | None,
        typer.Option(help="Evaluate every update on it, learnt or not.", show_default=False),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Create a task, or find it as it is: doing so again is harmless."""
    body = assigned({} if guarded is None else {"guarded": guarded}, assignments)
    call.show(call.api.put(_of(model, task), body), _facts)


@over_http(app, "show")
def show_task(call: Call, model: ModelName, task: TaskName) -> None:
    """Show how many examples a task holds, per split and label."""
    call.show(call.api.get(_of(model, task)), _facts)


@over_http(app, "delete")
def delete_task(call: Call, model: ModelName, task: TaskName, yes: Yes = False) -> None:
    """Delete a task with all its examples, for good. Versions that learnt it stay."""
    confirm(f"Delete the task '{task}' of '{model}' with all its examples for good?", yes=yes)
    call.show(call.api.delete(_of(model, task)), lambda _answer: call.say(f"The task '{task}' is deleted."))


def _of(model: str, *task: str) -> str:
    from service.cli.client import path

    return path("models", model, "tasks", *task)


def _facts(task: Json) -> None:
    print_facts([
        ("task", task["name"]),
        ("train examples", task["counts"]["train"]),
        ("eval examples", task["counts"]["eval"]),
        *((f"label {label}", f"{n['train']} train, {n['eval']} eval") for label, n in task["labels"].items()),
        ("guarded", task["guarded"]),
        ("metadata", task["metadata"]),
        ("created", moment(task["created_at"])),
    ])  # fmt: skip
