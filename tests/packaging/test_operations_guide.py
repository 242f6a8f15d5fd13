"""docs/operations.md: its commands do what it says, and its alerts speak of metrics that exist."""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import promql_parser
import psycopg
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client import Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from service.config import Settings
from service.embedded import PostgresServer
from tests.scenes import World, docstrings

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "operations.md").read_text()
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
GIVEN = ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL", "PALIMPSEST_KEY_PEPPER", "PALIMPSEST_WORK_DIR")
PATIENCE_SECONDS = 240.0


def commands(name: str) -> list[str]:
    """The lines of the guide's block that this file says it runs."""
    marked = rf"<!-- run by tests/packaging/test_operations_guide.py: {name} -->\n```sh\n(.*?)```"
    (block,) = re.findall(marked, GUIDE, re.DOTALL)
    return block.strip().splitlines()


def environment(bin_folder: Path, **values: object) -> dict[str, str]:
    """An environment whose `palimpsest` is this source's, with nothing of the suite's own addresses."""
    command = bin_folder / "palimpsest"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in GIVEN}
    kept |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return kept | {name: str(value) for name, value in values.items()}


def shell(line: str, env: Mapping[str, str]) -> None:
    """Runs one line of the guide to its end."""
    done = subprocess.run(
        ["sh", "-euc", line], env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running(line: str, env: Mapping[str, str], state: Path) -> Iterator[dict[str, str]]:
    """Runs a `palimpsest up` line; yields what it wrote into `connection.json`."""
    process = subprocess.Popen(
        ["sh", "-euc", f"exec {line}"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    published = state / "connection.json"
    try:
        until(lambda: published.exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        yield json.loads(published.read_text())
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def call(connection: Mapping[str, str], method: str, path: str, body: object = None) -> bytes:
    """One call of the API under the connection's key; returns the answer's body."""
    address = urlsplit(connection["url"])
    client = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    headers = {"Authorization": f"Bearer {connection['api_key']}", "Content-Type": "application/json"}
    client.request(method, f"/v1{path}", body=json.dumps(body) if body is not None else None, headers=headers)
    answer = client.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    return content


def teach(connection: Mapping[str, str]) -> None:
    """One promoted version, by the running worker."""
    rows = [
        {"text": text, "label": label, "split": "eval" if at % 3 == 0 else "train"}
        for label in ("math", "os")
        for at, text in enumerate(docstrings(label)[:18])
    ]
    model = {"name": "triage", "base_model": "minilm-l6", "task_type": "text-classification"}
    call(connection, "POST", "/models", model)
    call(connection, "PUT", "/models/triage/tasks/a")
    call(connection, "POST", "/models/triage/tasks/a/examples", {"examples": rows})
    training = {"epochs": 1, "max_length": 32, "batch_size": 8, "seed": 1}
    body = {"tasks": ["a"], "training": training, "promotion": "always"}
    update = json.loads(call(connection, "POST", "/models/triage/updates", body))
    until(
        lambda: (
            json.loads(call(connection, "GET", f"/updates/{update['id']}"))["status"]
            in ("promoted", "failed")
        )
    )
    assert json.loads(call(connection, "GET", f"/updates/{update['id']}"))["status"] == "promoted"


def what_it_knows(connection: Mapping[str, str]) -> dict[str, object]:
    """Champion, version, report, matrix, history and buffer, as the API and the database have them."""
    paths = (
        "",
        "/versions/1",
        "/versions/1/report",
        "/reports/forgetting",
        "/history",
        "/aliases",
        "/tasks/a",
    )
    known: dict[str, object] = {
        path: json.loads(call(connection, "GET", f"/models/triage{path}")) for path in paths
    }
    known["adapter"] = hashlib.sha256(
        call(connection, "GET", "/models/triage/versions/1/adapter")
    ).hexdigest()
    with psycopg.connect(connection["database_url"]) as database:
        known["buffer"] = database.execute(
            "SELECT version, stratum, priority, example_id FROM replay_entries ORDER BY 1, 2, 3"
        ).fetchall()
    return known


@pytest.mark.slow
@pytest.mark.timeout(900)  # two whole stacks and a training: minutes on a machine that others keep busy
def test_a_restored_backup_serves_the_same_champion_report_buffer_and_adapter_under_the_old_key(
    tmp_path: Path,
) -> None:
    old, new, folder = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    env = environment(tmp_path, STATE=old, BACKUP=folder, NEW_STATE=new)
    with running(f"palimpsest up --state {old}", env, old) as connection:
        teach(connection)
        before = what_it_knows(connection)
        (backup,) = commands("backup")
        shell(backup, env)
    restore, up = commands("restore")
    shell(restore, env)
    with running(f"{up} --workers 0", env, new) as restored:
        assert restored["api_key"] == connection["api_key"]
        after = what_it_knows(restored)
    assert before[""]["champion"] == 1  # type: ignore[index]  # JSON
    assert before["adapter"] == before["/versions/1"]["artifact"]["sha256"]  # type: ignore[index]  # JSON
    assert before["buffer"]
    assert after == before


@pytest.mark.slow
def test_a_backup_of_a_postgres_of_ones_own_goes_into_another(world: World, tmp_path: Path) -> None:
    world.model()
    world.task("a")
    given = {name: os.environ[name] for name in GIVEN}
    with PostgresServer(tmp_path / "pg", logs_dir=tmp_path, password="new", durable=False) as server:
        env = environment(
            tmp_path, **given, BACKUP=tmp_path / "backup", NEW_DATABASE_URL=server.url,
            NEW_ARTIFACT_URL=(tmp_path / "store").as_uri(),
        )  # fmt: skip
        for line in commands("own-postgres"):
            shell(line, env)
        with psycopg.connect(server.url) as connection:
            names = connection.execute("SELECT name FROM models").fetchall()
            assert names == [("triage",)]
            assert connection.execute("SELECT count(*) FROM examples").fetchone() == (40,)


def exported(client: TestClient) -> dict[str, set[str]]:
    """Every sample name the service may export, with its labels."""
    from service.metrics.http import registry

    for _ in range(2):  # the second scrape has counted the first
        text = client.get("/metrics").text
    names: dict[str, set[str]] = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    # A labelled metric exports nothing before its first event.
    for metric in list(registry._collector_to_names):
        if isinstance(metric, Counter):
            names[f"{metric._name}_total"] = set(metric._labelnames)
        elif isinstance(metric, Histogram):
            names[f"{metric._name}_bucket"] = {*metric._labelnames, "le"}
    return names


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    """Every selection of series in a PromQL expression."""
    found: list[promql_parser.VectorSelector] = []

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(expression, note)
    return found


def test_alerts_speak_only_of_metrics_that_the_service_exports(client: TestClient) -> None:
    names = exported(client)
    names["up"] = set()  # Prometheus' own
    for rule in RULES:
        expression = promql_parser.parse(rule["expr"])
        assert isinstance(expression, promql_parser.BinaryExpr), "an alert compares"
        for selector in selectors(expression):
            assert selector.name in names, rule["alert"]
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= {*names[selector.name], "job"}, rule["alert"]


def test_alerts_are_well_formed_and_each_is_explained_in_the_guide() -> None:
    known = {"alert", "expr", "for", "labels", "annotations"}
    durations = re.compile(r"\d+[smhd]")
    for rule in RULES:
        assert set(rule) <= known
        assert durations.fullmatch(rule.get("for", "1s"))
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
    explained = re.findall(r"^\| `(Palimpsest\w+)` \|", GUIDE, re.MULTILINE)
    assert explained == [rule["alert"] for rule in RULES]


def test_states_and_error_codes_in_alerts_exist() -> None:
    from service.artifacts import ArtifactDamaged
    from service.models import UpdateState

    text = " ".join(rule["expr"] for rule in RULES)
    states = {state for found in re.findall(r'state=~?"([^"]+)"', text) for state in found.split("|")}
    assert states <= set(map(str, UpdateState))
    assert set(re.findall(r'code="([^"]+)"', text)) == {ArtifactDamaged.code}


def test_every_setting_the_guide_names_exists_and_its_defaults_are_true() -> None:
    fields = {f"PALIMPSEST_{name.upper()}": field for name, field in Settings.model_fields.items()}
    assert set(re.findall(r"PALIMPSEST_[A-Z_]+", GUIDE)) <= fields.keys()
    defaults = {name: field.default for name, field in fields.items()}
    for text, setting, unit in (
        ("256 MiB", "MAX_BODY_BYTES", 2**20), ("16 MiB", "MAX_JSON_BODY_BYTES", 2**20), ("1 MiB", "MAX_ROW_BYTES", 2**20),
        ("10,000", "MAX_LABELS_PER_MODEL", 1), ("1,000", "MAX_QUEUED_UPDATES_PER_TENANT", 1),
        ("30,000", "RATE_LIMIT_PER_MINUTE", 1), ("3", "MAX_ATTEMPTS", 1), ("30 s", "LEASE_SECONDS", 1),
        ("15 s", "RETRY_SECONDS", 1),
    ):  # fmt: skip
        assert f"| {text} | `PALIMPSEST_{setting}`" in GUIDE
        assert int(text.split()[0].replace(",", "")) * unit == defaults[f"PALIMPSEST_{setting}"]


def test_links_of_the_guide_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", GUIDE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        if target.startswith("#"):
            assert target[1:] in headings
        else:
            assert (ROOT / "docs" / target).exists(), target
