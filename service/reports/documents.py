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
from sqlalchemy import Row, Text, cast, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from service.coalescing import Coalesced
from service.config import get_settings
from service.db import session_scope
from service.models import Model, Score, Task, Update, Version
from service.registry.queries import get_champion, get_model, get_version
from service.reports import queries

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
        model = get_model(session, model=wanted.model)
        number = get_champion(session, model=model).version if wanted.version is None else wanted.version
        name = (wanted.tenant, model.id, wanted.kind, number)
        standing = _standing(session, model=model, version=get_version(session, model=model, version=number))
        document = kept_documents().get(name, standing)
        if document is None:
            document = _BUILDERS[wanted.kind](session, model, number).model_dump_json().encode()
            kept_documents().keep(name, standing, document)
        return document


documents = Coalesced(read_document)


def _standing(session: Session, *, model: Model, version: Version) -> Standing:
    tasks = (
        select(
            func.array_agg(
                aggregate_order_by(
                    func.concat_ws("\n", Task.id, Task.name, Task.guarded, Task.deleted_at.is_(None)),
                    Task.seq,
                )
            )
        )
        .where(Task.model_id == model.id)
        .scalar_subquery()
    )
    scores = select(func.count()).select_from(Score).where(Score.model_id == model.id).scalar_subquery()
    return session.execute(
        select(
            Model.name, cast(Model.gate, Text), Version.created_at, Update.compared_with,
            cast(Update.verdict, Text), tasks, scores,
        )
        .join(Version, (Version.tenant_id == Model.tenant_id) & (Version.model_id == Model.id))
        .outerjoin(Update, (Update.tenant_id == Version.tenant_id) & (Update.id == Version.update_id))
        .where(Model.id == model.id, Version.number == version.number)
    ).one()  # fmt: skip


def _forgetting(session: Session, model: Model, version: int) -> BaseModel:
    return queries.forgetting(session, model=model.id, version=version)


def _update(session: Session, model: Model, version: int) -> BaseModel:
    return queries.version_report(session, model=model.id, version=version)


_BUILDERS: dict[Kind, Callable[[Session, Model, int], BaseModel]] = {
    "forgetting": _forgetting,
    "update": _update,
}
