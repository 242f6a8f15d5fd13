"""`palimpsest version flips`: the very examples that changed sides."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.cli import dials
from service.cli.calling import Call, Json, Limit, ModelName, VersionName, over_http, version_number
from service.cli.examples import content_text
from service.cli.output import print_json, print_list, shortened, size
from service.cli.problems import CallFailed
from service.cli.versions import path_of_version

app = dials.app  # theirs, with one more command


class Kind(StrEnum):
    """Which way an example changed sides."""

    NEGATIVE = "negative"
    POSITIVE = "positive"


class Sort(StrEnum):
    """What comes first."""

    ID = "id"
    CONFIDENCE = "confidence"
    FLIPS = "flips"


@over_http(app, "flips")
def list_flips(
    call: Call,
    model: ModelName,
    version: VersionName = "champion",
    task: Annotated[str | None, typer.Option(help="Only this task.", show_default=False)] = None,
    kind: Annotated[Kind | None, typer.Option(help="negative: right before, wrong now.", show_default=False)] = None,
    against: Annotated[int | None, typer.Option(help="Version before.", show_default="the parent")] = None,
    label: Annotated[str | None, typer.Option(help="Only examples with this expected label.", show_default=False)] = None,
    predicted: Annotated[str | None, typer.Option(help="Only what is answered with this label now.", show_default=False)] = None,
    min_confidence: Annotated[float | None, typer.Option(help="Least confidence of the answer now.", min=0, max=1, show_default=False)] = None,
    min_flips: Annotated[int | None, typer.Option(help="Least number of flips along the lineage.", min=0, show_default=False)] = None,
    sort: Annotated[Sort, typer.Option(help="By arrival, most confident answers first, or most often flipped first.")] = Sort.ID,
    limit: Limit = 100,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write all of them to FILE.csv or FILE.ndjson instead.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """List the very examples that changed sides: text, expected, before, after."""
    where = path_of_version(model, version_number(call, model, version), "flips")
    query = {
        "task": task, "kind": kind and kind.value, "against": against, "label": label, "predicted": predicted,
        "min_confidence": min_confidence, "min_flips": min_flips, "sort": None if sort is Sort.ID else sort.value,
    }  # fmt: skip
    if output is None:
        call.show(call.api.pages(where, limit=limit, **query), _view)
        return
    written = _write(call, where, query, output)
    if call.as_json:
        print_json({"path": str(output), "bytes": written})
    else:
        typer.echo(f"{output}: {size(written)}")


def _write(call: Call, where: str, query: Json, output: Path) -> int:
    """Writes the whole list to the file, once it has come in whole; returns its bytes."""
    form = output.suffix.removeprefix(".").lower()
    if form not in {"csv", "ndjson"}:
        raise CallFailed(f"{output}: the name must end in .csv or .ndjson.")
    partial = output.with_name(f".{output.name}.part")
    try:
        with partial.open("wb") as file, call.api.download(where, format=form, **query) as response:
            for piece in response.iter_bytes():
                file.write(piece)
            written = file.tell()
        partial.replace(output)
    except OSError as error:
        raise CallFailed(f"{output} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return written


def _view(page: Json) -> None:
    columns = (
        "task",
        "kind",
        "id",
        "text",
        "expected",
        f"version {page['before']}",
        f"version {page['after']}",
    )
    rows = (
        (
            flip["task"], flip["kind"], flip["id"], shortened(content_text(flip["content"]), 60), flip["expected"],
            _answer(flip["before"]), _answer(flip["after"]),
        )
        for flip in page["data"]
    )  # fmt: skip
    print_list(page, columns, rows)


def _answer(answer: Json) -> str:
    return f"{answer['label'] or ''} {answer['confidence']:.0%}".strip()
