"""The replay buffer as `bench.ingest` reads it: lineages over stored examples, timed reads, and the definition in memory.

Nothing is trained: a version here is its row and the replay admissions that the product's command makes for it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.db import session_scope
from service.examples.queries import fresh_rows, rows_by_id
from service.models import Model, Version, VersionTask
from service.registry.queries import get_model
from service.replay.commands import admit_examples
from service.replay.queries import Buffer, read_buffer
from service.replay.quotas import Candidate, priority, select, stratum
from service.tasks.queries import get_task


@dataclass(frozen=True, slots=True)
class Lineage:
    """A model whose version `n` learnt the `n`-th of its tasks from version `n - 1`."""

    database_url: str
    tenant: str
    model: str
    tasks: Sequence[str]

    @property
    def versions(self) -> list[int]:
        """The last version's ancestors from the base, version 0, to itself."""
        return list(range(len(self.tasks) + 1))

    def learn(self) -> int:
        """Adds the versions, each in a transaction of its own; returns how many examples they learnt together."""
        return sum(self._learn(number, task) for number, task in enumerate(self.tasks, start=1))

    def read(self) -> tuple[Buffer, float, float]:
        """The buffer that the last version hands on, and the seconds that it and then its rows took to read."""
        with session_scope(tenant=self.tenant, role="worker", database_url=self.database_url) as session:
            model = get_model(session, model=self.model)
            began = time.perf_counter()
            buffer = read_buffer(session, model=model, lineage=self.versions, cut=model.last_batch)
            read = time.perf_counter()
            for _ in rows_by_id(session, buffer.example_ids):
                pass
            return buffer, read - began, time.perf_counter() - read

    def defined(self) -> list[Candidate]:
        """The buffer by its definition: `quotas.select` over every train row of every task, in memory."""
        with session_scope(tenant=self.tenant, role="worker", database_url=self.database_url) as session:
            model = get_model(session, model=self.model)
            candidates = (entry for task in self.tasks for entry in _candidates(session, model, task))
            return select(candidates, int(model.replay["capacity"]))

    def _learn(self, number: int, task: str) -> int:
        with session_scope(tenant=self.tenant, role="worker", database_url=self.database_url) as session:
            model = get_model(session, model=self.model)
            model.last_version, cut = number, model.last_batch
            task_id = get_task(session, model=model, task=task).id
            session.add(
                Version(
                    tenant_id=model.tenant_id, model_id=model.id, number=number, parent=number - 1,
                    lineage=list(range(number + 1)), parameters={}, training={}, cut=cut, labels=[], statistics={},
                    provenance={},
                )
            )  # fmt: skip
            session.flush()
            rows = fresh_rows(session, task_id=task_id, after_batch=0, up_to_batch=cut)
            learnt = admit_examples(session, model=model, version=number, task=task, examples=rows)
            session.add(
                VersionTask(
                    tenant_id=model.tenant_id, model_id=model.id, version=number, task_id=task_id, after_batch=0,
                    up_to_batch=cut, rows=learnt,
                )
            )  # fmt: skip
            return learnt


def _candidates(session: Session, model: Model, task: str) -> Iterator[Candidate]:
    """What every train row of the task offers, by the pure functions alone."""
    task_id = get_task(session, model=model, task=task).id
    for row in fresh_rows(session, task_id=task_id, after_batch=0, up_to_batch=model.last_batch):
        yield Candidate(
            stratum=stratum(model.replay["policy"], task, row.label),
            priority=priority(model.buffer_seed, task, row.content_hash),
            example_id=row.id,
        )


def mismatches(read: Sequence[Candidate], defined: Sequence[Candidate]) -> int:
    """How many examples stand in one buffer and not in the other, or in another stratum or rank of it."""
    return len(set(read) ^ set(defined))
