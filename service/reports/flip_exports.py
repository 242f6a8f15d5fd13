"""The flip ledger as CSV and NDJSON, sent piece by piece."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from service.content_negotiation import preferred
from service.db import session_scope
from service.errors import Unavailable
from service.reports.flips import Ledger
from service.reports.schemas import Flip
from service.turns import in_turn

Format = Literal["json", "csv", "ndjson"]
MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
}
FLIPS_PER_PIECE = 200
MAX_EXPORTS = 8
SEND_SECONDS = 60.0
COLUMNS = (
    "task", "kind", "id", "expected",
    "before_label", "before_confidence", "before_score", "after_label", "after_confidence", "after_score",
    "negative_flips", "positive_flips", "negative_at", "positive_at", "content",
)  # fmt: skip
CONTENT: dict[str, Any] = {
    MEDIA_TYPES["csv"]: {
        "schema": {"type": "string", "description": f"RFC 4180 with the header line {','.join(COLUMNS)}"}
    },
    MEDIA_TYPES["ndjson"]: {
        "schema": {
            "type": "string",
            "description": "One flip per line, in the shape it has in `data`",
            "contentMediaType": MEDIA_TYPES["ndjson"],
        }
    },
}


class ExportResponse(StreamingResponse):
    """An export on its way. While it lasts it holds its ledger in memory, so that few may last at once, and none for ever."""

    open_now: ClassVar[int] = 0

    def __init__(self, ledger: Ledger, *, tenant: str, form: Format) -> None:
        """Raises `Unavailable` while `MAX_EXPORTS` others are being sent by this process."""
        if ExportResponse.open_now >= MAX_EXPORTS:
            raise Unavailable(
                f"{MAX_EXPORTS} exports are being sent already; ask again when one has ended.",
                code="too_many_exports",
                headers={"Retry-After": "10"},
            )
        name = file_name(ledger, form)
        super().__init__(
            export(ledger, tenant=tenant, form=form), media_type=MEDIA_TYPES[form],
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"},
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the export; a client that does not take a piece within `SEND_SECONDS` is given up."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        ExportResponse.open_now += 1
        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            ExportResponse.open_now -= 1


def wanted_format(accepts: Sequence[str]) -> Format:
    """Returns the format that the headers `Accept` prefer, JSON where they do not say."""
    best = preferred(",".join(accepts) or None, list(MEDIA_TYPES.values()))
    return next(form for form, media_type in MEDIA_TYPES.items() if media_type == best)


def file_name(ledger: Ledger, form: Format) -> str:
    """Returns the name to save an export under. Names of models are safe in a header and on disk."""
    return f"{ledger.model.name}-v{ledger.before.number}-v{ledger.after.number}-flips.{form}"


async def export(ledger: Ledger, *, tenant: str, form: Format) -> AsyncIterator[str]:
    """Yields the whole ledger as text, a few hundred flips at a time.

    Each piece is read in a transaction and a turn of its own, so that a slow reader holds neither; examples that are
    erased meanwhile are left out.
    """
    head, render = WRITERS[form]
    yield head
    for start in range(0, len(ledger), FLIPS_PER_PIECE):
        async with in_turn():
            flips = await run_in_threadpool(_piece, ledger, tenant, start)
        yield render(flips)


def _piece(ledger: Ledger, tenant: str, start: int) -> list[Flip]:
    with session_scope(tenant=tenant) as session:
        return ledger.read(session, start=start, stop=start + FLIPS_PER_PIECE)


def ndjson(flips: Iterable[Flip]) -> str:
    """Returns flips as lines of JSON."""
    return "".join(f"{flip.model_dump_json()}\n" for flip in flips)


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Returns rows as CSV (RFC 4180); empty cells for None, and texts safe to open in a spreadsheet."""
    text = io.StringIO()
    csv.writer(text).writerows(
        [inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def inert(text: str) -> str:
    """Returns the text such that no spreadsheet takes it for a formula: behind an apostrophe where it looks like one.

    After OWASP's "CSV Injection": a cell beginning with = + - @, also in full width, or with a tab or line break that
    some strip. Blanks and byte order marks in front do not count, for some strip those too.
    """
    bare = text.lstrip(" \u00a0\ufeff")
    return f"'{text}" if bare.startswith(tuple("=+-@\t\r\n＝＋－＠")) else text


def _row(flip: Flip) -> tuple[object, ...]:
    """A flip in the order of `COLUMNS`."""
    before, after, lineage = flip.before, flip.after, flip.lineage
    return (
        flip.task, flip.kind, flip.id, flip.expected,
        before.label, before.confidence, before.score, after.label, after.confidence, after.score,
        lineage.negative, lineage.positive, _numbers(lineage.negative_at), _numbers(lineage.positive_at),
        _content(flip.content),
    )  # fmt: skip


def _numbers(versions: Iterable[int]) -> str:
    return " ".join(map(str, versions))


def _content(content: Mapping[str, Any]) -> str:
    """A plain text as it is, anything richer as JSON."""
    return content["text"] if content.keys() == {"text"} else json.dumps(content, ensure_ascii=False)


def _csv(flips: Iterable[Flip]) -> str:
    return csv_lines(map(_row, flips))


WRITERS: Mapping[Format, tuple[str, Callable[[Iterable[Flip]], str]]] = {
    "csv": (csv_lines([COLUMNS]), _csv),
    "ndjson": ("", ndjson),
}
