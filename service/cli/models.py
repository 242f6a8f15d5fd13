"""`palimpsest model`: the models of the tenant."""

from typing import Annotated

import typer

from service.cli.assignments import Assignments, assigned
from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, Yes, confirm, over_http
from service.cli.output import moment, print_facts, print_list, size

app = typer.Typer(no_args_is_help=True, help="Make, list, change, archive and purge models.")

NewName = Annotated[str, typer.Argument(metavar="MODEL", help="Its name: letters, digits, '.', '_' and '-'.")]
MERGED = ("gate", "retention")  # the API replaces these as a whole


@over_http(app, "list")
def list_models(
    call: Call,
    archived: Annotated[bool, typer.Option("--archived", help="Archived models too.")] = False,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """List the models, oldest first."""
    page = call.api.pages("/v1/models", limit=limit, archived=archived or None)
    columns = ("model", "base", "champion", "tasks", "versions", "queued", "awaiting", "training", "archived")

    def view(page: Json) -> None:
        rows = (
            (
                model["name"], model["base_model"], model["champion"], model["counts"]["tasks"],
                model["counts"]["versions"], model["counts"]["queued_updates"], model["counts"]["awaiting_approval"],
                model["active_update"], moment(model["archived_at"]),
            )
            for model in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=columns[2:7])

    call.show(page, view)


@over_http(app, "create")
def create_model(
    call: Call,
    name: NewName,
    base_model: Annotated[str, typer.Option(help="A base model of the service's catalogue.")],
    task_type: Annotated[str, typer.Option(help="text-classification or causal-lm.")] = "text-classification",
    assignments: Assignments = None,
) -> None:
    """Create a model. Its champion is version 0, the untouched base.

    Example: `palimpsest model create triage --base-model minilm-l6 --set replay.capacity=1000`
    """
    body = assigned({"name": name, "base_model": base_model, "task_type": task_type}, assignments)
    call.show(call.api.create("/v1/models", body), _facts)


@over_http(app, "show")
def show_model(call: Call, model: ModelName) -> None:
    """Show a model: champion, labels, counts, gate, retention."""
    call.show(call.api.get(_of(model)), _facts)


@over_http(app, "change")
def change_model(call: Call, model: ModelName, assignments: Assignments = None) -> None:
    """Change gate, replay capacity, retention or metadata; what `--set` does not name stays.

    Example: `palimpsest model change triage --set gate.max_regression=0.01 --set retention.versions=20`
    """
    change = assigned({}, assignments)
    if not change:
        raise typer.BadParameter("nothing to change was named", param_hint="--set")
    if not change.keys().isdisjoint(MERGED):
        now = call.api.get(_of(model))
        change |= {
            part: {**now[part], **change[part]} for part in MERGED if isinstance(change.get(part), dict)
        }
    call.show(call.api.patch(_of(model), change), _facts)


@over_http(app, "archive")
def archive_model(call: Call, model: ModelName, yes: Yes = False) -> None:
    """Archive a model: it stays readable and takes no more changes. Its name stays taken."""
    confirm(f"Archive '{model}'? It takes no more changes then, and cannot be brought back.", yes=yes)
    call.show(call.api.delete(_of(model)), lambda _answer: call.say(f"'{model}' is archived."))


@over_http(app, "purge")
def purge_model(call: Call, model: ModelName, yes: Yes = False) -> None:
    """Delete an archived model for good, with its tasks, examples, versions, reports and history."""
    confirm(f"Delete '{model}' and all it owns for good?", yes=yes)
    from service.cli.client import path

    def view(purged: Json) -> None:
        call.say(
            f"'{model}' is gone: {purged['examples']} examples, {purged['versions']} versions, "
            f"{size(purged['artifact_bytes'])} of adapters."
        )

    call.show(call.api.act(path("models", model, "purge")), view)


def _of(model: str) -> str:
    from service.cli.client import path

    return path("models", model)


def _facts(model: Json) -> None:
    counts = model["counts"]
    print_facts([
        ("model", model["name"]),
        ("base", f"{model['base_model']}, {model['task_type']}"),
        ("champion", model["champion"]),
        ("previous", model["previous"]),
        ("counts", ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())),
        ("labels", model["labels"]),
        ("active update", model["active_update"]),
        ("adapter", model["adapter"]),
        ("replay", model["replay"]),
        ("gate", model["gate"]),
        ("retention", model["retention"]),
        ("metadata", model["metadata"]),
        ("created", moment(model["created_at"])),
        ("archived", moment(model["archived_at"])),
    ])  # fmt: skip
