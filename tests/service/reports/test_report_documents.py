"""Reports are kept as bytes and must never be older than what they stand on."""

import numpy as np
import pytest
from sqlalchemy import select, text

from service.db import session_scope
from service.evaluations.commands import ensure_eval_set, record_score
from service.evaluations.outcomes import Outcomes
from service.models import Example, Model, Task, Version, VersionTask
from service.registry.commands import promote
from service.registry.queries import get_model
from service.reports import documents, queries
from service.reports.documents import KeptDocuments
from tests.scenes import World, make_client

ROWS = 8
MATRIX = "/v1/models/triage/reports/forgetting"


@pytest.fixture(autouse=True)
def kept(monkeypatch) -> KeptDocuments:
    """Documents of this test alone."""
    fresh = KeptDocuments(2**20)
    monkeypatch.setattr(documents, "kept_documents", lambda: fresh)
    return fresh


@pytest.fixture
def built(monkeypatch) -> list[int]:
    """The versions whose matrix was made anew."""
    made: list[int] = []
    build = queries.forgetting

    def noted(session, *, model, version):
        made.append(version)
        return build(session, model=model, version=version)

    monkeypatch.setattr(queries, "forgetting", noted)
    return made


@pytest.fixture
def triage(world: World) -> World:
    """A champion 2 after 1, both scored on `refunds` and `returns`."""
    teach(world, tenant="acme")
    return world


def teach(world: World, *, tenant: str, right: int = ROWS) -> None:
    world.model()
    for task in ("refunds", "returns"):
        world.ok(world.client.put(f"/v1/models/triage/tasks/{task}"))
        rows = [{"text": f"{task} {turn}", "label": "a", "split": "eval"} for turn in range(ROWS)]
        world.examples(task, rows)
    with session_scope(tenant=tenant, role="worker") as session:
        model = get_model(session, model="triage", lock=True)
        for number, task in ((1, "refunds"), (2, "returns")):
            add_version(session, model, number, taught=task)
            score(session, model, number, "refunds", right=right - number)
            score(session, model, number, "returns", right=number)
            promote(
                session,
                model=model,
                version=number,
                kind="promoted",
                actor="gate",
                reason=None,
                update_id=None,
            )


def add_version(session, model: Model, number: int, *, taught: str) -> None:
    session.add(
        Version(
            tenant_id=model.tenant_id, model_id=model.id, number=number, parent=number - 1,
            lineage=list(range(number + 1)), strategy="replay", parameters={}, training={}, cut=model.last_batch,
            labels=["a"], statistics={}, provenance={},
        )
    )  # fmt: skip
    session.flush()
    task_id = session.scalars(select(Task.id).where(Task.name == taught, Task.model_id == model.id)).one()
    session.add(
        VersionTask(
            tenant_id=model.tenant_id, model_id=model.id, version=number, task_id=task_id, after_batch=0,
            up_to_batch=model.last_batch, rows=1,
        )
    )  # fmt: skip
    model.last_version = number
    session.flush()


def score(session, model: Model, version: int, task: str, *, right: int, rows: int = ROWS) -> None:
    task_id = session.scalars(select(Task.id).where(Task.name == task, Task.model_id == model.id)).one()
    ids = session.scalars(select(Example.id).where(Example.task_id == task_id).order_by(Example.id)).all()[
        :rows
    ]
    correct = np.arange(len(ids)) < right
    outcomes = Outcomes(np.array(ids), correct, np.zeros(len(ids)), np.ones(len(ids)))
    eval_set = ensure_eval_set(session, model=model, task_id=task_id, example_ids=ids)
    record_score(session, model=model, version=version, eval_set=eval_set, outcomes=outcomes)


def matrix(world: World, **params: object) -> dict:
    return world.ok(world.client.get(MATRIX, params=params))


def test_a_matrix_is_made_once_while_nothing_changes(triage, built):
    first = matrix(triage)
    assert first["matrix"] == [[None, None], [7 / 8, 1 / 8], [6 / 8, 2 / 8]]
    assert matrix(triage) == first == matrix(triage, version=2)
    assert built == [2]


def test_new_scores_show_at_once(triage, built):
    assert matrix(triage)["matrix"][1] == [7 / 8, 1 / 8]
    with session_scope(tenant="acme", role="worker") as session:
        score(session, get_model(session, model="triage"), 0, "refunds", right=3)
    assert matrix(triage)["matrix"][0] == [3 / 8, None]
    assert built == [2, 2]


def test_a_new_champion_shows_at_once(triage):
    assert matrix(triage)["versions"] == [0, 1, 2]
    with session_scope(tenant="acme", role="worker") as session:
        model = get_model(session, model="triage", lock=True)
        add_version(session, model, 3, taught="refunds")
        score(session, model, 3, "refunds", right=8)
        promote(session, model=model, version=3, kind="promoted", actor="gate", reason=None, update_id=None)
    assert matrix(triage)["matrix"][3] == [1.0, None]


def test_a_rollback_shows_the_lineage_it_returns_to(triage):
    assert matrix(triage)["version"] == 2
    triage.ok(triage.client.post("/v1/models/triage/rollback", json={"reason": "worse"}))
    assert (matrix(triage)["version"], matrix(triage)["versions"]) == (1, [0, 1])


def test_an_erased_task_is_gone_at_once(triage):
    assert matrix(triage)["tasks"] == ["refunds", "returns"]
    assert triage.client.delete("/v1/models/triage/tasks/refunds").status_code == 204
    assert matrix(triage)["tasks"] == ["returns"]
    assert [task["task"] for task in report(triage)["tasks"]] == ["returns"]


def test_a_guard_shows_at_once_and_its_end_too(triage):
    before = matrix(triage)
    triage.ok(triage.client.put("/v1/models/triage/tasks/spam"))
    triage.examples("spam", [{"text": f"spam {turn}", "label": "a", "split": "eval"} for turn in range(ROWS)])
    with session_scope(tenant="acme", role="worker") as session:
        for version in (1, 2):
            score(session, get_model(session, model="triage"), version, "spam", right=4 * version)
    unguarded = matrix(triage)
    triage.ok(triage.client.put("/v1/models/triage/tasks/spam", json={"guarded": True}))
    guarded = matrix(triage)
    triage.ok(triage.client.put("/v1/models/triage/tasks/spam", json={"guarded": False}))
    assert unguarded["tasks"] == [*before["tasks"], "spam"]
    assert guarded["summary"] != unguarded["summary"] == matrix(triage)["summary"]


def test_a_renamed_task_has_its_new_name_at_once(triage):
    # No call renames a task, but nothing else keeps the name from changing.
    assert matrix(triage)["tasks"] == ["refunds", "returns"]
    with session_scope(tenant="acme") as session:
        session.execute(text("UPDATE tasks SET name = 'money-back' WHERE name = 'refunds'"))
    assert matrix(triage)["tasks"] == ["money-back", "returns"]


def report(world: World) -> dict:
    return world.ok(world.client.get("/v1/models/triage/versions/2/report"))


def test_another_confidence_shows_in_the_report_at_once(triage):
    before = report(triage)["tasks"][0]["delta_ci"]
    assert report(triage)["tasks"][0]["delta_ci"] == before
    triage.ok(triage.client.patch("/v1/models/triage", json={"gate": {"confidence": 0.8}}))
    assert report(triage)["tasks"][0]["delta_ci"] != before


def test_two_tenants_models_of_one_name_have_reports_of_their_own(triage):
    other = World(make_client("globex"))
    assert other.client.get(MATRIX).status_code == 404
    teach(other, tenant="globex", right=5)
    assert matrix(triage)["matrix"][1] == [7 / 8, 1 / 8]
    assert matrix(other)["matrix"][1] == [4 / 8, 1 / 8]


def test_a_purged_models_name_starts_anew(triage):
    assert matrix(triage)["versions"] == [0, 1, 2]
    assert triage.client.delete("/v1/models/triage").status_code == 204
    triage.ok(triage.client.post("/v1/models/triage/purge"))
    assert triage.client.get(MATRIX).status_code == 404
    triage.model()
    assert matrix(triage)["versions"] == [0]


@pytest.mark.usefixtures("database")
def test_scores_can_only_be_added():
    """What the number of scores says of them rests on this."""
    with session_scope() as session:
        for role in ("palimpsest_app", "palimpsest_worker"):
            for table in ("scores", "version_tasks", "eval_sets"):
                for privilege in ("UPDATE", "DELETE", "TRUNCATE"):
                    held = text("SELECT has_table_privilege(:role, :table, :privilege)")
                    given = {"role": role, "table": table, "privilege": privilege}
                    assert not session.scalar(held, given), given


def test_documents_leave_in_the_order_of_their_last_use():
    kept = KeptDocuments(10)
    kept.keep(("a",), "now", b"aaaa")
    kept.keep(("b",), "now", b"bbbb")
    assert kept.get(("a",), "now") == b"aaaa"
    kept.keep(("c",), "now", b"cccc")
    assert (kept.get(("a",), "now"), kept.get(("b",), "now")) == (b"aaaa", None)
    kept.keep(("a",), "later", b"AA")
    assert (kept.get(("a",), "now"), kept.get(("a",), "later")) == (None, b"AA")
    kept.keep(("d",), "now", b"too large to be kept")
    assert kept.get(("d",), "now") is None
