"""The search behind `auto`: its budget, its choice, its memory, and that it says what it did."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from workers.strategies.auto import PORTFOLIO, Candidate
from workers.strategies.catalogue import STRATEGIES
from workers.training import search
from workers.training.batches import Pick
from workers.training.contract import Progress, TrainRequest
from workers.training.errors import Cancelled, Stopped, TrainingFailed
from workers.training.loop import Loop, train
from workers.training.trials import Split, full_plan, held_out, plan_within

RequestFor = Callable[..., TrainRequest]
PAIR = (Candidate("replay", rehearses=True), Candidate("sequential"))
SMALL = (Candidate("replay", rehearses=True), Candidate("sequential"), Candidate("ewc"))


@pytest.fixture
def parent(request_for: RequestFor, quietly: Any) -> TrainRequest:
    """A version that knows two labels."""
    request = request_for("sequential", ["sport", "space"], output="parent", epochs=4, learning_rate=5e-3,
                          head_learning_rate=0.02)  # fmt: skip
    train(request, **quietly)
    return request


@pytest.fixture
def update(request_for: RequestFor, rows_about: Any, parent: TrainRequest) -> Callable[..., TrainRequest]:
    """`update("auto", output="a", …)`: two more labels, with a buffer of the first two."""

    def make(strategy: str = "auto", **changes: Any) -> TrainRequest:
        given = {
            "output": "child", "parent": parent.output, "epochs": 3,
            "rows": rows_about(["money", "food"], 30, first_id=1000, seed=1),
            "buffer": rows_about(["sport", "space"], 15, first_id=2000, seed=2),
        }  # fmt: skip
        return request_for(strategy, ["sport", "space", "money", "food"], **{**given, **changes})

    return make


@pytest.fixture
def portfolio(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Candidate]], None]:
    """Search another portfolio."""
    return lambda candidates: monkeypatch.setattr(search, "PORTFOLIO", tuple(candidates))


def recorded(request: TrainRequest) -> dict[str, Any]:
    """What the version tells of the search."""
    facts: dict[str, Any] = json.loads(Path(request.output, "version.json").read_text())
    return facts


def weights(request: TrainRequest) -> list[bytes]:
    return [
        Path(request.output, name).read_bytes() for name in ("adapter_model.safetensors", "head.safetensors")
    ]


def stopping_at(phase: str, step: int) -> dict[str, Any]:
    """Callbacks that ask the run to stop once it reports this position."""
    seen: list[Progress] = []

    def should_stop() -> str | None:
        return "stop" if seen and seen[-1].phase == phase and seen[-1].step >= step else None

    return {"on_progress": seen.append, "should_stop": should_stop}


def trials_of(auto: Any) -> list[dict[str, Any]]:
    """Every trial of a record, without its seconds."""
    return [{k: v for k, v in trial.items() if k != "seconds"} for rung in auto["rungs"] for trial in rung]


@pytest.mark.parametrize("budget", [0.7, 2.0])
def test_the_search_trains_on_no_more_rows_than_its_budget(
    update: Any, portfolio: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    portfolio(SMALL)
    rows, plain_step = [], Loop.take_step

    def counting(loop: Loop, picks: list[Pick]) -> None:
        rows.append((loop.run.request.output, sum(len(pick.fresh) + len(pick.replay) for pick in picks)))
        plain_step(loop, picks)

    monkeypatch.setattr(Loop, "take_step", counting)
    request = update(parameters={"budget": budget})
    auto = train(request, **quietly).auto
    assert auto is not None
    searched = sum(count for output, count in rows if output != request.output)
    # Plain: sixty fresh rows in three epochs.
    assert 0.5 * budget * 180 < searched <= budget * 180
    assert auto["spent_rows"] == searched
    assert auto["plain_rows"] == 180


def test_the_best_of_a_separable_portfolio_wins_and_is_trained_on_every_row(
    update: Any, portfolio: Any, quietly: Any
) -> None:
    # Without rehearsal the new labels drown the old ones; a penalty this strong lets nothing be learnt.
    portfolio(
        [Candidate("sequential"), Candidate("ewc", {"strength": 1e9}), Candidate("replay", rehearses=True)]
    )
    rates = {"learning_rate": 5e-3, "head_learning_rate": 0.02, "epochs": 6}
    request = update(**rates)
    result = train(request, **quietly)
    assert result.auto is not None
    assert result.auto["winner"] == {"strategy": "replay", "parameters": {}}
    assert "'replay' reached" in result.auto["reason"]
    facts = recorded(request)
    assert facts["auto"] == json.loads(json.dumps(result.auto))
    assert facts["strategy"] == "replay"
    straight = update("replay", output="straight", **rates)
    train(straight, **quietly)
    assert weights(request) == weights(straight), "the winner is trained as if it had been asked for"


@pytest.mark.slow
def test_each_rung_halves_the_candidates_and_trains_a_larger_share(
    update: Any, portfolio: Any, quietly: Any
) -> None:
    portfolio([*SMALL, Candidate("replay", {"fraction": 0.25}, rehearses=True)])
    auto = train(update(parameters={"budget": 3.0}), **quietly).auto
    assert auto is not None
    first, second = auto["rungs"]
    assert [trial["strategy"] for trial in first] == ["replay", "sequential", "ewc", "replay"]
    assert len(second) == 2
    best = sorted(first, key=lambda trial: -trial["objective"])[:2]
    assert {json.dumps(t["parameters"]) + t["strategy"] for t in best} == {
        json.dumps(t["parameters"]) + t["strategy"] for t in second
    }
    assert min(trial["rows"] for trial in second) > max(
        trial["rows"] for trial in first if trial["strategy"] == "sequential"
    )


@pytest.mark.slow
def test_the_same_seed_searches_the_same_way(update: Any, portfolio: Any, quietly: Any) -> None:
    portfolio(PAIR)
    first, second = update(output="a"), update(output="b")
    records = [train(request, **quietly).auto for request in (first, second)]
    assert trials_of(records[0]) == trials_of(records[1])
    assert weights(first) == weights(second)


@pytest.mark.slow
def test_a_stopped_search_goes_on_without_repeating_trials(
    update: Any, portfolio: Any, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    portfolio(SMALL)
    straight, halted = update(output="straight"), update(output="halted")
    expected = trials_of(train(straight, **quietly).auto)
    ran, plain_trial = [], search.run_trial
    monkeypatch.setattr(
        search, "run_trial", lambda *args, **more: ran.append(1) or plain_trial(*args, **more)
    )
    for after in (5, 25):
        with pytest.raises(Stopped):
            train(halted, **stopping_at("searching", after))
        assert not Path(halted.output).exists()
    assert trials_of(train(halted, **quietly).auto) == expected
    assert len(ran) == len(expected) + 2, "only the two trials that were stopped run again"
    assert weights(halted) == weights(straight)


@pytest.mark.slow
def test_a_stop_in_the_final_training_resumes_from_its_checkpoint(
    update: Any, portfolio: Any, quietly: Any
) -> None:
    portfolio(PAIR)
    straight, halted = update(output="straight"), update(output="halted")
    train(straight, **quietly)
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(halted, on_progress=seen.append,
              should_stop=lambda: "stop" if seen and seen[-1].phase == "training" and seen[-1].step >= 4 else None)  # fmt: skip
    resumed: list[Progress] = []
    train(halted, on_progress=resumed.append, should_stop=lambda: None)
    assert not [progress for progress in resumed if progress.phase == "searching"]
    assert min(progress.step for progress in resumed if progress.phase == "training") == 4
    assert weights(halted) == weights(straight)


def test_progress_of_the_search_rises_within_a_known_whole(update: Any, portfolio: Any) -> None:
    portfolio(PAIR)
    seen: list[Progress] = []
    train(update(), on_progress=seen.append, should_stop=lambda: None)
    steps = [progress.step for progress in seen if progress.phase == "searching"]
    assert steps == sorted(steps)
    [total] = {progress.total_steps for progress in seen if progress.phase == "searching"}
    assert 0 < steps[-1] <= total == 2 * 3 * 8, "two plain updates of three epochs of eight steps"


def test_cancelling_a_search_leaves_no_version(update: Any, portfolio: Any) -> None:
    portfolio(PAIR)
    seen: list[Progress] = []
    request = update()
    with pytest.raises(Cancelled):
        train(request, on_progress=seen.append,
              should_stop=lambda: "cancel" if seen and seen[-1].step >= 3 else None)  # fmt: skip
    assert not Path(request.output).exists()
    assert not Path(request.checkpoints, "trial").exists()


def test_a_first_version_is_trained_plainly_and_says_so(request_for: RequestFor, quietly: Any) -> None:
    request = request_for("auto", ["sport", "space"])
    auto = train(request, **quietly).auto
    assert auto is not None
    assert (auto["searched"], auto["winner"]["strategy"]) == (False, "sequential")
    assert "no parent" in auto["reason"]
    plain = request_for("sequential", ["sport", "space"], output="plain")
    train(plain, **quietly)
    assert weights(request) == weights(plain)


def test_without_a_buffer_nothing_is_compared_and_what_cannot_train_is_passed_over(
    update: Any, portfolio: Any, quietly: Any
) -> None:
    portfolio([Candidate("replay", rehearses=True), Candidate("ewc"), Candidate("sequential")])
    auto = train(update(buffer=None), **quietly).auto
    assert auto is not None
    assert auto["winner"]["strategy"] == "sequential"
    assert [entry["strategy"] for entry in auto["skipped"]] == ["replay", "ewc"]
    assert "strategy_state_missing" in auto["skipped"][1]["reason"]
    searched = train(update(buffer=None, output="b", parameters={"stability_weight": 0.0}), **quietly).auto
    assert searched is not None
    assert searched["searched"], "with no weight on old tasks, none of their rows are needed"
    failures = [trial["failure"] for trial in trials_of(searched) if trial["strategy"] == "ewc"]
    assert all("strategy_state_missing" in failure for failure in failures)


def test_unknown_candidates_and_those_beyond_the_budget_are_left_out_with_the_reason(
    update: Any, portfolio: Any, quietly: Any
) -> None:
    portfolio([Candidate("nonesuch"), *SMALL, Candidate("sequential", {"odd": 1})])
    auto = train(update(parameters={"budget": 0.6}), **quietly).auto
    assert auto is not None
    reasons = {(entry["strategy"], bool(entry["parameters"])): entry["reason"] for entry in auto["skipped"]}
    assert "unknown_strategy" in reasons["nonesuch", False]
    assert "bad_parameters" in reasons["sequential", True]
    assert "budget" in reasons["ewc", False]


def test_bad_parameters_of_auto_itself_are_an_error(update: Any, quietly: Any) -> None:
    for parameters in ({"budget": 0.0}, {"stability_weight": 2.0}, {"odd": 1}):
        with pytest.raises(TrainingFailed) as caught:
            train(update(parameters=parameters), **quietly)
        assert caught.value.code == "bad_parameters"


def test_held_out_rows_cover_every_task_and_stay_out_of_trials(update: Any, rows_about: Any) -> None:
    both = rows_about(["sport"], 20, first_id=2000)
    request = update(rows=[*rows_about(["money", "food"], 30, first_id=1000), *both], buffer=both)
    split = Split.of(request)
    assert len(split.held_fresh) == 16
    assert {row["label"] for row in split.held_fresh} == {"money", "food", "sport"}
    held = {row["id"] for row in (*split.held_fresh, *split.held_replay)}
    assert not held & {row["id"] for row in (*split.fresh, *split.replay)}
    assert len(held_out(rows_about(["money"], 5000), seed=0)) <= 512


@pytest.mark.parametrize("rows", [10.0, 100.0, 1e9])
@pytest.mark.parametrize("strategy", ["sequential", "replay", "analytic"])
def test_a_plan_stays_within_its_rows_and_never_exceeds_the_update(
    update: Any, strategy: str, rows: float
) -> None:
    request = update(strategy, gradient_accumulation=2, epochs=2)
    full, plan = full_plan(request, 60, 30), plan_within(rows, request, 60, 30)
    assert plan.rows <= min(rows, full.rows)
    assert plan.steps <= full.steps
    assert plan.fresh_rows <= 60
    if rows > full.rows:
        assert (plan.rows, plan.steps) == (full.rows, full.steps)


def test_every_registered_candidate_of_the_portfolio_takes_its_parameters() -> None:
    for candidate in PORTFOLIO:
        if candidate.strategy in STRATEGIES:
            STRATEGIES[candidate.strategy](candidate.parameters)
    assert "joint" not in {candidate.strategy for candidate in PORTFOLIO}
