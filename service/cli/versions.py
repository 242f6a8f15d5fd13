"""`palimpsest version`: what updates yielded."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.calling import (
    DEFAULT_LIMIT,
    Call,
    Json,
    Limit,
    ModelName,
    VersionName,
    over_http,
    version_number,
)
from service.cli.noise import noise_in_short
from service.cli.output import (
    fixed,
    messages,
    moment,
    print_facts,
    print_gap,
    print_json,
    print_list,
    print_table,
    size,
)
from service.cli.problems import CallFailed, Unreachable
from service.cli.verdicts import decision

if TYPE_CHECKING:
    import httpx

app = typer.Typer(no_args_is_help=True, help="List, show and download versions, and see what they broke.")


@over_http(app, "list")
def list_versions(call: Call, model: ModelName, limit: Limit = DEFAULT_LIMIT) -> None:
    """List a model's versions, from the base on."""
    page = call.api.pages(path_of_version(model), limit=limit)
    columns = ("version", "parent", "strategy", "tasks", "verdict", "aliases", "adapter", "created")

    def view(page: Json) -> None:
        rows = (
            (
                version["version"], version["parent"], version["strategy"], version["tasks"],
                decision(version["verdict"]), version["aliases"],
                version["artifact"] and size(version["artifact"]["bytes"]), moment(version["created_at"]),
            )
            for version in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("version", "parent", "adapter"))

    call.show(page, view)


@over_http(app, "show")
def show_version(call: Call, model: ModelName, version: VersionName = "champion") -> None:
    """Show lineage, strategy, parameters, seed, checksum and scores of a version."""

    def view(found: Json) -> None:
        repeated = found["training"].get("repeats", 1) > 1
        report = call.api.get(path_of_version(model, found["version"], "report")) if repeated else None
        _facts(found, other_seeds=noise_in_short(report) if report else None)

    call.show(call.api.get(path_of_version(model, version_number(call, model, version))), view)


@over_http(app, "download")
def download_version(
    call: Call,
    model: ModelName,
    version: VersionName = "champion",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to.", show_default="MODEL-vVERSION.tar"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Download a version's adapter: a tar that holds what `PeftModel.from_pretrained` loads. Its checksum is checked."""
    number = version_number(call, model, version)
    target = output or Path(f"{model}-v{number}.tar")
    if target.exists() and not force:
        raise CallFailed(f"{target} is there already; --force replaces it.")
    with call.api.download(path_of_version(model, number, "adapter")) as response:
        read, checksum = _keep(response, target)
    if call.as_json:
        print_json({"path": str(target), "bytes": read, "sha256": checksum})
    else:
        typer.echo(f"{target}: {size(read)}, sha256 {checksum}")


def _keep(response: "httpx.Response", target: Path) -> tuple[int, str]:
    """Writes the body to the file once its checksum is right; returns bytes and SHA-256."""
    from rich.progress import Progress

    expected, length = response.headers.get("ETag", "").strip('"'), response.headers.get("Content-Length")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, terminal = hashlib.sha256(), messages()
    try:
        with (
            partial.open("wb") as file,
            Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress,
        ):
            bar = progress.add_task("downloading", total=None if length is None else float(length))
            for piece in response.iter_bytes():
                file.write(piece)
                digest.update(piece)
                progress.advance(bar, len(piece))
            read = file.tell()
        if digest.hexdigest() != expected:
            raise Unreachable(f"What arrived is not what was sent: its SHA-256 is not {expected}. Try again.")
        partial.replace(target)
    except OSError as error:
        raise CallFailed(f"{target} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return read, expected


def _facts(version: Json, *, other_seeds: str | None) -> None:
    artifact = version["artifact"]
    print_facts([
        ("version", version["version"]),
        ("model", version["model"]),
        ("aliases", version["aliases"]),
        ("lineage", " → ".join(map(str, version["lineage"]))),
        ("update", version["update"]),
        ("strategy", version["strategy"]),
        ("parameters", version["parameters"]),
        ("training", version["training"]),
        ("seed", version["seed"]),
        *([("other seeds", other_seeds)] if other_seeds else []),
        ("tasks", version["tasks"]),
        ("labels", version["labels"]),
        ("data cut", version["data_cut"]),
        ("adapter", artifact and f"{size(artifact['bytes'])}, sha256 {artifact['sha256']}"),
        ("verdict", decision(version["verdict"])),
        ("provenance", version["provenance"]),
        ("created", moment(version["created_at"])),
    ])  # fmt: skip
    print_gap()
    rows = ((score["task"], fixed(score["score"]), score["eval_size"]) for score in version["scores"])
    print_table(("task", "score", "eval examples"), rows, right=("score", "eval examples"))


def path_of_version(model: str, *more: str | int) -> str:
    from service.cli.client import path

    return path("models", model, "versions", *more)
