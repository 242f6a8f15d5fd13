"""Reports as the bytes that are sent, kept while nothing that they are made of has changed.

A report is kept under its *standing*: everything it depends on that can change, read anew for every answer. Scores and
what versions learnt are only ever added (the service's roles may neither change nor delete them), so that their number
says whether there are new ones. The rest is in the standing itself. Standing and report are read from one snapshot.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import Row, ScalarSelect, Text, and_, cast, func, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from service.coalescing import Coalesced
from service.config import get_settings
from service.db import session_scope
from service.models import Alias, Model, Score, Task, Update, Version
from service.registry.queries import CHAMPION, get_model, get_version
from service.reports import queries
from service.turns import in_turn_of_reads

Kind = Literal["forgetting", "update"]
Standing = Row[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which report: of the champion where there is no `version`."""

    tenant: str
    kind: Kind
    model: str
    version: int | None


class KeptDocuments:
    """The documents used last, as many as fit into `max_bytes`; each is found under its standing alone. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._documents: OrderedDict[tuple[Any, ...], tuple[Standing, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: tuple[Any, ...], standing: Standing) -> bytes | None:
        """Returns the document of that name if it was kept under this very standing."""
        with self._lock:
            kept = self._documents.get(name)
            if kept is None or kept[0] != standing:
                return None
            self._documents.move_to_end(name)
            return kept[1]

    def keep(self, name: tuple[Any, ...], standing: Standing, document: bytes) -> None:
        """Keeps the document in place of an earlier one of its name; one that is too large is not kept."""
        if len(document) > self._max_bytes:
            return
        with self._lock:
            _, earlier = self._documents.pop(name, (None, b""))
            self._documents[name] = (standing, document)
            self._bytes += len(document) - len(earlier)
            while self._bytes > self._max_bytes:
                _, (_, oldest) = self._documents.popitem(last=False)
                self._bytes -= len(oldest)


@lru_cache
def kept_documents() -> KeptDocuments:
    """The process's documents."""
    return KeptDocuments(get_settings().report_cache_bytes)


def read_document(wanted: Wanted) -> bytes:
    """Returns the report as JSON, made anew only if its standing has changed. Raises `NotFound`."""
    with session_scope(tenant=wanted.tenant) as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        standing = _standing(session, wanted)
        name = (wanted.tenant, standing.id, wanted.kind, standing.number)
        document = kept_documents().get(name, standing)
        if document is None:
            report = _BUILDERS[wanted.kind](session, model=standing.id, version=standing.number)
            document = report.model_dump_json().encode()
            kept_documents().keep(name, standing, document)
        return document


documents = Coalesced(read_document, within=in_turn_of_reads)


def _standing(session: Session, wanted: Wanted) -> Standing:
    """Reads everything in one statement, for this is all that most answers take. Raises `NotFound`."""
    champion = and_(Alias.tenant_id == Model.tenant_id, Alias.model_id == Model.id, Alias.name == CHAMPION)
    number = Alias.version if wanted.version is None else wanted.version
    of_version = and_(
        Version.tenant_id == Model.tenant_id, Version.model_id == Model.id, Version.number == number
    )
    standing = session.execute(
        select(
            Model.id, Version.number, Model.name, cast(Model.gate, Text), Version.created_at, Update.compared_with,
            cast(Update.verdict, Text), _tasks(), _scores(),
        )
        .join(Alias, champion)
        .join(Version, of_version)
        .outerjoin(Update, and_(Update.tenant_id == Version.tenant_id, Update.id == Version.update_id))
        .where(or_(Model.name == wanted.model, Model.id == wanted.model))
    ).first()  # fmt: skip
    if standing is None:
        missing = get_version(
            session, model=get_model(session, model=wanted.model), version=wanted.version or 0
        )
        raise RuntimeError(f"version {missing.number} of model {missing.model_id} has no standing")
    return standing


def _tasks() -> ScalarSelect[Any]:
    """The tasks of the model at hand: their names, which are guarded, which are gone."""
    each = func.concat_ws("\n", Task.id, Task.name, Task.guarded, Task.deleted_at.is_(None))
    return (
        select(func.array_agg(aggregate_order_by(each, Task.seq)))
        .where(Task.tenant_id == Model.tenant_id, Task.model_id == Model.id)
        .scalar_subquery()
    )


def _scores() -> ScalarSelect[int]:
    """How many scores the model at hand has."""
    of_model = and_(Score.tenant_id == Model.tenant_id, Score.model_id == Model.id)
    return select(func.count()).select_from(Score).where(of_model).scalar_subquery()


_BUILDERS: dict[Kind, Callable[..., BaseModel]] = {
    "forgetting": lambda session, **of: queries.forgetting(session, **of),
    "update": lambda session, **of: queries.version_report(session, **of),
}
