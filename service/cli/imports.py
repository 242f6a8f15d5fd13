"""`palimpsest version import`: an adapter that was trained elsewhere."""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from service.cli import flips
from service.cli.calling import Call, ModelName, over_http
from service.cli.examples import CHUNK_BYTES, opened, sending
from service.cli.problems import CallFailed
from service.cli.updates import Patience, Promotion, Wait, follow
from service.cli.watching import PATIENCE_SECONDS

app = flips.app  # theirs, with one more command
TAR = "application/x-tar"
CONFIG = "adapter_config.json"
FILES = (CONFIG, "adapter_model.safetensors", "head.safetensors", "labels.json", "version.json")


class Rows(StrEnum):
    """What the adapter has seen of the tasks' present train rows."""

    LEARNT = "learnt"
    FRESH = "fresh"


@over_http(app, "import")
def import_version(
    call: Call,
    model: ModelName,
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_TAR", help="Folder that PEFT saved, with head and labels; or a tar of it.")
    ],
    tasks: Annotated[
        list[str], typer.Option("--tasks", metavar="TASK,…", help="Tasks that it has learnt; may be repeated.")
    ],
    rows: Annotated[
        Rows | None,
        typer.Option(
            help="learnt: it was trained on the tasks' present train rows. fresh: on other data, so these are still new.",
            show_default="learnt",
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(help="Version it was trained on from, 0 being the base; or `champion`.", show_default="0"),
    ] = None,
    promotion: Annotated[
        Promotion | None,
        typer.Option(help="The verdict, a person, or nobody decides.", show_default="gate"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens to which texts are cut.", show_default="as version.json says, or 128"),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="An object to keep with the update.", show_default=False)
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="The same key and request ask for one import only.", show_default="a new one"),
    ] = None,
    wait: Wait = False,
    patience: Patience = PATIENCE_SECONDS,
) -> None:  # fmt: skip
    """Import an adapter that was trained elsewhere, or downloaded, as a version: scored and judged as any other.

    Example: `palimpsest version import triage ./my-adapter --tasks billing --wait`
    """
    from service.cli.client import path

    with _tar_of(source) as body, sending(body) as sent:

        def pieces() -> Iterator[bytes]:  # from the beginning for every attempt
            body.seek(0)
            while piece := body.read(CHUNK_BYTES):
                yield piece
                sent(body.tell())

        update = call.api.stream(
            path("models", model, "versions:import"), pieces, media_type=TAR, idempotency_key=idempotency_key,
            tasks=[name for names in tasks for name in names.split(",") if name], rows=rows, parent=parent,
            promotion=promotion, max_length=max_length, metadata=metadata,
        )  # fmt: skip
    follow(call, update, wait=wait, patience_seconds=patience)


@contextmanager
def _tar_of(source: Path) -> Iterator[BinaryIO]:
    """The tar, made of the adapter's files where a folder is given: the same files, the same bytes."""
    if not source.is_dir():
        with opened(source) as body:
            yield body
        return
    if not (source / CONFIG).is_file():
        raise CallFailed(f"{source} holds no {CONFIG}; give the folder that PEFT's save_pretrained wrote.")
    with tempfile.TemporaryFile() as body:
        with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in FILES:
                if (source / name).is_file():
                    _add(tar, source / name)
        yield body


def _add(tar: tarfile.TarFile, path: Path) -> None:
    entry = tarfile.TarInfo(path.name)
    try:
        entry.size = path.stat().st_size
        with path.open("rb") as file:
            tar.addfile(entry, file)
    except OSError as error:
        raise CallFailed(f"{path} cannot be read: {error.strerror}") from None
