"""Random lives of models and updates over the real API and database, with workers that are killed, stopped and late.

A life is a sequence of acts. How often each comes is written beside it (`act`), not left to Hypothesis, which picks
rules alike and leaves some of them out of every life: lives would end in the archive before anybody was killed.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select, text

from service.config import get_settings
from service.db import EVERY_TENANT, engine_for, session_scope
from service.models import Update, UpdateState
from service.security import create_key
from service.updates.leases import claim_next
from service.updates.states import ACTIVE, FINISHED
from tests.faults.invariants import Seen, check, everything_recorded
from tests.faults.stepped_worker import Recording, SteppedWorker
from tests.scenes import ALL_SCOPES
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
# Whom a decision is meant for; anybody else refuses it.
FIT_FOR = {
    "approve": {UpdateState.AWAITING_APPROVAL},
    "reject": {UpdateState.AWAITING_APPROVAL},
    "cancel": {UpdateState.QUEUED, *ACTIVE, UpdateState.AWAITING_APPROVAL},
}

models = st.sampled_from(sorted(GATES))
tasks = st.sampled_from(["one", "two"])
anyone = st.integers(0, 30)  # which of those there are, counted round
promotions = st.sampled_from(["manual", "manual", "gate", "manual", "always"])
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

Act = tuple[str, dict[str, Any]]
Method = Callable[..., None]
ACTS: list[st.SearchStrategy[Act]] = []


def act(weight: int, **arguments: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Marks what a life may bring, `weight` times as often as an act of weight 1."""

    def mark(method: Method) -> Method:
        ACTS.extend([st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments))] * weight)
        return method

    return mark


def row(number: int, correction: int) -> dict[str, object]:
    """Row `number` of any task after so many corrections; every third is an eval row, every fifth a person's."""
    return {
        "id": f"row-{number}", "text": f"row {number}, corrected {correction} times", "label": "ab"[number % 2],
        "split": "eval" if number % 3 == 0 else "train", "subject": f"person-{number % 5}", "weight": 1 + number % 4,
    }  # fmt: skip


class Lives(RuleBasedStateMachine):
    """A tenant with two models, whatever people do to them, and up to three workers, any of whom may be a ghost.

    `tally` counts what happened, over all lives: a machine that reaches nothing finds nothing.
    """

    def __init__(self, client: TestClient, recording: Recording, tally: Counter[str]) -> None:
        super().__init__()
        self.client, self.recording, self.tally = client, recording, tally
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

    @rule(act=st.deferred(lambda: st.sampled_from(ACTS).flatmap(lambda chosen: chosen)))
    def happens(self, act: Act) -> None:
        name, arguments = act
        getattr(self, name)(**arguments)

    # What workers do, and what is done to them.

    @act(20, skill=st.sampled_from([0.6, 0.0, 1.0, 1.0]), steps=st.sampled_from([5, 5, 0, 1, 2, 3, 4]))
    def claim(self, skill: float, steps: int) -> None:
        if len(self.workers) == WORKERS:
            self.finish(0)  # makes room
        with session_scope(tenant=EVERY_TENANT, role="worker") as session:
            claim = claim_next(session, worker=f"worker-{len(self.workers)}", lease_seconds=HOURS)
        if claim is not None:
            self.tally["claimed again" if claim.fence > 1 else "claimed"] += 1
            self.tally["scored again"] += claim.rescore
            self.workers.append(SteppedWorker(claim, recording=self.recording, skill=skill))
            self.work(-1, steps)

    @act(8, which=anyone, steps=st.integers(1, 4))
    def work(self, which: int, steps: int) -> None:
        if worker := self.worker(which):
            walk = self.come_late if self.is_late(worker) else self.go_on
            walk(worker, steps)
        self.bury()

    @act(16, which=anyone)
    def finish(self, which: int) -> None:
        self.work(which, steps=100)

    @act(8, which=anyone)
    def kill(self, which: int) -> None:
        if worker := self.worker(which):
            self.tally[f"killed at {worker.at}"] += 1
            worker.kill()
        self.bury()

    @act(5, which=anyone, how=st.sampled_from(["stop", *sorted(TROUBLES)]))
    def hinder(self, which: int, how: str) -> None:
        if worker := self.worker(which):
            if how == "stop":
                worker.stopping.set()
            else:
                worker.trouble = TROUBLES[how]()

    @act(3, which=anyone)
    def renew(self, which: int) -> None:
        if worker := self.worker(which):
            before = self.recorded() if self.is_late(worker) else None
            if worker.lease is not None:
                worker.lease.renew()
            assert before in (None, self.recorded()), "a lost lease was renewed"

    @act(
        10,
        which=anyone,
        sweep=st.sampled_from([True, True, True, False]),
        successor=st.sampled_from([True, True, False]),
    )
    def expire(self, which: int, sweep: bool, successor: bool) -> None:
        """Time goes by: no worker has been heard of for longer than a lease. Another may come at once."""
        self.worker(which)  # so that there is one
        expire_leases()
        if sweep:
            self.tally["lease expired"] += len(sweep_updates())
        if successor and len(self.workers) < WORKERS:
            self.claim(1.0, steps=which % 3)

    @act(7, stood=st.sampled_from([5, 5, 0, 1, 2, 3, 4]), steps=st.integers(0, 4))
    def overtake(self, stood: int, steps: int) -> None:
        """A worker falls silent, another takes over and gets so far; then the first one goes on to its end."""
        while self.workers:
            self.finish(0)
        self.claim(1.0, steps=stood)
        self.expire(0, sweep=True, successor=False)
        self.claim(1.0, steps=steps)
        self.finish(0)

    def go_on(self, worker: SteppedWorker, steps: int) -> None:
        """Steps as often as asked, or to the end."""
        for _ in range(steps):
            if not worker.ended:
                worker.step()

    def come_late(self, worker: SteppedWorker, steps: int) -> None:
        """A worker whose claim is lost, and who may not know it, goes on; nothing of what it does may be recorded."""
        before, stood = self.recorded(), worker.at
        self.tally[f"late {'after a successor' if self.is_replaced(worker) else 'alone'}"] += 1
        self.tally["came with scores too late"] += stood == "scored"
        self.go_on(worker, steps)
        assert self.recorded() == before, (
            f"a worker that had lost its claim wrote between {stood} and {worker.at}"
        )

    # What people do to updates and champions.

    @act(
        12,
        model=models,
        chosen=st.lists(tasks, min_size=1, max_size=2, unique=True),
        promotion=promotions,
        strategy=st.sampled_from(["replay", "ewc", "joint"]),
        parent=st.sampled_from(["champion", "champion", "champion", 0, 1, 2]),
        relearn=st.sampled_from([True, True, True, False]),
    )
    def request_update(self, model: str, chosen: list[str], strategy: str, **fields: object) -> None:
        body = {"tasks": chosen, "strategy": {"name": strategy}, **fields}
        self.call("POST", f"/models/{model}/updates", json=body)

    @act(
        16,
        which=anyone,
        decision=st.sampled_from(["approve", "reject", "cancel"]),
        fitting=st.sampled_from([True, True, True, True, False]),
    )
    def decide(self, which: int, decision: str, fitting: bool) -> None:
        ids = self.updates(FIT_FOR[decision]) if fitting else self.updates(set(UpdateState))
        if ids:
            self.tell(ids[which % len(ids)], decision)

    def tell(self, update_id: str, decision: str) -> None:
        """Tells a decision on one update."""
        answer = self.call("POST", f"/updates/{update_id}/{decision}")
        facts = answer.json()
        self.tally[f"{decision}: {facts['status'] if answer.is_success else facts['code']}"] += 1
        assert not answer.is_success or decision != "approve" or facts["status"] == "promoted"

    @act(8, model=models, to=st.none() | versions)
    def roll_back(self, model: str, to: int | None) -> None:
        answer = self.call("POST", f"/models/{model}/rollback", json={"to": to, "reason": "it got worse"})
        self.tally["rolled back"] += answer.is_success
        assert not answer.is_success or to in (None, answer.json()["champion"])

    @act(6)
    def approve_all(self) -> None:
        """Somebody approves whatever waits, unaware that one approval makes the verdict on the next one stale."""
        while self.workers:
            self.finish(0)
        for update_id in self.updates(FIT_FOR["approve"]):
            self.tell(update_id, "approve")

    @act(
        3,
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
        self.tally["alias moved"] += answer.is_success
        assert not (answer.is_success and if_match == "stale")
        assert answer.status_code != 412 or headers.get("If-Match") == '"0"'

    # What people do to models and their data.

    @act(6, model=models, task=tasks, rows=st.lists(corrections, min_size=1, max_size=5))
    def ingest(self, model: str, task: str, rows: list[tuple[int, int]]) -> None:
        body = "\n".join(json.dumps(row(*one)) for one in rows)
        headers = {"Content-Type": "application/x-ndjson"}
        self.call(
            "POST", f"/models/{model}/tasks/{task}/examples?on_error=skip", content=body, headers=headers
        )

    @act(
        2,
        model=models,
        what=st.sampled_from(["person", "row", "task"]),
        task=tasks,
        number=st.integers(0, 11),
    )
    def forget(self, model: str, what: str, task: str, number: int) -> None:
        paths = {
            "person": f"examples?subject=person-{number % 5}",
            "row": f"tasks/{task}/examples/row-{number}",
            "task": f"tasks/{task}",
        }
        forgotten = self.call("DELETE", f"/models/{model}/{paths[what]}").is_success
        self.tally["forgotten"] += forgotten
        if forgotten and what == "task":
            self.create_task(model, task)

    @act(1, model=models, capacity=st.integers(0, 12))
    def change_capacity(self, model: str, capacity: int) -> None:
        self.call("PATCH", f"/models/{model}", json={"replay": {"capacity": capacity}})

    @act(1, model=models, purge=st.sampled_from([True, True, False]))
    def archive_model(self, model: str, purge: bool) -> None:
        for update in self.call("GET", f"/models/{model}/updates").json().get("data", []):
            if update["status"] == "queued":
                self.call("POST", f"/updates/{update['id']}/cancel")
        archived = self.call("DELETE", f"/models/{model}").is_success
        self.tally["archived"] += archived
        if archived and purge and self.call("POST", f"/models/{model}/purge").is_success:
            self.create_model(model)

    @invariant()
    def nothing_is_wrong(self) -> None:
        with session_scope(tenant=TENANT, role="worker") as session:
            check(session, seen=self.seen)

    def teardown(self) -> None:
        """In the end every fault is over and one good worker is left: no request may stay without an end."""
        with suppress(AssertionError):  # of a worker that a failed act has left in a state of its own
            for worker in self.workers:
                if not worker.ended:
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
            states = Counter(session.scalars(select(Update.state)))
        self.tally.update({f"ended {state}": count for state, count in states.items()})
        assert set(states) <= {*FINISHED, "awaiting_approval"}, states

    def create_model(self, model: str) -> None:
        body = {"name": model, "base_model": "minilm-l6", "task_type": "text-classification"}
        self.call("POST", "/models", json=body | {"gate": GATES[model], "replay": REPLAY[model]})
        for task in ("one", "two"):
            self.create_task(model, task)

    def create_task(self, model: str, task: str) -> None:
        self.call("PUT", f"/models/{model}/tasks/{task}")
        self.ingest(model, task, [(number, 0) for number in range(8)])

    def updates(self, states: set[UpdateState]) -> list[str]:
        """Ids of the tenant's updates in one of these states, oldest first."""
        with session_scope(tenant=TENANT) as session:
            return list(
                session.scalars(select(Update.id).where(Update.state.in_(states)).order_by(Update.seq))
            )

    def recorded(self) -> dict[str, str]:
        """What the database holds of updates, versions and champions."""
        with session_scope(tenant=TENANT, role="worker") as session:
            return everything_recorded(session)

    def worker(self, which: int) -> SteppedWorker | None:
        """One of the living; where there is none, one that claims now, if there is anything to claim."""
        if not self.workers:
            self.claim(1.0, steps=which % 6)
        return self.workers[which % len(self.workers)] if self.workers else None

    def is_late(self, worker: SteppedWorker) -> bool:
        """Whether the claim is lost: taken back, ended or claimed anew."""
        claim = worker.claim
        with session_scope(tenant=TENANT) as session:
            update = session.get(Update, {"tenant_id": claim.tenant, "id": claim.update_id})
            return update is None or update.state not in ACTIVE or update.fence != claim.fence

    def is_replaced(self, worker: SteppedWorker) -> bool:
        """Whether somebody else among the living holds the update."""
        return any(
            other.claim.update_id == worker.claim.update_id
            for other in self.workers
            if not self.is_late(other)
        )

    def bury(self) -> None:
        """Forgets the workers that have ended."""
        self.workers = [worker for worker in self.workers if not worker.ended]


def empty_database() -> None:
    """Removes every tenant with all that is theirs."""
    with engine_for(get_settings().database_url).begin() as connection:
        connection.execute(text("SET ROLE palimpsest_owner"))
        connection.execute(text("TRUNCATE tenants CASCADE"))
        connection.execute(text("RESET ROLE"))


def expire_leases() -> None:
    """Lets every lease have ended a second ago."""
    with session_scope(tenant=EVERY_TENANT, role="worker") as session:
        for update in session.scalars(select(Update).where(Update.state.in_(ACTIVE))):
            update.lease_expires_at = session.scalar(text("SELECT now() - interval '1 second'"))
