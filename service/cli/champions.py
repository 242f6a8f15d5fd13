"""`palimpsest rollback`, `history` and `aliases`: which version serves, and who decided so."""

from typing import Annotated

import typer

from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, over_http
from service.cli.output import moment, print_list, print_table

app = typer.Typer()


@over_http(app, "rollback")
def roll_back(
    call: Call,
    model: ModelName,
    reason: Annotated[str, typer.Option(prompt="Why", help="The history keeps it.")],
    to: Annotated[int | None, typer.Option(help="Version to go to.", show_default="the previous champion")] = None,
) -> None:  # fmt: skip
    """Move the champion back, at once. The replay buffer follows by itself.

    Example: `palimpsest rollback triage --reason "complaints about refunds"`
    """
    from service.cli.client import path

    def view(done: Json) -> None:
        before = "nowhere" if done["previous"] is None else f"version {done['previous']}"
        call.say(
            f"The champion of '{done['model']}' is version {done['champion']}; it was {done['rolled_back_from']}. "
            f"The next rollback goes to {before}."
        )

    body: Json = {"reason": reason} if to is None else {"reason": reason, "to": to}
    call.show(call.api.create(path("models", model, "rollback"), body), view)


@over_http(app, "history")
def show_history(call: Call, model: ModelName, limit: Limit = DEFAULT_LIMIT) -> None:
    """List who moved which alias from what to what, when and why; newest first."""
    from service.cli.client import path

    page = call.api.pages(path("models", model, "history"), limit=limit)
    columns = ("at", "alias", "kind", "from", "to", "by", "reason", "update")

    def view(page: Json) -> None:
        rows = (
            (
                moment(move["at"]), move["alias"], move["kind"], move["from_version"], move["to_version"],
                move["by"], move["reason"], move["update"],
            )
            for move in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("from", "to"))

    call.show(page, view)


@over_http(app, "aliases")
def list_aliases(call: Call, model: ModelName) -> None:
    """List where a model's aliases point."""
    from service.cli.client import path

    def view(aliases: Json) -> None:
        rows = [(one["alias"], one["version"], moment(one["updated_at"])) for one in aliases["data"]]
        rows.append(("previous", aliases["previous"], None))
        print_table(("alias", "version", "moved"), rows, right=["version"])

    call.show(call.api.get(path("models", model, "aliases")), view)
