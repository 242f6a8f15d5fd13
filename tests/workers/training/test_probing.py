"""Probes: the first steps of an update, as the whole would take them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from workers.evaluation.runner import evaluate
from workers.training.contract import EvaluateRequest, TrainRequest
from workers.training.loop import LEAST_STEPS, steps_of, train
from workers.training.probing import probe

LABELS = ("sport", "space")


def tensors(folder: str) -> dict[str, list[float]]:
    """Every tensor of a version, flat."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor.flatten().tolist() for path in files for name, tensor in load_file(path).items()}


@pytest.fixture
def whole(request_for: Callable[..., TrainRequest]) -> TrainRequest:
    """An update of 18 steps."""
    return request_for("sequential", LABELS, output="whole", epochs=6)


def test_an_update_goes_on_from_its_probe_and_ends_bit_for_bit_as_without_one(
    whole: TrainRequest, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    result = probe(replace(whole, share=0.5, output=str(tmp_path / "probe")), **quietly)
    assert (result.steps, result.total_steps) == (9, 18)
    rest = train(replace(whole, output=str(tmp_path / "rest")), **quietly)
    assert rest.steps == 18
    train(replace(whole, checkpoints=str(tmp_path / "others")), **quietly)
    assert tensors(str(tmp_path / "rest")) == tensors(whole.output)
    assert tensors(str(tmp_path / "probe")) != tensors(whole.output)


def test_a_probe_is_the_beginning_of_the_schedule_and_no_short_update(
    whole: TrainRequest, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    result = probe(replace(whole, share=0.5, output=str(tmp_path / "probe")), **quietly)
    assert 0.5 < result.rate_share < 0.8, "rates fall, so the first half has more than half of them"
    short = replace(whole, output=str(tmp_path / "short"), checkpoints=str(tmp_path / "others"))
    train(replace(short, settings=replace(whole.settings, max_steps=9)), **quietly)
    assert tensors(str(tmp_path / "probe")) != tensors(str(tmp_path / "short"))


def test_a_probe_measures_the_loss_of_the_parent_not_its_own(
    whole: TrainRequest, tmp_path: Path, quietly: dict[str, Any]
) -> None:
    fresh = probe(replace(whole, share=0.5, output=str(tmp_path / "probe")), **quietly)
    assert fresh.new_loss == pytest.approx(0.6931, abs=1e-3), (
        "a head of zeros finds two labels equally likely"
    )
    train(replace(whole, checkpoints=str(tmp_path / "others")), **quietly)
    again = replace(whole, parent=whole.output, checkpoints=str(tmp_path / "again"))
    assert probe(replace(again, output=str(tmp_path / "next"), share=0.5), **quietly).new_loss < 0.5


def test_a_share_has_steps_enough_to_tell_anything_and_no_more_than_there_are() -> None:
    assert [steps_of(share, 1000) for share in (0.05, 0.001, 1.0)] == [50, LEAST_STEPS, 1000]
    assert steps_of(0.05, 5) == 5


def test_an_answer_tells_how_likely_the_right_label_was(
    whole: TrainRequest,
    quietly: dict[str, Any],
    write_rows: Callable[..., str],
    rows_about: Callable[..., Any],
) -> None:
    train(whole, **quietly)
    rows = write_rows("eval", rows_about((*LABELS, "food"), 4, seed=9))
    asked = EvaluateRequest(whole.task_type, whole.base, whole.output, rows)
    answers = evaluate(asked, **quietly)
    for label, likelihood, confidence, correct in zip(
        [index % 3 for index in range(12)],
        answers.likelihoods,
        answers.confidence,
        answers.correct,
        strict=True,
    ):
        if label == 2:
            assert (likelihood, correct) == (0.0, False), "the version has never seen it"
        else:
            assert likelihood == pytest.approx(confidence if correct else 1 - confidence)
