"""Load and random faults against the embedded stack, then a ledger of everything that was acknowledged.

`python -m bench.soak --minutes 10 --kills-per-minute 6 [--workers 3] [--seed 0] [--json PATH]`. Clients of two tenants
ingest, correct and erase rows, ask for updates, cancel, approve, reject and roll back, each call sent again until it is
answered; meanwhile processes are killed, frozen and shut down. When the time is up the faults stop, every update
is brought to its end, and what was acknowledged is compared with what is there. Exit status 1 when anything is lost
or duplicated; the work folder then stays.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.soak.caller import Answers, Caller
from bench.soak.faults import LEASE_SECONDS, SWEEP_SECONDS, Chaos
from bench.soak.ledger import STATES, Books, Ledger, as_json, attempts, balance, read_books
from bench.soak.load import FINISHED, GATES, TASKS, Actor, Feeder, Place, Teacher
from service.artifacts import ArtifactStore
from service.config import Settings
from service.embedded import Stack
from service.embedded.commands import run_to_end

ENVIRONMENT = {
    "PALIMPSEST_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "PALIMPSEST_SWEEP_SECONDS": f"{SWEEP_SECONDS:g}",
    "PALIMPSEST_CHECKPOINT_SECONDS": "0.5",
    "PALIMPSEST_RETRY_SECONDS": "0.5",
    "PALIMPSEST_MAX_ATTEMPTS": "25",  # kills alone should hardly ever use them all up
    "PALIMPSEST_TORCH_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
OTHER_TENANT = "other"
MODELS = ("one", "two")
SAY_EVERY_SECONDS = 5.0
DRAIN_PATIENCE_SECONDS = 240.0

console = Console(highlight=False)


def main() -> int:
    """Soak, print the table, write the figures; returns the exit status."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-soak-"))
    folder.chmod(0o711)  # as root, Postgres may have to run as another user
    try:
        with Stack(folder / "state", workers=options.workers, environment=ENVIRONMENT) as stack:
            soak = Soak(stack, seed=options.seed, kills_per_minute=options.kills_per_minute)
            soak.run(seconds=60 * options.minutes)
            books = soak.books()
            ledger = balance([actor.record for actor in soak.actors], books, store=soak.store())
    except BaseException:
        console.print(f"The work folder is kept: {folder}")
        raise
    soak.show(ledger, books)
    if options.json:
        options.json.write_text(json.dumps(as_figures(ledger, soak.chaos.struck, options), indent=2) + "\n")
    if ledger.findings:
        (folder / "findings.jsonl").write_text(as_json(ledger))
        console.print(f"The work folder is kept: {folder} (findings.jsonl holds all of them)")
        return 1
    shutil.rmtree(folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="how long load and faults last")
    parser.add_argument("--kills-per-minute", type=float, required=True, help="faults in a minute")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of load and faults")
    parser.add_argument("--json", type=Path, help="write the figures here")
    if given := {"database_url", "redis_url", "artifact_url"} & Settings().model_fields_set:
        parser.error(f"a soak breaks parts of its own; unset {', '.join(sorted(given)).upper()}")
    return parser.parse_args()


def as_figures(ledger: Ledger, struck: Mapping[str, int], options: argparse.Namespace) -> dict[str, object]:
    """The ledger and how it came about, as JSON."""
    return {
        "figures": ledger.figures,
        "faults": dict(struck),
        "minutes": options.minutes,
        "kills_per_minute": options.kills_per_minute,
        "workers": options.workers,
        "seed": options.seed,
    }


class Soak:
    """One stack, the clients that load it, and the faults that befall it."""

    def __init__(self, stack: Stack, *, seed: int, kills_per_minute: float) -> None:
        self._stack = stack
        self._began = time.monotonic()
        self.answers = Answers()
        self.chaos = Chaos(stack, per_minute=kills_per_minute, seed=str(seed))
        self.actors = self._make_actors(str(seed))

    def run(self, *, seconds: float) -> None:
        """Loads and breaks the stack for so long, then waits until everything has ended, or nothing does any more.

        Raises:
            EmbeddedError: the supervisor gave up.
            RuntimeError: a client was told what it should not have been.
        """
        self._began = time.monotonic()
        for thread in (*self.actors, self.chaos):
            thread.start()
        try:
            self._watch("under load", lambda: time.monotonic() - self._began > seconds)
        finally:
            self.chaos.stop()
        for actor in self.actors:
            actor.stop()
        self._watch("draining", self._is_drained, patience=DRAIN_PATIENCE_SECONDS)

    def books(self) -> Books:
        """What the database holds."""
        if self._stack.postgres is None:
            raise RuntimeError("the stack has no Postgres of its own")
        return read_books(self._stack.postgres.superuser_url)

    def store(self) -> ArtifactStore:
        """Where the versions lie."""
        return ArtifactStore(self._stack.environment["ARTIFACT_URL"])

    def show(self, ledger: Ledger, books: Books) -> None:
        """Prints the ledger, the faults and what clients met with."""
        failed, ran_out = attempts(books)
        rows = sum(actor.record.ingested for actor in self.actors)
        erased = sum(actor.record.erased for actor in self.actors)
        console.print(_table("Ledger", ledger.figures))
        console.print(_table("Faults", self.chaos.struck))
        console.print(_table("Answers", self.answers.as_dict()))
        console.print(
            f"{rows} rows acknowledged, {erased} of them erased again; {failed} attempts failed, {ran_out} updates ran out.",
            soft_wrap=True,
        )
        for finding in ledger.findings[:20]:
            console.print(f"{finding.kind}: {finding.what}", style="red", soft_wrap=True)

    def _make_actors(self, seed: str) -> list[Actor]:
        made: list[Actor] = []
        keys = {"default": self._stack.api_key, OTHER_TENANT: self._new_key(OTHER_TENANT)}
        for tenant, api_key in keys.items():
            for turn, model in enumerate(MODELS):
                caller = Caller(self._stack.url, api_key, self.answers)
                _make_model(caller, model, gate=GATES[(turn + len(made)) % len(GATES)])
                for kind in (Teacher, Feeder):
                    own = Caller(self._stack.url, api_key, self.answers)
                    made.append(kind(kind.__name__.lower(), Place(tenant, model), own, seed=seed))
        return made

    def _new_key(self, tenant: str) -> str:
        printed = run_to_end(
            "the creation of a key",
            ["keys", "create", "--tenant", tenant, "--scopes", "read,ingest,train,deploy", "--name", "soak", "--json"],
            logs=self._stack.state.logs, environment=self._stack.environment, timeout_seconds=60,
        )  # fmt: skip
        key: str = json.loads(printed)["api_key"]
        return key

    def _watch(self, phase: str, over: Callable[[], bool], *, patience: float | None = None) -> None:
        """Tells now and then how far it is, until it is over or no update has ended for `patience` seconds."""
        said, ended, moved = 0.0, -1, time.monotonic()
        while not over():
            self._stack.wait(0.5)
            self._check_threads()
            counts = self._counts()
            if counts["ended"] != ended:
                ended, moved = counts["ended"], time.monotonic()
            if patience is not None and time.monotonic() - moved > patience:
                console.print(f"No update has ended for {patience:.0f} s.", style="red")
                return
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                self._say(phase, counts)
        self._check_threads()

    def _is_drained(self) -> bool:
        return not any(actor.is_alive() for actor in self.actors)

    def _check_threads(self) -> None:
        threads: list[Actor | Chaos] = [*self.actors, self.chaos]
        for thread in threads:
            if thread.error is not None:
                raise RuntimeError(
                    f"{thread.name} met with what should not be: {thread.error}"
                ) from thread.error

    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for actor in self.actors:
            for asked in list(actor.record.updates.values()):
                counts.update(
                    [asked.status, "ended" if asked.status in FINISHED else "unfinished", "accepted"]
                )
        return counts

    def _say(self, phase: str, counts: Counter[str]) -> None:
        elapsed = int(time.monotonic() - self._began)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES)
        rows = sum(actor.record.ingested for actor in self.actors)
        console.print(
            f"{elapsed // 60:02d}:{elapsed % 60:02d} {phase}: {counts['accepted']} updates ({states}, "
            f"{counts['unfinished']} unfinished), {rows} rows, {self.chaos.struck.total()} faults (last: {self.chaos.last})",
            soft_wrap=True,
        )


def _make_model(caller: Caller, model: str, *, gate: Mapping[str, object]) -> None:
    body = {
        "name": model, "base_model": "minilm-l6", "task_type": "text-classification", "replay": {"capacity": 24},
        "gate": dict(gate),
    }  # fmt: skip
    caller.call("POST", "/models", body, key=f"model-{model}")
    for task in TASKS:
        caller.call("PUT", f"/models/{model}/tasks/{task}")


def _table(title: str, counts: Mapping[str, int]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count))
    return table


if __name__ == "__main__":
    sys.exit(main())
