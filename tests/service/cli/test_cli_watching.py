"""Updates that are asked for and watched from the command line, through lost connections, to their exit codes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from service.cli.problems import ExitCode
from service.cli.watching import Standing, standing
from tests.scenes import World
from tests.service.cli.conftest import Palimpsest, key_of
from tests.service.cli.served import Relay

SOURCE = Path(__file__).parents[3]
QUICK = [f"--set=training.{setting}" for setting in ("max_length=32", "batch_size=8", "max_steps=2")]
PATIENT = {"PALIMPSEST_PATIENCE_SECONDS": "60"}


@pytest.fixture
def filled(world: World) -> World:
    """A model with a task to learn, whose gate nothing passes: no model gives one text two labels."""
    world.model(gate={"min_new_score": 1.0})
    world.task("one")
    world.examples("one", [{"text": "one text", "label": label, "split": "eval"} for label in ("math", "os")])
    return world


def until(condition: Callable[[], object], *, seconds: float = 120) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@contextmanager
def a_worker(
    world: World, work: Callable[[], Any] | None = None, *, every_seconds: float = 0.05
) -> Iterator[None]:
    """Works updates off beside the test; `work` replaces the plain way to do so.

    It looks for work every so often, as a real worker that missed its hint: with some seconds between, whoever waits
    sees the queue.
    """
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not over.is_set():
                if work is not None:
                    work()
                    return
                world.work()
                over.wait(every_seconds)
        except BaseException as failure:  # told by the test, in its own thread
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=120)
    assert not failures, failures


def test_an_update_is_asked_for_once_under_one_key_and_cancelled(
    palimpsest: Palimpsest, filled: World
) -> None:
    arguments = [
        "update",
        "submit",
        "triage",
        "one",
        "--strategy",
        "ewc",
        "--parent",
        "0",
        "--repeats",
        "3",
        "--idempotency-key",
        "night-1",
    ]
    asked = palimpsest(*arguments, "--set", "training.epochs=5", "--set", "metadata.run=7", "--json").json
    assert (asked["strategy"]["name"], asked["parent"], asked["training"]["epochs"]) == ("ewc", 0, 5)
    assert asked["metadata"] == {"run": 7}
    assert asked["training"]["repeats"] == 3
    again = palimpsest(*arguments, "--set", "training.epochs=5", "--set", "metadata.run=7")
    assert f"{asked['id']} is queued" in again.out
    assert palimpsest("update", "cancel", asked["id"]).out == f"{asked['id']} is cancelled.\n"
    watched = palimpsest("update", "watch", asked["id"], "--json")
    assert (watched.code, watched.json["status"]) == (ExitCode.FAILED, "cancelled")
    assert len(filled.get("/models/triage/updates")["data"]) == 1


def test_a_failed_update_ends_with_its_own_exit_code_and_its_reason(
    palimpsest: Palimpsest, filled: World, session: Session
) -> None:
    from service.db import session_scope
    from service.updates.states import FAILED, change_state

    update = filled.request("one")["id"]
    with session_scope(tenant="acme", role="worker") as own:
        change_state(
            own, update_id=update, to=FAILED, error={"code": "out_of_memory", "message": "It did not fit."}
        )
    watched = palimpsest("update", "watch", update)
    assert watched.code == ExitCode.FAILED
    assert watched.out == f"{update} failed: It did not fit. [out_of_memory]\n"


@pytest.mark.slow
def test_waiting_ends_with_promoted_rejected_or_awaiting_approval(
    palimpsest: Palimpsest, filled: World
) -> None:
    submit = ["update", "submit", "triage", "one", "--wait", "--relearn", *QUICK]
    with a_worker(filled, every_seconds=5):
        promoted = palimpsest(*submit, "--promotion", "always")
        held = palimpsest(*submit, "--promotion", "manual", NO_COLOR="", FORCE_COLOR="1")
        rejected = palimpsest(*submit)
    [candidate] = palimpsest("update", "list", "triage", "--status", "awaiting_approval", "--json").json[
        "data"
    ]
    assert (
        "Version 2 of 'triage' is rejected"
        in palimpsest("update", "reject", candidate["id"], "--reason", "no").out
    )
    assert palimpsest("update", "watch", candidate["id"]).code == ExitCode.REJECTED
    assert promoted.code == ExitCode.FINE
    assert "is promoted: version 1 of 'triage' is champion" in promoted.out
    assert ": queued" in promoted.err
    assert held.code == ExitCode.AWAITING_APPROVAL
    assert "awaits approval" in held.out
    assert "upd_" in held.err, "a bar, for a terminal"
    assert rejected.code == ExitCode.REJECTED
    assert "is rejected" in rejected.out
    assert "the gate says fail" in rejected.out
    assert "Note: task 'one' has" in rejected.err, "what the API warns of"


def test_a_lost_connection_is_borne_while_the_update_goes_on(
    palimpsest: Palimpsest, filled: World, relay: Relay
) -> None:
    def work_unseen() -> None:
        until(lambda: filled.get("/models/triage/updates")["data"])
        relay.down = True
        until(lambda: relay.lost >= 2)
        filled.work()
        relay.down = False

    with a_worker(filled, work_unseen):
        waited = palimpsest(
            "update", "submit", "triage", "one", "--wait", "--promotion", "always", *QUICK, "--patience", "120",
            PALIMPSEST_URL=relay.url, **PATIENT,
        )  # fmt: skip
    assert waited.code == ExitCode.FINE
    assert "connection lost" in waited.err
    assert waited.err.index("connection lost") < waited.err.index("promoted"), "it was lost, and found again"


def test_a_service_that_stays_away_ends_the_watching_and_not_the_update(
    palimpsest: Palimpsest, filled: World, relay: Relay
) -> None:
    update = filled.request("one")["id"]
    relay.down = True
    watched = palimpsest("update", "watch", update, "--patience", "0.3", PALIMPSEST_URL=relay.url)
    assert watched.code == ExitCode.UNREACHABLE
    assert f"palimpsest update watch {update}" in watched.err
    assert filled.update(update)["status"] == "queued"


def test_ctrl_c_leaves_the_update_running_and_says_how_to_watch_it_again(
    filled: World, api_port: int
) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "PALIMPSEST_URL": f"http://127.0.0.1:{api_port}",
        "PALIMPSEST_API_KEY": key_of(filled.client),
    }  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "update", "submit", "triage", "one", "--wait"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        first = watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        said = watching.stderr.read()
    [update] = filled.get("/models/triage/updates")["data"]
    assert first == f"{update['id']}: queued\n"
    assert (
        said == f"The update {update['id']} goes on. Watch it again: palimpsest update watch {update['id']}\n"
    )
    assert watching.returncode == ExitCode.INTERRUPTED
    assert update["status"] == "queued"


def test_the_standing_of_an_update_in_training_has_steps_loss_and_remaining_time() -> None:
    progress = {"phase": "training", "step": 3, "total_steps": 9, "loss": 0.25, "eta_seconds": 75.0}
    update = {"status": "training", "progress": progress, "attempt": 2}
    assert standing(update) == Standing("training", 3, 9, "loss 0.25, 1:15 left, attempt 2")
    assert standing({**update, "progress": None}) == Standing("training")
    assert standing({**update, "status": "promoted"}) == Standing("promoted", 1, 1)
