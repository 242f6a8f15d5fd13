"""`palimpsest examples`: what tasks consist of."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from service.cli.calling import Call, Json, Limit, ModelName, TaskName, Yes, confirm, over_http
from service.cli.output import messages, print_facts, print_list, print_table, remark, shortened
from service.cli.problems import CallFailed

app = typer.Typer(no_args_is_help=True, help="Add, list, delete and erase examples.")

CHUNK_BYTES = 64 * 1024
SHOWN_ERRORS = 10
NDJSON = "application/x-ndjson"


class Split(StrEnum):
    """Which side an example stands on."""

    TRAIN = "train"
    EVAL = "eval"


class OnError(StrEnum):
    """What a bad row does to the others."""

    ABORT = "abort"
    SKIP = "skip"


SplitOption = Annotated[Split | None, typer.Option("--split", help="Only this split.", show_default=False)]


@over_http(app, "add")
def add_examples(
    call: Call,
    model: ModelName,
    task: TaskName,
    file: Annotated[Path, typer.Argument(help="One JSON object per line; `-` reads standard input.")],
    on_error: Annotated[
        OnError,
        typer.Option(help="abort: one bad row and nothing is stored; skip: the good rows are."),
    ] = OnError.ABORT,
) -> None:
    """Add examples to a task. What the task holds already counts as a duplicate and is not stored again.

    Example: `palimpsest examples add triage billing billing.ndjson --on-error skip`
    """
    from service.cli.client import path

    where = path("models", model, "tasks", task, "examples")
    with opened(file) as body, sending(body) as sent:

        def pieces() -> Iterator[bytes]:  # from the beginning for every attempt
            body.seek(0)
            while piece := body.read(CHUNK_BYTES):
                yield piece
                sent(body.tell())

        answer = call.api.stream(where, pieces, media_type=NDJSON, on_error=on_error.value)
    call.show(answer, _ingested)


@over_http(app, "list")
def list_examples(
    call: Call,
    model: ModelName,
    task: TaskName,
    split: SplitOption = None,
    label: Annotated[str | None, typer.Option(help="Only this label.", show_default=False)] = None,
    subject: Annotated[str | None, typer.Option(help="Only this data subject.", show_default=False)] = None,
    limit: Limit = 100,
) -> None:
    """List a task's examples in the order they came in."""
    from service.cli.client import path

    page = call.api.pages(
        path("models", model, "tasks", task, "examples"), limit=limit, split=split and split.value, label=label,
        subject=subject,
    )  # fmt: skip

    def view(page: Json) -> None:
        rows = (
            (row["id"], row["split"], row["label"], row["subject"], shortened(content_text(row)))
            for row in page["data"]
        )
        print_list(page, ("id", "split", "label", "subject", "text"), rows)

    call.show(page, view)


@over_http(app, "delete")
def delete_example(
    call: Call,
    model: ModelName,
    task: TaskName,
    example: Annotated[str, typer.Argument(help="Your id of the row, or the `ex_…` it was given.")],
) -> None:
    """Delete one example for good."""
    from service.cli.client import path

    answer = call.api.delete(path("models", model, "tasks", task, "examples", example))
    call.show(answer, lambda _answer: call.say(f"The example '{example}' is deleted."))


@over_http(app, "erase")
def erase_subject(
    call: Call,
    model: ModelName,
    subject: Annotated[str, typer.Option(help="Whose data it is, as sent with the rows.")],
    yes: Yes = False,
) -> None:
    """Erase a data subject from all tasks of a model, and say which versions had learnt from it."""
    from service.cli.client import path

    confirm(f"Delete every example of the subject '{subject}' in '{model}' for good?", yes=yes)

    def view(erased: Json) -> None:
        print_facts([
            ("erasure", erased["id"]), ("deleted", erased["deleted"]), ("versions that learnt from it", erased["versions"]),
            ("versions built on those", erased["inherited_by"]),
            ("to rebuild", f"palimpsest erasure rebuild {model} {erased['id']}" if erased["rebuild"] else "nothing"),
        ])  # fmt: skip

    call.show(call.api.delete(path("models", model, "examples"), subject=subject), view)


def content_text(content: Json) -> str:
    """The words of an example, whatever its form."""
    if content.get("messages"):
        return " / ".join(message["content"] for message in content["messages"])
    return " → ".join(content[part] for part in ("text", "prompt", "completion") if content.get(part))


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """What is to be sent as a file that can be read again should an attempt fail, which a pipe could not."""
    if str(file) == "-":
        with tempfile.TemporaryFile() as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            yield kept
        return
    try:
        source = file.open("rb")
    except OSError as error:
        raise CallFailed(f"{file} cannot be read: {error.strerror}") from None
    with source:
        if source.seekable():
            yield source
            return
        with tempfile.TemporaryFile() as kept:
            shutil.copyfileobj(source, kept)
            yield kept


@contextmanager
def sending(body: BinaryIO) -> Iterator[Callable[[int], None]]:
    """A bar that is told how much has been sent."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    total = body.seek(0, 2)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    terminal = messages()
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bar = progress.add_task("sending", total=total)
        yield lambda sent: progress.update(
            bar, completed=sent, description="sending" if sent < total else "checking and storing"
        )


def _ingested(answer: Json) -> None:
    print_facts((name, answer[name]) for name in ("accepted", "duplicates", "replaced", "rejected"))
    task = answer["task"]
    print_facts([(task["name"], f"{task['counts']['train']} train, {task['counts']['eval']} eval")])
    if errors := answer["errors"]:
        rows = ((error["line"], error["code"], error["detail"]) for error in errors[:SHOWN_ERRORS])
        print_table(("line", "code", "detail"), rows, right=["line"])
        if answer["rejected"] > SHOWN_ERRORS:
            remark(f"These are the first of {answer['rejected']} rejected rows; --json shows a hundred.")
