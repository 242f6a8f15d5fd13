"""The orderings that papers report where every task brings new labels, on digits in the real engine: means over seeds, by margins that hold."""

import pytest

from bench import digits
from tests.workers.strategies.orderings import mean_of

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

CHANCE_OF_ONE_TASK = 1 / digits.TASKS


def test_with_new_labels_in_every_task_only_the_last_task_survives_without_rehearsal() -> None:
    for strategy in ("sequential", "ewc"):
        assert mean_of(digits.split_stream, strategy) == pytest.approx(CHANCE_OF_ONE_TASK, abs=0.06)


def test_with_new_labels_in_every_task_rehearsal_keeps_most_of_what_joint_training_reaches() -> None:
    sequential, replay, joint = (
        mean_of(digits.split_stream, name) for name in ("sequential", "replay", "joint")
    )
    assert sequential + 0.4 < replay < joint


def test_with_new_labels_in_every_task_soft_targets_are_worth_rehearsing_beside_labels() -> None:
    replay, derpp, joint = (mean_of(digits.split_stream, name) for name in ("replay", "derpp", "joint"))
    assert replay - 0.02 < derpp < joint


def test_with_new_labels_in_every_task_distillation_and_projection_keep_little() -> None:
    replay = mean_of(digits.split_stream, "replay")
    for strategy in ("lwf", "agem"):
        assert CHANCE_OF_ONE_TASK <= mean_of(digits.split_stream, strategy) < replay - 0.4
