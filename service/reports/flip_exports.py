"""The flip ledger as CSV and NDJSON, sent piece by piece."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from service.content_negotiation import preferred
from service.db import session_scope
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


def wanted_format(accept: str | None) -> Format:
    """Returns the format that the header `Accept` prefers, JSON where it does not say."""
    best = preferred(accept, list(MEDIA_TYPES.values()))
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
