"""The closed-form head: equal to joint ridge regression in any order, exact about what it has counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from workers.evaluation.runner import evaluate
from workers.strategies.analytic import Spectrum, Sums, solve, write_head
from workers.training.classifier import ClassificationHead
from workers.training.contract import EvaluateRequest, Progress, TrainRequest
from workers.training.errors import Stopped, TrainingFailed
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]
LABELS = ["sport", "space", "money", "food"]


def drawn(seed: int, rows: int = 120, width: int = 16, labels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of overlapping classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(labels, (rows,), generator=generator).minimum(torch.tensor(labels - 1))
    centres = torch.randn(labels, width, generator=generator, dtype=torch.float64)
    return centres[y] + torch.randn(rows, width, generator=generator, dtype=torch.float64), y


def summed(x: torch.Tensor, y: torch.Tensor, portions: list[np.ndarray[Any, Any]], labels: int = 5) -> Sums:
    """The sums over portions of the rows, given one after another, with labels appearing as they come."""
    sums = Sums.empty(x.shape[1], 0)
    for rows in portions:
        seen = max(sums.cross.shape[1], int(y[rows].max()) + 1)
        sums = sums.grown(seen).plus(x[rows], y[rows], torch.from_numpy(rows))
    return sums.grown(labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ridge", [0.3, 30.0])
def test_any_order_in_any_portions_is_joint_ridge_regression(seed: int, ridge: float) -> None:
    x, y = drawn(seed)
    joint = Ridge(alpha=ridge).fit(x.numpy(), torch.nn.functional.one_hot(y, 5).numpy())
    order = np.random.default_rng(seed).permutation(len(y))
    by_label = [np.flatnonzero(y.numpy() == label) for label in np.random.default_rng(seed).permutation(5)]
    for portions in ([order], np.array_split(order, 7), list(order[:, None]), by_label):
        solution = solve(summed(x, y, portions), ridge)
        np.testing.assert_allclose(solution.weight.numpy(), joint.coef_, atol=1e-6, rtol=0)
        np.testing.assert_allclose(solution.bias.numpy(), joint.intercept_, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_cross_validation_from_the_sums_is_that_of_the_hat_matrix(seed: int) -> None:
    x, y = drawn(seed)
    spectrum = Spectrum.of(summed(x, y, [np.arange(len(y))]))
    targets = torch.nn.functional.one_hot(y, 5).double()
    centred = x - x.mean(0)
    for ridge in (0.5, 20.0):
        gram = centred.T @ centred + ridge * torch.eye(16, dtype=torch.float64)
        hat = centred @ torch.linalg.solve(gram, centred.T) + 1 / len(y)
        residual = (targets - hat @ targets).square().sum()
        assert spectrum.residual(ridge) == pytest.approx(float(residual))
        assert spectrum.free(ridge) == pytest.approx(len(y) - float(hat.trace()))


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_ridge_is_the_same_in_any_order(seed: int) -> None:
    x, y = drawn(seed)
    order = np.random.default_rng(seed).permutation(len(y))
    first, second = (solve(summed(x, y, p), 0.0) for p in ([order], np.array_split(order[::-1].copy(), 9)))
    assert first.ridge == pytest.approx(second.ridge)
    torch.testing.assert_close(first.weight, second.weight, atol=1e-6, rtol=0)


def test_scaling_the_head_changes_no_prediction_and_calibrates_it() -> None:
    x, y = drawn(1, rows=4000)
    solution = solve(summed(x[:2000], y[:2000], [np.arange(2000)]), 0.0)
    head = ClassificationHead(16, 5)
    write_head(head, solution)
    regression = x[2000:] @ solution.weight.T + solution.bias
    logits = torch.nn.functional.linear(x[2000:].float(), head.weight, head.bias)
    assert torch.equal(logits.argmax(1), regression.argmax(1))
    confidence, predicted = logits.detach().softmax(1).max(1)
    accuracy = (predicted == y[2000:]).double().mean()
    # Softmax of the bare outputs, all of them between 0 and 1, could not exceed e / (e + 4).
    assert float(confidence.mean()) == pytest.approx(float(accuracy), abs=0.1)


def test_rows_without_any_spread_give_the_shares_of_the_labels() -> None:
    solution = solve(summed(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]), [np.arange(4)], labels=2), 0.0)
    torch.testing.assert_close(solution.bias, torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert not solution.weight.any()


def answers(request: TrainRequest, rows: str) -> tuple[str, ...]:
    """What the version predicts, by name: label orders differ between streams."""
    asked = EvaluateRequest("text-classification", request.base, request.output, rows)
    outcomes = evaluate(asked, on_progress=lambda _: None, should_stop=lambda: None)
    return tuple(outcomes.labels[index] for index in outcomes.predicted)


@pytest.fixture
def stream(request_for: RequestFor, rows_about: Any, quietly: Any) -> Callable[..., TrainRequest]:
    """`stream("a", [["sport"], ["food", "space"]])` trains an update per task; returns the last request."""
    rows = {label: rows_about([label], 12, first_id=100 * i, seed=i) for i, label in enumerate(LABELS)}

    def run(name: str, tasks: list[list[str]], **changes: Any) -> TrainRequest:
        labels: list[str] = []
        parent = None
        for number, task in enumerate(tasks):
            labels += [label for label in task if label not in labels]
            fresh = [row for label in task for row in rows[label]]
            request = request_for(
                "analytic", labels, output=f"{name}{number}", rows=fresh, parent=parent, **changes
            )
            train(request, **quietly)
            parent = request.output
        return request

    return run


def test_updates_in_turn_equal_one_update_on_everything(
    stream: Callable[..., TrainRequest], write_rows: Any, rows_about: Any
) -> None:
    held_out = write_rows("held-out", rows_about(LABELS, 10, first_id=900, seed=9))
    joint = stream("joint", [LABELS])
    # A fresh adapter changes nothing yet, so the features are the same whatever it was drawn as.
    wanted = load_file(Path(joint.output, "head.safetensors"))["weight"]
    for name, tasks in (
        ("a", [["sport"], ["space"], ["money"], ["food"]]),
        ("b", [["food", "money"], ["space", "sport"]]),
    ):
        last = stream(name, tasks)
        weight = load_file(Path(last.output, "head.safetensors"))["weight"]
        places = [last.labels.index(label) for label in LABELS]
        torch.testing.assert_close(weight[places], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert answers(last, held_out) == answers(joint, held_out)


def test_the_adapter_comes_out_bit_for_bit_and_the_head_keeps_up(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    parent = request_for("sequential", ["sport", "space"], output="parent", learning_rate=5e-3)
    train(parent, **quietly)
    child = request_for(
        "analytic", ["sport", "space", "food"], output="child", parent=parent.output,
        rows=rows_about(["food"], 12, first_id=100), buffer=rows_about(["sport", "space"], 12, first_id=200),
    )  # fmt: skip
    seen: list[Progress] = []
    result = train(child, on_progress=seen.append, should_stop=lambda: None)
    before, after = (Path(r.output, "adapter_model.safetensors").read_bytes() for r in (parent, child))
    assert before == after
    assert (result.steps, result.final_loss, result.losses) == (0, None, ())
    assert {progress.phase for progress in seen} >= {"preparing", "consolidating", "saving"}
    assert set(answers(child, child.fresh)) == {"food"}
    state = load_file(Path(child.output, "state", "analytic.safetensors"))
    assert state["gram"][-1, -1] == 12 + 24, "buffered rows stand in for those the parent left no sums of"


def test_relearnt_rows_are_counted_once(stream: Callable[..., TrainRequest]) -> None:
    once = stream("once", [["sport", "space"]])
    twice = stream("twice", [["sport", "space"], ["sport", "space"]])
    name = Path("state", "analytic.safetensors")
    first, second = (load_file(Path(request.output, name)) for request in (once, twice))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sums_of_other_features_count_as_missing(
    stream: Callable[..., TrainRequest], request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    parent = stream("parent", [["sport", "space"]])
    child = request_for("analytic", [*parent.labels, "food"], output="child", parent=parent.output,
                        rows=rows_about(["food"], 8, first_id=700), max_length=6)  # fmt: skip
    with pytest.raises(TrainingFailed) as caught:
        train(child, **quietly)
    assert caught.value.code == "strategy_state_missing"
    buffer = rows_about(["sport", "space"], 4, first_id=800)
    train(request_for("analytic", child.labels, output="child", parent=parent.output, max_length=6,
                      rows=rows_about(["food"], 8, first_id=700), buffer=buffer), **quietly)  # fmt: skip
    counts = load_file(Path(child.output, "state", "analytic.safetensors"))["cross"][-1]
    assert counts.tolist() == [4, 4, 8]


def test_a_stop_while_rows_are_added_loses_nothing(request_for: RequestFor, quietly: Any) -> None:
    straight = request_for("analytic", LABELS, output="straight")
    halted = replace(straight, output=straight.output + "-h", checkpoints=straight.checkpoints + "-h")
    train(straight, **quietly)
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(halted, on_progress=seen.append,
              should_stop=lambda: "stop" if seen and seen[-1].phase == "consolidating" else None)  # fmt: skip
    train(halted, **quietly)
    for name in ("head.safetensors", "state/analytic.safetensors"):
        assert Path(straight.output, name).read_bytes() == Path(halted.output, name).read_bytes()
