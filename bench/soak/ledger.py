"""The ledger: what the API acknowledged against what the database holds.

A finding is either something *lost* (acknowledged and not there, or begun and not ended) or something *duplicated*
(there twice, or there although nobody was told). Nothing else can be wrong in a ledger.
"""

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

from bench.soak.load import FINISHED, Asked, Record
from service.artifacts import ArtifactDamaged, ArtifactStore

STATES = ("promoted", "rejected", "failed", "cancelled")
# What an acknowledged decision ends in.
ENDS = {"approved": {"promoted"}, "rejected": {"rejected"}, "cancelled": {"cancelled"}}
FILES = {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "version.json"}
UPDATES = """
    SELECT u.*, m.name AS model,
           (SELECT count(*) FROM versions v WHERE v.update_id = u.id) AS versions,
           (SELECT min(number) FROM versions v WHERE v.update_id = u.id) AS yielded,
           ARRAY(SELECT e.type FROM update_events e WHERE e.update_id = u.id ORDER BY e.id) AS events
    FROM updates u JOIN models m ON m.id = u.model_id
"""
VERSIONS = """
    SELECT m.id, m.tenant_id, m.name, m.last_version,
           ARRAY(SELECT number FROM versions v WHERE v.model_id = m.id AND number > 0 ORDER BY number) AS numbers,
           (SELECT json_object_agg(name, version) FROM aliases a WHERE a.model_id = m.id) AS aliases
    FROM models m
"""
ROWS = """
    SELECT m.tenant_id, m.name AS model, t.name AS task, e.external_id AS id, e.content->>'text' AS text,
           e.superseded_batch IS NULL AS present
    FROM examples e JOIN models m ON m.id = e.model_id JOIN tasks t ON t.id = e.task_id
"""
MOVES = "SELECT model_id, alias, kind, from_version, to_version, reason FROM alias_moves ORDER BY id"
ARTIFACTS = "SELECT DISTINCT artifact_sha256 FROM versions WHERE artifact_sha256 IS NOT NULL"

Fetched = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry that does not balance."""

    kind: Literal["lost", "duplicated"]
    what: str


@dataclass(frozen=True, slots=True)
class Books:
    """What the database held when everything had ended."""

    updates: Sequence[Fetched]
    models: Sequence[Fetched]
    rows: Sequence[Fetched]
    moves: Sequence[Fetched]
    artifacts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The figures of a soak, and every entry that does not balance."""

    figures: dict[str, int]
    findings: Sequence[Finding]


def balance(records: Sequence[Record], books: Books, *, store: ArtifactStore) -> Ledger:
    """Compares what was acknowledged with what is there."""
    asked = [update for record in records for update in record.updates.values()]
    findings = [
        *missing_and_unknown(asked, books.updates),
        *(finding for row in books.updates for finding in ends_of(row)),
        *decisions(asked, books.updates),
        *(finding for model in books.models for finding in numbers_of(model)),
        *history(books.models, books.moves),
        *(finding for row in books.updates for finding in promotion(row, books.moves)),
        *rollbacks(records, books.moves),
        *rows_of(records, books.rows),
        *artifacts(books.artifacts, store),
    ]
    states = Counter(row["state"] for row in books.updates)
    kinds = Counter(finding.kind for finding in findings)
    figures = {
        "accepted": len(asked),
        **{state: states[state] for state in STATES},
        "lost": kinds["lost"],
        "duplicated": kinds["duplicated"],
    }
    return Ledger(figures, findings)


def read_books(database_url: str) -> Books:
    """Reads everything in one snapshot; the address must be one that sees every tenant."""
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        updates, models, rows, moves, hashes = (
            connection.execute(query).fetchall() for query in (UPDATES, VERSIONS, ROWS, MOVES, ARTIFACTS)
        )
    return Books(updates, models, rows, moves, [row["artifact_sha256"] for row in hashes])


def missing_and_unknown(asked: Iterable[Asked], updates: Sequence[Fetched]) -> Iterator[Finding]:
    """Every accepted update is there once, and none that nobody was told of."""
    stored = {row["id"] for row in updates}
    accepted = {update.id: update for update in asked}
    for id_ in accepted.keys() - stored:
        yield Finding("lost", f"update {id_} was accepted and is not there")
    for row in updates:
        if row["id"] not in accepted:
            yield Finding(
                "duplicated", f"update {row['id']} ({row['metadata']}) is there, and no answer named it"
            )


def ends_of(row: Fetched) -> Iterator[Finding]:
    """An update has ended once, failed only for want of attempts, holds no lease, and has the version its state allows."""
    name = f"update {row['id']} ({row['state']})"
    ends = [type_ for type_ in row["events"] if type_ in FINISHED]
    if row["state"] not in FINISHED or ends[-1:] != [row["state"]]:
        yield Finding("lost", f"{name} has not ended: its events are {row['events']}")
    if len(ends) > 1:
        yield Finding("duplicated", f"{name} ended {len(ends)} times: {ends}")
    if row["worker"] is not None or row["lease_expires_at"] is not None:
        yield Finding("lost", f"{name} is still held by {row['worker']}")
    if row["state"] == "failed" and row["attempts_used"] < row["max_attempts"]:
        yield Finding("lost", f"{name} failed with attempts left: {row['error']}")
    if row["versions"] > 1:
        yield Finding("duplicated", f"{name} has {row['versions']} versions")
    if row["version"] != row["yielded"] or (
        row["state"] in ("promoted", "rejected") and row["version"] is None
    ):
        yield Finding("lost", f"{name} names version {row['version']} and yielded {row['yielded']}")


def decisions(asked: Iterable[Asked], updates: Sequence[Fetched]) -> Iterator[Finding]:
    """Every acknowledged approval, rejection and cancellation has had its effect."""
    states = {row["id"]: row["state"] for row in updates}
    for update in asked:
        if update.word is not None and states.get(update.id) not in ENDS[update.word]:
            yield Finding("lost", f"update {update.id} was {update.word} and is {states.get(update.id)}")


def numbers_of(model: Fetched) -> Iterator[Finding]:
    """Version numbers are 1, 2, 3, … without a gap."""
    if model["numbers"] != list(range(1, model["last_version"] + 1)):
        yield Finding(
            "lost", f"model {model['name']} counts to {model['last_version']} and has {model['numbers']}"
        )


def history(models: Sequence[Fetched], moves: Sequence[Fetched]) -> Iterator[Finding]:
    """The history, played from its beginning, leaves every alias where it stands."""
    played: dict[str, dict[str, int]] = defaultdict(dict)
    for move in moves:
        before = played[move["model_id"]].get(move["alias"])
        if move["from_version"] != before:
            yield Finding(
                "lost", f"a move of {move['alias']} from {move['from_version']} follows one to {before}"
            )
        played[move["model_id"]][move["alias"]] = move["to_version"]
    for model in models:
        if played[model["id"]] != model["aliases"]:
            yield Finding(
                "lost",
                f"model {model['name']}: history leads to {played[model['id']]}, aliases are {model['aliases']}",
            )


def promotion(row: Fetched, moves: Sequence[Fetched]) -> Iterator[Finding]:
    """The version of a promoted update has been champion."""
    been = {(move["model_id"], move["to_version"]) for move in moves if move["alias"] == "champion"}
    if row["state"] == "promoted" and (row["model_id"], row["version"]) not in been:
        yield Finding(
            "lost", f"update {row['id']} is promoted, and version {row['version']} never was champion"
        )


def rollbacks(records: Iterable[Record], moves: Sequence[Fetched]) -> Iterator[Finding]:
    """Every acknowledged rollback was made, once, and no other."""
    made = Counter(move["reason"] for move in moves if move["kind"] == "rolled_back")
    told = Counter(reason for record in records for reason in record.rollbacks)
    yield from differences(told, made, "rollback")


def rows_of(records: Iterable[Record], rows: Sequence[Fetched]) -> Iterator[Finding]:
    """Every acknowledged row is there with each text it had, the last one present; erased rows are gone."""
    told = Counter(
        (record.place.tenant, record.place.model, row.task, row.id, text, text == row.texts[-1])
        for record in records
        for row in record.rows.values()
        for text in row.texts
    )
    columns = ("tenant_id", "model", "task", "id", "text", "present")
    found = Counter(tuple(row[column] for column in columns) for row in rows)
    yield from differences(told, found, "row")


def differences(told: Counter[Any], found: Counter[Any], what: str) -> Iterator[Finding]:
    """What was told of and is not there is lost; what is there beyond that is duplicated."""
    for key in (told - found).elements():
        yield Finding("lost", f"{what} {key} was acknowledged and is not there")
    for key in (found - told).elements():
        yield Finding("duplicated", f"{what} {key} is there beyond what was acknowledged")


def artifacts(hashes: Iterable[str], store: ArtifactStore) -> Iterator[Finding]:
    """Every version's artifact is there, byte for byte, with every file a version needs."""
    for sha256 in hashes:
        try:
            with store.open_verified(sha256) as file, tarfile.open(fileobj=file) as tar:
                missing = FILES - set(tar.getnames())
        except ArtifactDamaged as error:
            yield Finding("lost", f"artifact {sha256}: {error}")
            continue
        if missing:
            yield Finding("lost", f"artifact {sha256} lacks {', '.join(sorted(missing))}")


def attempts(books: Books) -> tuple[int, int]:
    """How many attempts failed and were made up for by another, and how many updates ran out of them."""
    used = sum(row["attempts_used"] for row in books.updates)
    return used, sum(row["state"] == "failed" for row in books.updates)


def as_json(ledger: Ledger) -> str:
    """The findings as JSON lines, for the folder that is kept."""
    return "".join(json.dumps({finding.kind: finding.what}) + "\n" for finding in ledger.findings)
