"""Scoring: answers that do not depend on who shares the batch, and that a plain load gives again."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.evaluation import runner
from workers.evaluation.runner import evaluate
from workers.training.contract import BaseFolder, EvaluateRequest, TrainRequest
from workers.training.errors import Cancelled, TrainingFailed
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]
PAGE = Path(__file__).parents[3] / "docs" / "loading-a-version.md"


@pytest.fixture
def trained(request_for: RequestFor, quietly: Any) -> TrainRequest:
    request = request_for(
        "sequential", ["sport", "space", "money"], learning_rate=5e-3, head_learning_rate=0.02, epochs=4
    )
    train(request, **quietly)
    return request


def scoring(trained: TrainRequest, rows: str, **changes: Any) -> EvaluateRequest:
    return replace(EvaluateRequest("text-classification", trained.base, trained.output, rows), **changes)


def test_outcomes_come_in_order_of_id_with_their_confidence(
    trained: TrainRequest, rows_about: Any, write_rows: Any, quietly: Any
) -> None:
    rows = rows_about(["sport", "space", "money"], 20, first_id=100, seed=9)
    outcomes = evaluate(scoring(trained, write_rows("eval", rows[::-1])), **quietly)
    assert outcomes.example_ids == tuple(range(100, 160))
    assert sum(outcomes.correct) > 30, "the tiny encoder has learnt better than chance"
    for row, predicted, correct in zip(rows, outcomes.predicted, outcomes.correct, strict=True):
        assert correct == (outcomes.labels[predicted] == row["label"])
    assert all(1 / 3 <= confidence <= 1 for confidence in outcomes.confidence)


def test_a_label_the_version_has_never_seen_counts_as_wrong(
    trained: TrainRequest, rows_about: Any, write_rows: Any, quietly: Any
) -> None:
    outcomes = evaluate(scoring(trained, write_rows("eval", rows_about(["food"], 5))), **quietly)
    assert outcomes.correct == (False,) * 5
    assert all(0 <= predicted < 3 for predicted in outcomes.predicted)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_do_not_depend_on_the_batches(
    trained: TrainRequest, rows_about: Any, write_rows: Any, quietly: Any, batch_size: int
) -> None:
    rows = write_rows("eval", rows_about(["sport", "space", "money", "food"], 20, seed=4))
    reference = evaluate(scoring(trained, rows, batch_size=16), **quietly)
    outcomes = evaluate(scoring(trained, rows, batch_size=batch_size), **quietly)
    assert outcomes.predicted == reference.predicted
    assert outcomes.confidence == pytest.approx(reference.confidence, abs=1e-5)


def test_close_calls_are_decided_by_the_row_alone(
    trained: TrainRequest, rows_about: Any, write_rows: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows("eval", rows_about(["sport", "space"], 20, seed=4))
    plain = evaluate(scoring(trained, rows), **quietly)
    # Every row is a close call now, and batched logits are spoilt: only the forward of the row alone can answer.
    monkeypatch.setattr(runner, "CLOSE_CALL", float("inf"))
    alone = evaluate(scoring(trained, rows), **quietly)
    assert alone.predicted == plain.predicted
    assert runner.close_calls(torch.tensor([[1.0, 1.001], [0.0, 3.0]])) == [0, 1]


def test_an_empty_eval_set_has_no_outcomes(trained: TrainRequest, write_rows: Any, quietly: Any) -> None:
    outcomes = evaluate(scoring(trained, write_rows("eval", [])), **quietly)
    assert outcomes.example_ids == outcomes.predicted == ()


def test_scoring_can_be_cancelled(trained: TrainRequest, rows_about: Any, write_rows: Any) -> None:
    request = scoring(trained, write_rows("eval", rows_about(["sport"], 5)))
    with pytest.raises(Cancelled):
        evaluate(request, on_progress=lambda _: None, should_stop=lambda: "cancel")


def test_a_version_of_another_checkpoint_is_refused(
    trained: TrainRequest, write_rows: Any, quietly: Any
) -> None:
    request = scoring(trained, write_rows("eval", []), base=replace(trained.base, sha256="0" * 64))
    with pytest.raises(TrainingFailed) as caught:
        evaluate(request, **quietly)
    assert caught.value.code == "base_model_changed"


def plain_predictions(version: str, base: BaseFolder, texts: list[str]) -> list[str]:
    """What the lines printed in the documentation answer, run as they stand."""
    imports, lines = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(lines.strip().splitlines()) == 10, "the page promises ten lines"
    assert "palimpsest" not in lines + imports
    assert "workers" not in lines + imports
    done = subprocess.run(
        [sys.executable, "-c", imports + lines, version, base.folder],
        input="".join(json.dumps(text) + "\n" for text in texts),
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_ten_plain_lines_give_the_same_predictions(
    minilm: BaseFolder, request_for: RequestFor, rows_about: Any, write_rows: Any, quietly: Any
) -> None:
    labels = ["sport", "space", "money", "food"]
    request = request_for("ewc", labels[:2], base=minilm, epochs=1, rows=rows_about(labels[:2], 8))
    train(request, **quietly)
    child = request_for(
        "ewc",
        labels,
        base=minilm,
        output="v2",
        parent=request.output,
        epochs=1,
        rows=rows_about(labels[2:], 8),
    )
    train(child, **quietly)
    rows = rows_about(labels, 15, seed=8)
    rows += [
        {"id": 1000, "task": "t", "text": "", "label": "food"},
        {"id": 1001, "task": "t", "text": "Ünïcode 漢字 🍲 " * 40, "label": "food"},
    ]
    outcomes = evaluate(scoring(child, write_rows("eval", rows)), **quietly)
    assert len(set(outcomes.predicted)) > 1
    expected = [outcomes.labels[index] for index in outcomes.predicted]
    assert plain_predictions(child.output, minilm, [row["text"] for row in rows]) == expected
