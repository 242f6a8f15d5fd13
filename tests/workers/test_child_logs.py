"""What training children log: JSON lines that name the update they belong to."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.child_logs import JsonLine, bind_context

ROOT = Path(__file__).parents[2]
ASK = """
from structlog.contextvars import bound_contextvars
from workers.child import Trainer, TrainingFailed
from workers.training.contract import BaseFolder, EvaluateRequest

request = EvaluateRequest(
    task_type="text-classification", base=BaseFolder(name="none", folder="/none"), version="/none", rows="/none"
)
if __name__ == "__main__":
    with bound_contextvars(update="upd_1", attempt=2, request_id="trace-1"), Trainer() as trainer:
        try:
            trainer.evaluate(request, on_progress=print, watch=lambda: None)
        except TrainingFailed:
            pass
"""


def test_a_line_is_json_with_the_context_and_the_exception() -> None:
    bind_context({"update": "upd_1"})
    try:
        raise ValueError("höher\nals erlaubt")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())
    line = JsonLine().format(record)
    bind_context({})
    assert "\n" not in line
    read = json.loads(line)
    assert (read["event"], read["level"], read["update"]) == ("it failed", "error", "upd_1")
    assert "höher" in read["exception"]


def test_a_later_request_forgets_the_context_of_the_one_before() -> None:
    bind_context({"update": "upd_1", "attempt": 1})
    bind_context({"update": "upd_2"})
    line = json.loads(JsonLine().format(logging.LogRecord("x", logging.INFO, "", 1, "on", (), None)))
    bind_context({})
    assert line["update"] == "upd_2"
    assert "attempt" not in line


@pytest.mark.slow
def test_a_childs_lines_name_update_attempt_and_request(tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(ASK)
    run = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines][:1] == ["child_request"]
    for line in lines:
        assert (line["update"], line["attempt"], line["request_id"]) == ("upd_1", 2, "trace-1")
