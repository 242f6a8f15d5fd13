"""The buffer as a query over replay admissions, against its definition in memory."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from scipy.stats import chisquare
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import session_scope
from service.examples.queries import fresh_rows, rows_by_id
from service.models import Model, Version, VersionTask
from service.registry.queries import get_model
from service.replay import queries
from service.replay.commands import admit_examples
from service.replay.queries import read_buffer
from service.replay.quotas import Candidate, priority, select
from service.tasks.queries import get_task
from tests.scenes import World


@dataclass
class Lineages:
    """Makes versions that learn tasks without training, to look at the buffers they hand on."""

    world: World
    model_name: str = "triage"

    def learn(self, session: Session, *, parent: Sequence[int], task: str) -> list[int]:
        """Adds a version that learnt all of `task` on top of a lineage; returns the longer lineage."""
        model = self.model(session)
        model.last_version += 1
        number = model.last_version
        task_id = get_task(session, model=model, task=task).id
        session.add(
            Version(
                tenant_id="acme", model_id=model.id, number=number, parent=parent[-1], lineage=[*parent, number],
                parameters={}, training={}, cut=model.last_batch, labels=[], statistics={}, provenance={},
            )
        )  # fmt: skip
        session.flush()
        rows = fresh_rows(session, task_id=task_id, after_batch=0, up_to_batch=model.last_batch)
        count = admit_examples(session, model=model, version=number, task=task, examples=rows)
        session.add(
            VersionTask(
                tenant_id="acme", model_id=model.id, version=number, task_id=task_id, after_batch=0,
                up_to_batch=model.last_batch, rows=count,
            )
        )  # fmt: skip
        session.flush()
        return [*parent, number]

    def model(self, session: Session) -> Model:
        """The model of the scene."""
        return get_model(session, model=self.model_name)

    def buffer(
        self, session: Session, lineage: Sequence[int], capacity: int | None = None
    ) -> list[Candidate]:
        """The buffer the lineage hands on."""
        model = self.model(session)
        return list(
            read_buffer(
                session, model=model, lineage=lineage, cut=model.last_batch, capacity=capacity
            ).entries
        )


def rows(label: str, count: int, *, start: int = 0) -> list[dict[str, object]]:
    """Train rows with distinct texts."""
    return [
        {"text": f"{label} number {n}", "label": label, "split": "train", "id": f"{label}-{n}"}
        for n in range(start, start + count)
    ]


@pytest.fixture
def lineages(world: World) -> Lineages:
    """A model with three tasks of very different sizes."""
    world.model(replay={"capacity": 12})
    for task, labels in (("small", {"a": 2, "b": 40}), ("large", {"c": 100, "d": 90}), ("tiny", {"e": 1})):
        world.ok(world.client.put(f"/v1/models/triage/tasks/{task}"))
        world.examples(task, [row for label, count in labels.items() for row in rows(label, count)])
    return Lineages(world)


@pytest.fixture
def worker_session(lineages: Lineages) -> Session:
    """A worker's session on the scene."""
    with session_scope(tenant="acme", role="worker") as session:
        yield session


def test_the_query_gives_the_buffer_of_the_definition_for_every_capacity(
    lineages: Lineages, worker_session: Session
) -> None:
    lineage = [0]
    for task in ("small", "large", "tiny"):
        lineage = lineages.learn(worker_session, parent=lineage, task=task)
    model = lineages.model(worker_session)
    learnt = worker_session.execute(text("SELECT stratum, priority, example_id FROM replay_entries")).all()
    everything = [Candidate(stratum=row[0], priority=row[1], example_id=row[2]) for row in learnt]
    for capacity in (0, 1, 3, 5, 7, 12, 50, 51, 140, 232, 233, 234, 1000):
        expected = select(everything, capacity)
        assert lineages.buffer(worker_session, lineage, capacity) == expected, capacity
        assert len(expected) == min(capacity, 233)
    assert model.replay["capacity"] == 12


@pytest.mark.parametrize("lowest", [0, 1, 2, 3])
def test_a_stratum_that_several_versions_taught_is_the_one_of_the_definition(
    lineages: Lineages, worker_session: Session, lowest: int
) -> None:
    model = lineages.model(worker_session)
    model.replay = {**model.replay, "policy": "reservoir"}
    lineage = [0]
    for task in ("small", "large", "large", "tiny"):
        lineage = lineages.learn(worker_session, parent=lineage, task=task)
    # What one version admitted comes before all else: nothing but reading it further finds the rest of it.
    worker_session.execute(text("SET LOCAL ROLE palimpsest_owner"))
    worker_session.execute(
        text("UPDATE replay_entries SET priority = priority / 1e6 WHERE version = :version"),
        {"version": lowest},
    )
    worker_session.execute(text("SET LOCAL ROLE palimpsest_worker"))
    learnt = worker_session.execute(text("SELECT stratum, priority, example_id FROM replay_entries")).all()
    everything = [Candidate(stratum=row[0], priority=row[1], example_id=row[2]) for row in learnt]
    for capacity in (1, 5, 41, 42, 43, 100, 189, 191, 232, 233, 500):
        assert lineages.buffer(worker_session, lineage, capacity) == select(everything, capacity), capacity


def test_a_stratum_taught_by_many_versions_is_not_read_to_its_quota_in_each(
    world: World, lineages: Lineages, worker_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        world.ok(world.client.put(f"/v1/models/triage/tasks/part-{number}"))
        world.examples(f"part-{number}", rows(f"label-{number}", 60))
    model = lineages.model(worker_session)
    model.replay = {**model.replay, "policy": "reservoir"}
    lineage = [0]
    for number in range(6):
        lineage = lineages.learn(worker_session, parent=lineage, task=f"part-{number}")
    offered: list[Candidate] = []
    keep = queries._Admissions._offer
    monkeypatch.setattr(
        queries._Admissions,
        "_offer",
        lambda admissions, candidate: (offered.append(candidate), keep(admissions, candidate)),
    )
    assert len(lineages.buffer(worker_session, lineage, 60)) == 60
    assert len(offered) < 200  # six times sixty, were each version read as far as the buffer could reach


def test_quotas_stay_exact_while_strata_grow(lineages: Lineages, worker_session: Session) -> None:
    lineage = lineages.learn(worker_session, parent=[0], task="small")
    first = lineages.buffer(worker_session, lineage)
    assert sorted(_sizes(first).values()) == [2, 10]
    lineage = lineages.learn(worker_session, parent=lineage, task="large")
    second = lineages.buffer(worker_session, lineage)
    assert sorted(_sizes(second).values()) == [2, 3, 3, 4]
    kept = {entry.example_id for entry in second}
    shrunk = [entry for entry in first if entry.example_id in kept]
    for name in {entry.stratum for entry in first}:  # a smaller quota keeps the lowest priorities
        before = [entry for entry in first if entry.stratum == name]
        after = [entry for entry in shrunk if entry.stratum == name]
        assert after == before[: len(after)]


def _sizes(buffer: Sequence[Candidate]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in buffer:
        sizes[entry.stratum] = sizes.get(entry.stratum, 0) + 1
    return sizes


def test_rollback_gives_the_old_buffer_back_and_a_branch_has_its_own(
    lineages: Lineages, worker_session: Session
) -> None:
    first = lineages.learn(worker_session, parent=[0], task="small")
    before = lineages.buffer(worker_session, first)
    main = lineages.learn(worker_session, parent=first, task="large")
    branch = lineages.learn(worker_session, parent=first, task="tiny")
    assert lineages.buffer(worker_session, first) == before
    in_main = {entry.stratum for entry in lineages.buffer(worker_session, main)}
    in_branch = {entry.stratum for entry in lineages.buffer(worker_session, branch)}
    assert len(in_main) == 4
    assert len(in_branch) == 3
    assert in_main & in_branch == {entry.stratum for entry in before}


def test_an_erased_example_is_gone_and_the_next_in_rank_steps_in(lineages: Lineages) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        lineage = lineages.learn(session, parent=[0], task="small")
        before = lineages.buffer(session, lineage)
        longer = lineages.buffer(session, lineage, capacity=13)
        victim = next(rows_by_id(session, [before[-1].example_id]))
        public = session.scalar(text("SELECT external_id FROM examples WHERE id = :id"), {"id": victim.id})
    assert lineages.world.client.delete(f"/v1/models/triage/tasks/small/examples/{public}").status_code == 204
    with session_scope(tenant="acme", role="worker") as session:
        after = lineages.buffer(session, lineage)
    assert len(after) == len(before)
    assert set(after) - set(before) == set(longer) - set(before)
    assert set(before) - set(after) == {before[-1]}


def test_a_corrected_row_leaves_the_buffer_until_it_is_learnt_again(lineages: Lineages) -> None:
    with session_scope(tenant="acme", role="worker") as session:
        lineage = lineages.learn(session, parent=[0], task="tiny")
        assert len(lineages.buffer(session, lineage)) == 1
        cut = lineages.model(session).last_batch
    lineages.world.examples("tiny", [{"id": "e-0", "text": "e number 0", "label": "f", "split": "train"}])
    with session_scope(tenant="acme", role="worker") as session:
        assert lineages.buffer(session, lineage) == []
        model = lineages.model(session)
        assert len(read_buffer(session, model=model, lineage=lineage, cut=cut).entries) == 1


def test_the_same_data_gives_the_same_buffer_whatever_the_order_of_arrival_and_the_ids(world: World) -> None:
    chosen = []
    for order in (1, 2):
        name = f"model-{order}"
        world.model(name, replay={"capacity": 15})
        world.ok(world.client.put(f"/v1/models/{name}/tasks/one"))
        shuffled = rows("a", 60) + rows("b", 60)
        random.Random(order).shuffle(shuffled)
        for start in range(0, 120, 40):
            world.examples("one", shuffled[start : start + 40], model=name)
        with session_scope(tenant="acme", role="worker") as session:
            model = get_model(session, model=name)
            lineage = Lineages(world, model_name=name).learn(session, parent=[0], task="one")
            buffer = read_buffer(session, model=model, lineage=lineage, cut=model.last_batch)
            chosen.append({row.content["text"] for row in rows_by_id(session, buffer.example_ids)})
    assert len(chosen[0]) == 15
    assert chosen[0] == chosen[1]


def test_every_example_is_rehearsed_equally_often_over_many_seeds(lineages: Lineages) -> None:
    """Exact uniformity, through the database: 300 seeds, 40 examples of one stratum, 10 chosen each time."""
    with session_scope(tenant="acme", role="worker") as session:
        stored = session.execute(
            text("SELECT id, task_id, content_hash FROM examples WHERE label = 'b'")
        ).all()
    counts = dict.fromkeys([row[0] for row in stored], 0)
    for seed in range(300):
        ranked = [Candidate("b", priority(seed, row[1], bytes(row[2])), row[0]) for row in stored]
        for entry in select(ranked, 10):
            counts[entry.example_id] += 1
    assert sum(counts.values()) == 3000
    assert chisquare(list(counts.values())).pvalue > 0.001
