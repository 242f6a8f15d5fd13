"""`palimpsest erasure`: a model cleaned of a data subject that was erased with `palimpsest examples erase`."""

from typing import Annotated

import typer

from service.cli.assignments import Assignments, assigned
from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, ModelName, Yes, confirm, over_http
from service.cli.output import moment, print_facts, print_list
from service.cli.updates import Patience, Promotion, Wait, follow
from service.cli.watching import PATIENCE_SECONDS

app = typer.Typer(
    no_args_is_help=True,
    help="""Clean a model of an erased data subject: learn anew without them, retire what had learnt from them, get the receipt.

    `palimpsest examples erase` erases a subject and names the erasure.""",
)

ErasureId = Annotated[str, typer.Argument(metavar="ERASURE", help="Its id, `era_…`.")]


@over_http(app, "list")
def list_erasures(call: Call, model: ModelName, limit: Limit = DEFAULT_LIMIT) -> None:
    """List a model's erasures, newest first."""
    from service.cli.client import path

    page = call.api.pages(path("models", model, "erasures"), limit=limit)
    columns = ("erasure", "deleted", "trained on it", "built on those", "rebuilt by", "retired", "at")

    def view(page: Json) -> None:
        rows = (
            (
                each["id"], each["deleted"], each["versions"], each["inherited_by"], each["rebuild_update"],
                moment(each["retired_at"]), moment(each["created_at"]),
            )
            for each in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("deleted",))

    call.show(page, view)


@over_http(app, "rebuild")
def rebuild(
    call: Call,
    model: ModelName,
    erasure: ErasureId,
    promotion: Annotated[
        Promotion | None, typer.Option(help="The verdict, a person, or nobody decides.", show_default="gate")
    ] = None,
    assignments: Assignments = None,
    wait: Wait = False,
    patience: Patience = PATIENCE_SECONDS,
) -> None:
    """Learn anew, without the subject, what the champion learnt since its last clean ancestor.

    A passing rebuild awaits approval, for its parent is not the champion: `palimpsest update approve UPDATE`.
    """
    body = assigned({} if promotion is None else {"promotion": promotion}, assignments)
    update = call.api.create(_of(model, erasure, "rebuild"), body)
    follow(call, update, wait=wait, patience_seconds=patience)


@over_http(app, "retire")
def retire(call: Call, model: ModelName, erasure: ErasureId, yes: Yes = False) -> None:
    """Delete the adapters of every version that learnt from the subject, or was built on one that did."""
    confirm(
        f"Delete the adapters of every version of '{model}' that learnt from the erased subject?", yes=yes
    )
    answer = call.api.act(_of(model, erasure, "retire"))
    call.show(
        answer, lambda done: call.say(f"Retired: versions {[*done['versions'], *done['inherited_by']]}.")
    )


@over_http(app, "receipt")
def show_receipt(call: Call, model: ModelName, erasure: ErasureId) -> None:
    """Show the receipt: what was erased, what had learnt from it, where the model stands. With `--json`, signed."""

    def view(signed: Json) -> None:
        receipt = signed["receipt"]
        print_facts([
            ("complete", receipt["complete"]), ("rows deleted", receipt["rows_deleted"]),
            ("erased", f"{moment(receipt['erased_at'])} by {receipt['erased_by']}"),
            ("tainted versions", [each["version"] for each in receipt["tainted_versions"]]),
            ("champion", f"{receipt['champion']} ({'clean' if receipt['champion_is_clean'] else 'tainted'})"),
            ("signed with", signed["signature"]["key_id"]),
        ])  # fmt: skip

    call.show(call.api.get(_of(model, erasure, "receipt")), view)


def _of(model: str, erasure: str, part: str) -> str:
    from service.cli.client import path

    return path("models", model, "erasures", erasure, part)
