"""The load: teachers ask for updates and decide about them, feeders ingest, correct and erase; each keeps a record.

What a record holds was acknowledged by the API, and nothing else. Every row of a record was sent by its keeper alone,
so its last word on a row is the truth.
"""

import random
import threading
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.soak.caller import Caller, Json

FINISHED = {"promoted", "rejected", "failed", "cancelled"}
LABELS = {
    "sport": ("goal match team league", "player score season coach"),
    "space": ("orbit rocket moon launch", "planet satellite comet crater"),
    "kitchen": ("oven recipe butter flour", "knife spoon kettle plate"),
}
TASKS = {"first": ("sport", "space"), "second": ("space", "kitchen"), "third": ("kitchen", "sport")}
STRATEGIES = ("replay", "replay", "sequential", "lwf")
EPOCHS = (1, 2, 5)
PROMOTIONS = ("gate", "gate", "always", "manual")
UNFINISHED_PER_MODEL = 2
PAUSE_SECONDS = (0.2, 1.0)
GATES: Sequence[Json] = (
    {"on_inconclusive": "hold"},
    {"on_inconclusive": "reject"},
    {"on_inconclusive": "promote"},
)

Word = Literal["approved", "rejected", "cancelled"]


@dataclass(frozen=True, slots=True)
class Place:
    """A model, and whose it is."""

    tenant: str
    model: str


@dataclass(slots=True)
class Asked:
    """An update that was accepted (202), and the decision about it that was acknowledged, if any."""

    id: str
    key: str
    place: Place
    word: Word | None = None
    status: str = "queued"


@dataclass(slots=True)
class Row:
    """An acknowledged row: every text it ever had, the last of which is the present one."""

    task: str
    id: str
    subject: str | None
    split: str
    texts: list[str]
    label: str

    def as_json(self) -> Json:
        """The row as it is sent."""
        sent = {"id": self.id, "text": self.texts[-1], "label": self.label, "split": self.split}
        return sent if self.subject is None else {**sent, "subject": self.subject}


@dataclass(slots=True)
class Record:
    """What one actor was told by the API."""

    place: Place
    updates: dict[str, Asked] = field(default_factory=dict)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    """By task and id; erased ones are not among them."""
    rollbacks: list[str] = field(default_factory=list)
    """The reasons given, each of which was given once."""
    ingested: int = 0
    erased: int = 0


class Actor(threading.Thread):
    """A client of one model that does what comes to its mind until it is told to stop."""

    def __init__(self, name: str, place: Place, caller: Caller, *, seed: str) -> None:
        super().__init__(name=f"{name}-{place.tenant}-{place.model}", daemon=True)
        self.record = Record(place)
        self.error: Exception | None = None
        self._stopping = threading.Event()
        self._caller = caller
        self._random = random.Random(f"{seed} {self.name}")
        self._counter = 0

    def stop(self) -> None:
        """Begins nothing new; what is begun is brought to its end."""
        self._stopping.set()

    def run(self) -> None:
        """Acts until told to stop; an error ends it and is kept."""
        try:
            while not self._stopping.wait(self._random.uniform(*PAUSE_SECONDS)):
                self.act()
            self.finish()
        except Exception as error:  # whatever it is, the soak has failed and tells it
            self.error = error

    @abstractmethod
    def act(self) -> None:
        """Does one thing."""

    def finish(self) -> None:
        """Ends what is begun."""

    def _path(self, rest: str) -> str:
        return f"/models/{self.record.place.model}{rest}"

    def _next(self, what: str) -> str:
        """A name that no other actor and no earlier call of this one has used."""
        self._counter += 1
        return f"{self.name}-{what}-{self._counter}"

    def _ingest(self, task: str, rows: Sequence[Row]) -> None:
        body: Json = {"examples": [row.as_json() for row in rows]}
        answer = self._caller.call(
            "POST", self._path(f"/tasks/{task}/examples"), body, key=self._next("ingest")
        )
        if answer is None or answer["accepted"] != len(rows):
            raise AssertionError(f"{len(rows)} new rows were sent, and the answer is {answer}")
        self.record.ingested += len(rows)
        for row in rows:
            self.record.rows[task, row.id] = row

    def _new_rows(self, task: str, *, count: int, subject: str | None = None) -> list[Row]:
        """New rows, one in four of them to judge by."""
        rows = []
        for turn in range(count):
            label = self._random.choice(TASKS[task])
            id_ = self._next("row")
            split = "eval" if turn % 4 == 3 else "train"
            rows.append(Row(task, id_, subject, split, [self._text(label, id_)], label))
        return rows

    def _text(self, label: str, id_: str) -> str:
        return f"{self._random.choice(LABELS[label])} {id_} {self._random.randrange(10**6)}"


class Feeder(Actor):
    """Ingests batches, corrects rows and erases people, all its own."""

    def act(self) -> None:
        """Ingests mostly; corrects or erases now and then."""
        deed = self._random.random()
        if deed < 0.2 and self.record.rows:
            self._correct()
        elif deed < 0.3 and self.record.rows:
            self._erase()
        else:
            task = self._random.choice(list(TASKS))
            person = self._next("person")
            self._ingest(task, self._new_rows(task, count=self._random.randint(1, 12), subject=person))

    def _correct(self) -> None:
        old = self._random.choice(list(self.record.rows.values()))
        text = self._text(old.label, old.id)
        self._ingest(old.task, [Row(old.task, old.id, old.subject, old.split, [*old.texts, text], old.label)])

    def _erase(self) -> None:
        person = self._random.choice(list(self.record.rows.values())).subject or ""
        self._caller.call("DELETE", self._path("/examples"), params={"subject": person})
        kept = {place: row for place, row in self.record.rows.items() if row.subject != person}
        self.record.erased += len(self.record.rows) - len(kept)
        self.record.rows = kept


class Teacher(Actor):
    """Brings new rows and asks for updates that learn them; approves, rejects, cancels and rolls back."""

    def act(self) -> None:
        """Decides what is held; while few updates are unfinished asks for one more, and now and then thinks better of it."""
        self._look()
        if len(self.unfinished) >= UNFINISHED_PER_MODEL:
            return
        self._ask()
        deed = self._random.random()
        if deed < 0.12:
            self._decide(self._random.choice(self.unfinished), "cancelled")
        elif deed < 0.24:
            self._roll_back()

    def finish(self) -> None:
        """Waits for every update's end, deciding what is held."""
        while self.unfinished:
            self._look()
            threading.Event().wait(PAUSE_SECONDS[1])

    @property
    def unfinished(self) -> list[Asked]:
        """The updates that have not ended, as far as it has seen."""
        return [asked for asked in self.record.updates.values() if asked.status not in FINISHED]

    def _ask(self) -> None:
        task = self._random.choice(list(TASKS))
        self._ingest(task, self._new_rows(task, count=12))
        key = self._next("update")
        training = {
            "epochs": self._random.choice(EPOCHS), "max_length": 16, "batch_size": 8,
            "seed": self._random.randrange(1000),
        }  # fmt: skip
        body = {
            "tasks": [task], "strategy": {"name": self._random.choice(STRATEGIES)}, "training": training,
            "promotion": self._random.choice(PROMOTIONS), "metadata": {"soak": key},
        }  # fmt: skip
        answer = self._caller.call("POST", self._path("/updates"), body, key=key)
        if answer is not None:
            self.record.updates[answer["id"]] = Asked(answer["id"], key, self.record.place)

    def _look(self) -> None:
        for asked in self.unfinished:
            asked.status = self._caller.get(f"/updates/{asked.id}")["status"]
            if asked.status == "awaiting_approval":
                self._decide(asked, self._random.choice(("approved", "rejected")))

    def _decide(self, asked: Asked, word: Word) -> None:
        """Says the word; another attempt at saying it, or the update's own end, may have been faster."""
        verb = {"approved": "approve", "rejected": "reject", "cancelled": "cancel"}[word]
        late = ("verdict_stale", "not_awaiting_approval", "update_finished")
        if self._caller.call("POST", f"/updates/{asked.id}/{verb}", may_refuse=late) is not None:
            asked.word = word

    def _roll_back(self) -> None:
        reason = self._next("rollback")
        impossible = ("no_previous_champion", "already_champion")
        answer = self._caller.call(
            "POST", self._path("/rollback"), {"reason": reason}, key=reason, may_refuse=impossible
        )
        if answer is not None:
            self.record.rollbacks.append(reason)
