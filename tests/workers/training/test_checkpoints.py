"""Interrupted updates: stopped anywhere, torn, resumed, the same bytes in the end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workers.strategies.base import Strategy
from workers.strategies.catalogue import STRATEGIES
from workers.training.contract import AdapterSettings, Progress, TrainRequest
from workers.training.errors import Stopped
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]
RESUMED_ELSEWHERE = {"auto"}
"""Strategies made of other strategies' runs, whose interruptions have tests of their own."""
EVERY_STRATEGY = sorted(
    name
    for name, strategy in STRATEGIES.items()
    if name not in RESUMED_ELSEWHERE and "text-classification" in strategy.task_types
)


class Stopping:
    """Callbacks that ask the run to stop once it reports `phase`, and `step` or more steps."""

    def __init__(self, phase: str, step: int = 0) -> None:
        self.phase, self.step = phase, step
        self.seen: list[Progress] = []

    def should_stop(self) -> str | None:
        here = self.seen and self.seen[-1].phase == self.phase and self.seen[-1].step >= self.step
        return "stop" if here else None

    def during(self, request: TrainRequest) -> list[Progress]:
        """Train until stopped; returns what the run reported."""
        with pytest.raises(Stopped):
            train(request, on_progress=self.seen.append, should_stop=self.should_stop)  # type: ignore[arg-type]  # a stand-in for the real thing
        return self.seen


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.safetensors"))
    }


@pytest.fixture
def second_update(request_for: RequestFor, rows_about: Any, quietly: Any) -> Callable[..., TrainRequest]:
    """`second_update("ewc", output="v2", …)`: an update of a parent that `ewc` trained, with a buffer."""

    def make(strategy: str, *, output: str, **changes: Any) -> TrainRequest:
        # Dropout draws from the generator at every step, so that a generator not restored shows.
        dropout = replace(request_for("sequential", ["sport"]).adapter, dropout=0.1)
        parent = request_for(strategy, ["sport", "space"], output="parent", adapter=dropout, epochs=1)
        if not Path(parent.output).exists():
            train(parent, **quietly)
        return request_for(
            strategy, ["sport", "space", "food"], output=output, parent=parent.output, adapter=dropout,
            rows=rows_about(["food", "sport"], 13), buffer=rows_about(["space", "sport"], 5, first_id=500), **changes,
        )  # fmt: skip

    return make


def stops(steps: int, trains: bool) -> Sequence[Stopping]:
    """After the first step, at the end of an epoch, inside the next, after the last step, and while consolidating."""
    at = dict.fromkeys([1, steps // 2, steps // 2 + 1, steps]) if trains else {}
    return [*(Stopping("training", step) for step in at), Stopping("consolidating")]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", EVERY_STRATEGY)
def test_an_update_stopped_again_and_again_ends_in_the_same_bytes(
    second_update: Callable[..., TrainRequest], quietly: Any, name: str, accumulation: int
) -> None:
    straight, halted = (
        second_update(name, output=output, gradient_accumulation=accumulation) for output in ("s", "h")
    )
    expected = train(straight, **quietly)
    for stop in stops(expected.steps, STRATEGIES[name].trains):
        seen = stop.during(halted)
        assert not Path(halted.output).exists()
        if stop.phase == "training":
            first = min(progress.step for progress in seen if progress.phase == "training")
            assert first <= stop.step == seen[-1].step, "it goes on from where it was, and stops where told"
    result = train(halted, **quietly)
    assert contents(halted.output) == contents(straight.output)
    assert result.losses == expected.losses


def test_the_generators_state_is_part_of_a_checkpoint(
    second_update: Callable[..., TrainRequest], quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above is blind to a lost generator unless dropout really draws from it."""
    straight, halted = (second_update("sequential", output=output) for output in ("s", "h"))
    train(straight, **quietly)
    Stopping("training", 2).during(halted)
    monkeypatch.setattr("torch.set_rng_state", lambda _state: None)
    train(halted, **quietly)
    assert contents(halted.output) != contents(straight.output)


def test_a_stop_while_a_strategy_prepares_again_keeps_the_steps_already_taken(
    second_update: Callable[..., TrainRequest], quietly: Any
) -> None:
    halted = second_update("ewc", output="h")
    sequential_parent = second_update("sequential", output="p")
    train(sequential_parent, **quietly)
    halted = replace(
        halted, parent=sequential_parent.output
    )  # no Fisher there: `start` rebuilds it, and reports
    Stopping("training", 4).during(halted)
    Stopping("consolidating").during(halted)
    assert [folder.name for folder in Path(halted.checkpoints).iterdir()] == ["step-000000004"]


def test_a_stop_after_the_strategy_changed_the_model_does_not_change_it_twice(
    second_update: Callable[..., TrainRequest], quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halve_the_head(_self: Strategy, run: Any, trained: Any) -> Any:
        run.model.head.weight.data.mul_(0.5)
        run.watch.at("consolidating", 1, 2)
        return trained, 0.0

    monkeypatch.setattr(STRATEGIES["sequential"], "combine", halve_the_head)
    straight, halted = (second_update("sequential", output=output) for output in ("s", "h"))
    train(straight, **quietly)
    Stopping("consolidating", 1).during(halted)
    train(halted, **quietly)
    assert contents(halted.output) == contents(straight.output)


def tear(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: tear(folder / "tensors.safetensors", b""),
        lambda folder: tear(
            folder / "tensors.safetensors", (folder / "tensors.safetensors").read_bytes()[:-7]
        ),
        lambda folder: flip_a_bit(folder / "tensors.safetensors"),
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: tear(folder / "position.json", b'{"step": 3'),
        lambda folder: tear(folder / "position.json", b"[]"),
        lambda folder: (folder / "position.json").unlink(),
        lambda folder: folder.rename(folder.with_name(folder.name + ".tmp")),
    ],
    ids=["empty", "cut short", "flipped bit", "no tensors", "half a position", "a position of another kind", "no position",
         "never renamed"],
)  # fmt: skip
def test_a_torn_checkpoint_is_passed_over(request_for: RequestFor, damage: Callable[[Path], object]) -> None:
    halted = request_for("sequential", ["sport", "space"], adapter=AdapterSettings(r=2))
    Stopping("training", 3).during(halted)
    [folder] = Path(halted.checkpoints).iterdir()
    damage(folder)
    seen: list[Progress] = []
    assert train(halted, on_progress=seen.append, should_stop=lambda: None).steps == 6
    assert min(progress.step for progress in seen if progress.phase == "training") == 0


def test_an_older_checkpoint_serves_where_the_newest_is_torn(request_for: RequestFor) -> None:
    halted = request_for("sequential", ["sport", "space"])
    Stopping("training", 3).during(halted)
    [folder] = Path(halted.checkpoints).iterdir()
    torn = folder.with_name("step-000000005")
    torn.mkdir()
    tear(torn / "position.json", b"{}")
    seen: list[Progress] = []
    train(halted, on_progress=seen.append, should_stop=lambda: None)
    assert min(progress.step for progress in seen if progress.phase == "training") == 3
