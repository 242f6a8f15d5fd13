"""Random lives of models and updates over the real API and database, with workers that are killed, stopped and late.

The quick run is the same every time; the long one is not, and prints how to repeat what it finds.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, text

from service.config import get_settings
from service.db import EVERY_TENANT, engine_for, session_scope
from service.models import Update
from service.security import create_key
from service.updates.leases import claim_next
from service.updates.states import ACTIVE, FINISHED
from tests.faults.invariants import Seen, check
from tests.faults.stepped_worker import Recording, SteppedWorker, step_pipeline
from tests.scenes import ALL_SCOPES
from tests.workers.conftest import make_rows, minilm, tiny  # noqa: F401  # fixtures; pytest finds them here
from workers.child import ChildDied, TrainingFailed
from workers.housekeeping import sweep_updates

TENANT = "acme"
WORKERS = 3
HOURS = 3600.0  # leases end when the machine says so, not while a slow one thinks
EXPECTED = {200, 201, 202, 204, 404, 409, 412, 422}
GATES = {
    "strict": {"min_new_score": 0.5, "on_inconclusive": "reject"},
    "lenient": {"max_regression": 1.0, "on_inconclusive": "hold"},
}
REPLAY = {"strict": {"capacity": 3, "policy": "balanced"}, "lenient": {"capacity": 5, "policy": "weighted"}}

models = st.sampled_from(sorted(GATES))
tasks = st.sampled_from(["one", "two"])
anyone = st.integers(0, 30)  # which of those there are, counted round
promotions = st.sampled_from(["gate", "manual", "always"])
versions = st.integers(0, 3)
corrections = st.tuples(
    st.integers(0, 11), st.integers(0, 2)
)  # number of the row, how often it was corrected
TROUBLES: dict[str, Callable[[], Exception]] = {
    "killed": lambda: ChildDied(-9),
    "full": lambda: OSError(28, "No space left on device"),
    "hopeless": lambda: TrainingFailed("loss_not_finite", "the loss is NaN"),
    "passing": lambda: TrainingFailed("out_of_memory", "CUDA out of memory"),
}


def row(number: int, correction: int) -> dict[str, object]:
    """Row `number` of any task after so many corrections; every third is an eval row, every fifth a person's."""
    return {
        "id": f"row-{number}", "text": f"row {number}, corrected {correction} times", "label": "ab"[number % 2],
        "split": "eval" if number % 3 == 0 else "train", "subject": f"person-{number % 5}", "weight": 1 + number % 4,
    }  # fmt: skip


class Lives(RuleBasedStateMachine):
    """A tenant with two models, whatever people do to them, and up to three workers, one of whom may be a ghost."""

    def __init__(self, client: TestClient, recording: Recording) -> None:
        super().__init__()
        self.client, self.recording = client, recording
        self.workers: list[SteppedWorker] = []
        self.seen = Seen()
        empty_database()
        with session_scope(tenant=TENANT) as session:
            _, key = create_key(session, tenant=TENANT, scopes=ALL_SCOPES, name="lives")
        client.headers["Authorization"] = f"Bearer {key}"

    def call(self, method: str, path: str, **request: Any) -> Response:
        """Calls the API; any answer but a plain one or a refusal of this very request is a failure."""
        answer = self.client.request(method, f"/v1{path}", **request)
        assert answer.status_code in EXPECTED, (method, path, request, answer.text)
        return answer

    @initialize(promotions=st.tuples(promotions, promotions, promotions))
    def two_models_that_learn(self, promotions: tuple[str, ...]) -> None:
        for model in GATES:
            self.create_model(model)
            for task, promotion in zip(("one", "two"), promotions, strict=False):
                body = {"tasks": [task], "promotion": promotion}
                assert self.call("POST", f"/models/{model}/updates", json=body).status_code == 202

    # What people do to models and their data.

    @rule(model=models, task=tasks, rows=st.lists(corrections, min_size=1, max_size=5))
    def ingest(self, model: str, task: str, rows: list[tuple[int, int]]) -> None:
        body = "\n".join(json.dumps(row(*one)) for one in rows)
        headers = {"Content-Type": "application/x-ndjson"}
        self.call(
            "POST", f"/models/{model}/tasks/{task}/examples?on_error=skip", content=body, headers=headers
        )

    @rule(
        model=models, what=st.sampled_from(["person", "row", "task"]), task=tasks, number=st.integers(0, 11)
    )
    def forget(self, model: str, what: str, task: str, number: int) -> None:
        paths = {
            "person": f"examples?subject=person-{number % 5}",
            "row": f"tasks/{task}/examples/row-{number}",
            "task": f"tasks/{task}",
        }
        if self.call("DELETE", f"/models/{model}/{paths[what]}").is_success and what == "task":
            self.create_task(model, task)

    @rule(model=models, capacity=st.integers(0, 12))
    def change_capacity(self, model: str, capacity: int) -> None:
        self.call("PATCH", f"/models/{model}", json={"replay": {"capacity": capacity}})

    @rule(model=models, purge=st.booleans())
    def archive_model(self, model: str, purge: bool) -> None:
        archived = self.call("DELETE", f"/models/{model}")
        if purge and archived.is_success and self.call("POST", f"/models/{model}/purge").is_success:
            self.create_model(model)

    # What people do to updates and champions.

    @rule(
        model=models,
        chosen=st.lists(tasks, min_size=1, max_size=2, unique=True),
        promotion=promotions,
        strategy=st.sampled_from(["replay", "ewc", "joint"]),
        parent=st.sampled_from(["champion", "champion", 0, 1, 2]),
        relearn=st.booleans(),
    )
    def request_update(self, model: str, chosen: list[str], strategy: str, **fields: object) -> None:
        body = {"tasks": chosen, "strategy": {"name": strategy}, **fields}
        self.call("POST", f"/models/{model}/updates", json=body)

    @precondition(lambda self: self.updates())
    @rule(which=anyone, decision=st.sampled_from(["approve", "reject", "cancel"]))
    def decide(self, which: int, decision: str) -> None:
        ids = self.updates()
        answer = self.call("POST", f"/updates/{ids[which % len(ids)]}/{decision}")
        assert answer.status_code != 200 or decision != "approve" or answer.json()["status"] == "promoted"

    @rule(model=models, to=st.none() | versions)
    def roll_back(self, model: str, to: int | None) -> None:
        answer = self.call("POST", f"/models/{model}/rollback", json={"to": to, "reason": "it got worse"})
        assert answer.status_code != 200 or to in (None, answer.json()["champion"])

    @rule(
        model=models,
        alias=st.sampled_from(["champion", "canary"]),
        version=versions,
        if_match=st.sampled_from(["none", "current", "stale"]),
    )
    def move_alias(self, model: str, alias: str, version: int, if_match: str) -> None:
        path = f"/models/{model}/aliases/{alias}"
        current = self.call("GET", path).headers.get("ETag", '"0"')
        headers = {"none": {}, "current": {"If-Match": current}, "stale": {"If-Match": '"0"'}}[if_match]
        answer = self.call("PUT", path, json={"version": version}, headers=headers)
        assert not (answer.is_success and if_match == "stale")
        assert answer.status_code != 412 or headers.get("If-Match") == '"0"'

    # What workers do, and what is done to them.

    @precondition(lambda self: len(self.workers) < WORKERS)
    @rule(skill=st.sampled_from([0.0, 0.6, 1.0]), steps=st.integers(0, 6))
    def claim(self, skill: float, steps: int) -> None:
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            claim = claim_next(session, worker=f"worker-{len(self.workers)}", lease_seconds=HOURS)
        if claim is not None:
            worker = SteppedWorker(claim, recording=self.recording)
            worker.skill = skill
            self.workers.append(worker)
            self.work(-1, steps)

    @precondition(lambda self: self.workers)
    @rule(which=anyone, steps=st.integers(1, 4))
    def work(self, which: int, steps: int) -> None:
        worker = self.worker(which)
        for _ in range(steps):
            if not worker.ended:
                worker.step()
        self.bury()

    @precondition(lambda self: self.workers)
    @rule(which=anyone)
    def finish(self, which: int) -> None:
        self.worker(which).finish()
        self.bury()

    @precondition(lambda self: self.workers)
    @rule(which=anyone)
    def kill(self, which: int) -> None:
        self.worker(which).kill()
        self.bury()

    @precondition(lambda self: self.workers)
    @rule(which=anyone, how=st.sampled_from(["stop", *sorted(TROUBLES)]))
    def hinder(self, which: int, how: str) -> None:
        worker = self.worker(which)
        if how == "stop":
            worker.stopping.set()
        else:
            worker.trouble = TROUBLES[how]()

    @precondition(lambda self: self.workers)
    @rule(which=anyone)
    def renew(self, which: int) -> None:
        lease = self.worker(which).lease
        if lease is not None:
            lease.renew()

    @precondition(lambda self: self.workers)
    @rule(sweep=st.booleans())
    def expire(self, sweep: bool) -> None:
        """Time goes by: no worker has been heard of for longer than a lease."""
        expire_leases()
        if sweep:
            sweep_updates()

    @invariant()
    def nothing_is_wrong(self) -> None:
        with session_scope(tenant=TENANT, role="worker") as session:
            check(session, seen=self.seen)

    def teardown(self) -> None:
        """In the end every fault is over and one good worker is left: no request may stay without an end."""
        with suppress(AssertionError):  # of a worker that a failed rule has left in a state of its own
            for worker in self.workers:
                worker.kill()
        self.workers = []
        expire_leases()
        sweep_updates()
        for _ in range(100):
            self.claim(1.0, steps=0)
            if not self.workers:
                break
            self.finish(0)
        self.nothing_is_wrong()
        with session_scope(tenant=TENANT, role="worker") as session:
            states = set(session.scalars(select(Update.state)))
        assert states <= {*FINISHED, "awaiting_approval"}, states

    def create_model(self, model: str) -> None:
        body = {"name": model, "base_model": "minilm-l6", "task_type": "text-classification"}
        self.call("POST", "/models", json=body | {"gate": GATES[model], "replay": REPLAY[model]})
        for task in ("one", "two"):
            self.create_task(model, task)

    def create_task(self, model: str, task: str) -> None:
        self.call("PUT", f"/models/{model}/tasks/{task}")
        self.ingest(model, task, [(number, 0) for number in range(8)])

    def updates(self) -> list[str]:
        """Ids of the tenant's updates, oldest first."""
        with session_scope(tenant=TENANT) as session:
            return list(session.scalars(select(Update.id).order_by(Update.seq)))

    def worker(self, which: int) -> SteppedWorker:
        """One of the living."""
        return self.workers[which % len(self.workers)]

    def bury(self) -> None:
        """Forgets the workers that have ended."""
        self.workers = [worker for worker in self.workers if not worker.ended]


def empty_database() -> None:
    with engine_for(get_settings().database_url).begin() as connection:
        connection.execute(text("SET ROLE palimpsest_owner"))
        connection.execute(text("TRUNCATE tenants CASCADE"))
        connection.execute(text("RESET ROLE"))


def expire_leases() -> None:
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        for update in session.scalars(select(Update).where(Update.state.in_(ACTIVE))):
            update.lease_expires_at = session.scalar(text("SELECT now() - interval '1 second'"))


@pytest.fixture(scope="session")
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """One real training of a tiny encoder with a strategy that leaves state."""
    from workers.training.contract import AdapterSettings, TrainingSettings, TrainRequest
    from workers.training.loop import train

    folder = tmp_path_factory.mktemp("recording")
    rows = folder / "fresh.ndjson"
    rows.write_text("".join(json.dumps(one) + "\n" for one in make_rows(["sport", "space"], 4)))
    asked = TrainRequest(
        task_type="text-classification", base=request.getfixturevalue("tiny"), strategy="ewc",
        labels=("sport", "space"), fresh=str(rows), output=str(folder / "version"),
        checkpoints=str(folder / "checkpoints"), adapter=AdapterSettings(r=2, alpha=4.0),
        settings=TrainingSettings(max_steps=2, max_length=16, batch_size=4),
    )  # fmt: skip
    result = train(asked, on_progress=lambda _: None, should_stop=lambda: None)
    return Recording(strategy="ewc", folder=folder / "version", result=result)


@pytest.fixture
def run(
    client: TestClient, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Runs the machine with Hypothesis settings."""
    monkeypatch.setenv("PALIMPSEST_LEASE_SECONDS", str(HOURS))
    get_settings.cache_clear()
    step_pipeline(monkeypatch)

    def run_(**chosen: Any) -> None:
        profile = settings(deadline=None, suppress_health_check=list(HealthCheck), **chosen)
        run_state_machine_as_test(lambda: Lives(client, recording), settings=profile)

    with client:
        yield run_
    monkeypatch.undo()
    get_settings.cache_clear()


def test_no_life_of_a_few_steps_breaks_an_invariant(run: Callable[..., None]) -> None:
    run(max_examples=4, stateful_step_count=25, derandomize=True, database=None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_long_life_breaks_an_invariant(run: Callable[..., None]) -> None:
    run(max_examples=30, stateful_step_count=60, print_blob=True)
