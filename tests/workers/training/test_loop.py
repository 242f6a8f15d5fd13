"""Whole updates on a tiny encoder: exactness, resuming, growing, failing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workers.training.contract import AdapterSettings, BaseFolder, Progress, TrainRequest
from workers.training.errors import Cancelled, Stopped, TrainingFailed
from workers.training.loop import rate_factor, train
from workers.training.versions import read_version

RequestFor = Callable[..., TrainRequest]
WEIGHTS = ("adapter_model.safetensors", "head.safetensors")


def weights(folder: str) -> list[bytes]:
    return [Path(folder, name).read_bytes() for name in WEIGHTS]


def stopping_after(steps: int, signal: str = "stop") -> dict[str, Any]:
    """Callbacks that ask the run to end once it reports `steps` steps of training."""
    seen: list[Progress] = []

    def should_stop() -> str | None:
        return signal if seen and seen[-1].phase == "training" and seen[-1].step >= steps else None

    return {"on_progress": seen.append, "should_stop": should_stop}


def test_a_version_holds_everything_needed_to_use_and_remake_it(
    request_for: RequestFor, quietly: Any
) -> None:
    request = replace(request_for("sequential", ["sport", "space"]), lineage={"parent": None, "cut": 4})
    result = train(request, **quietly)
    version = read_version(Path(request.output), request.base)
    assert version.labels == ("sport", "space")
    assert version.facts["lineage"] == {"parent": None, "cut": 4}
    assert version.facts["training"]["seed"] == 3
    assert len(version.facts["base_model"]["sha256"]) == 64
    assert result.steps == 6
    assert result.epochs == 2.0
    assert result.losses[-1][0] == 6
    assert version.facts["packages"] == result.packages
    config = json.loads(Path(request.output, "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert request.base.folder not in "".join(
        path.read_text() for path in Path(request.output).glob("*.json")
    ), "a version must not carry paths of the machine it was made on"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    request_for: RequestFor, quietly: Any
) -> None:
    outputs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        request = request_for("sequential", ["sport", "space"], output=name, seed=seed)
        train(request, **quietly)
        outputs.append(weights(request.output))
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_stopped_again_before_its_first_step_an_update_keeps_its_checkpoint(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    first = request_for("lwf", ["sport", "space"], output="first")
    train(first, **quietly)
    halted = request_for(
        "lwf", ["sport", "space", "food"], output="h", parent=first.output, rows=rows_about(["food"], 24)
    )
    with pytest.raises(Stopped):
        train(halted, **stopping_after(3))
    kept = list(Path(halted.checkpoints).iterdir())
    seen: list[Progress] = []

    def while_preparing() -> str | None:
        return "stop" if seen[-1].phase == "preparing" and seen[-1].total_steps == 24 else None

    with pytest.raises(Stopped):
        # The teacher is answering for the 24 rows; the checkpoint has not been taken up yet.
        train(halted, on_progress=seen.append, should_stop=while_preparing)
    assert list(Path(halted.checkpoints).iterdir()) == kept


@pytest.mark.parametrize("strategy", ["sequential", "replay", "joint"])
@pytest.mark.parametrize(
    "adapter",
    [
        AdapterSettings(r=4, use_dora=True, dropout=0.1),
        AdapterSettings(type="oft", oft_block_size=8, dropout=0.3),
    ],
)
def test_a_stopped_update_of_any_adapter_kind_resumes_to_the_same_bytes(
    request_for: RequestFor, rows_about: Any, quietly: Any, strategy: str, adapter: AdapterSettings
) -> None:
    first = request_for("sequential", ["sport", "space"], output="first", adapter=adapter)
    train(first, **quietly)
    outputs = []
    for name in ("straight", "halted"):
        request = request_for(
            strategy, ["sport", "space", "food"], output=name, adapter=adapter, parent=first.output,
            rows=rows_about(["food"], 20), buffer=rows_about(["space"], 9, first_id=500),
        )  # fmt: skip
        if name == "halted":
            with pytest.raises(Stopped):
                train(request, **stopping_after(3))
        train(request, **quietly)
        outputs.append(weights(request.output))
        assert read_version(Path(request.output), request.base).adapter.kind == adapter.kind
    assert outputs[0] == outputs[1]


def test_a_strategy_refuses_adapters_it_cannot_take(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    dora = AdapterSettings(r=4, use_dora=True)
    with pytest.raises(TrainingFailed, match="'dora'") as caught:
        train(request_for("olora", ["sport"], adapter=dora), **quietly)
    assert caught.value.code == "strategy_unsupported"
    first = request_for("sequential", ["sport", "space"], adapter=dora)
    train(first, **quietly)
    plain = request_for("replay", ["sport", "space"], output="v2", parent=first.output)
    with pytest.raises(TrainingFailed, match="kind 'dora'") as caught:
        train(plain, **quietly)
    assert caught.value.code == "adapters_differ"


def test_a_stop_while_the_strategy_prepares_keeps_the_checkpoint_there_is(
    request_for: RequestFor, quietly: Any
) -> None:
    halted = request_for("osft", ["sport", "space"])
    with pytest.raises(Stopped):
        train(halted, **stopping_after(4))
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(
            halted,
            on_progress=seen.append,
            should_stop=lambda: "stop" if seen and seen[-1].phase == "preparing" else None,
        )
    assert [path.name for path in Path(halted.checkpoints).iterdir()] == ["step-000000004"]
    assert train(halted, **quietly).steps == 6


def test_stopping_between_the_last_step_and_saving_loses_nothing(
    request_for: RequestFor, quietly: Any
) -> None:
    straight, halted = (request_for("ewc", ["sport", "space"], output=name) for name in ("s", "h"))
    train(straight, **quietly)
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        train(
            halted,
            on_progress=seen.append,
            should_stop=lambda: "stop" if seen and seen[-1].phase == "consolidating" else None,
        )
    resumed: list[Progress] = []
    train(halted, on_progress=resumed.append, should_stop=lambda: None)
    assert weights(halted.output) == weights(straight.output)
    assert min(progress.step for progress in resumed if progress.phase == "training") == 6


def test_a_checkpoint_of_other_rows_is_not_resumed(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    halted = request_for("sequential", ["sport", "space"], output="h")
    with pytest.raises(Stopped):
        train(halted, **stopping_after(3))
    # A row was erased between the two attempts.
    erased = request_for(
        "sequential", ["sport", "space"], output="h", rows=rows_about(["sport", "space"], 12)[1:]
    )
    seen: list[Progress] = []
    train(erased, on_progress=seen.append, should_stop=lambda: None)
    assert min(progress.step for progress in seen if progress.phase == "training") == 0


def test_a_cancelled_update_ends_at_the_next_step_and_leaves_nothing(request_for: RequestFor) -> None:
    request = request_for("sequential", ["sport", "space"])
    with pytest.raises(Cancelled):
        train(request, **stopping_after(2, "cancel"))
    assert not Path(request.output).exists()
    assert not Path(request.checkpoints).exists()


def test_new_labels_leave_the_old_rows_of_the_head_bit_for_bit(
    tiny: BaseFolder, request_for: RequestFor, quietly: Any
) -> None:
    first = request_for("sequential", ["sport", "space"])
    train(first, **quietly)
    old = read_version(Path(first.output), tiny).head
    grown = old.grow(5)
    assert torch.equal(grown.weight[:2], old.weight)
    assert torch.equal(grown.bias[:2], old.bias)
    assert not grown.weight[2:].any()
    # And through a whole update whose rates are nought.
    second = request_for("sequential", ["sport", "space", "food"], output="v2", parent=first.output,
                         learning_rate=0.0, head_learning_rate=0.0)  # fmt: skip
    train(second, **quietly)
    before, after = (load_file(Path(folder, "head.safetensors")) for folder in (first.output, second.output))
    assert torch.equal(after["weight"][:2], before["weight"])


def test_training_learns(request_for: RequestFor, quietly: Any) -> None:
    request = request_for(
        "sequential", ["sport", "space", "money"], epochs=8, learning_rate=5e-3, head_learning_rate=0.02
    )
    result = train(request, **quietly)
    assert result.losses[0][1] > 1.0
    assert result.final_loss is not None
    assert result.final_loss < 0.5


def test_accumulated_passes_make_one_step(request_for: RequestFor, quietly: Any) -> None:
    assert train(request_for("sequential", ["sport", "space"], gradient_accumulation=2), **quietly).steps == 4
    assert train(request_for("sequential", ["sport", "space"], max_steps=5), **quietly).steps == 5


def test_progress_tells_phase_step_loss_and_time_to_go(request_for: RequestFor) -> None:
    seen: list[Progress] = []
    train(request_for("sequential", ["sport", "space"]), on_progress=seen.append, should_stop=lambda: None)
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["loading", "tokenising", "preparing", "training", "consolidating", "saving"]
    steps = [progress for progress in seen if progress.phase == "training"]
    assert [progress.step for progress in steps] == [0, 1, 2, 3, 4, 5, 6]
    assert all(progress.total_steps == 6 for progress in steps)
    assert steps[3].loss is not None
    assert steps[3].eta_seconds is not None


def test_rates_rise_and_then_fall_to_nought(request_for: RequestFor) -> None:
    settings = replace(request_for("sequential", ["sport"]).settings, warmup_ratio=0.2)
    factors = [rate_factor(step, 10, settings) for step in range(10)]
    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert factors[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def failing(request: TrainRequest, quietly: Any) -> str:
    with pytest.raises(TrainingFailed) as caught:
        train(request, **quietly)
    return caught.value.code


def test_requests_that_cannot_be_trained_say_why(
    request_for: RequestFor, quietly: Any, rows_about: Any
) -> None:
    good = request_for("sequential", ["sport", "space"])
    missing = replace(good, base=BaseFolder("gone", "/nonexistent"))
    assert failing(missing, quietly) == "base_model_missing"
    assert failing(replace(good, strategy="nonesuch"), quietly) == "unknown_strategy"
    assert failing(replace(good, parameters={"alpha": 1}), quietly) == "bad_parameters"
    assert failing(replace(good, task_type="causal-lm"), quietly) == "bad_labels"
    assert failing(replace(good, task_type="causal-lm", strategy="derpp"), quietly) == "strategy_unsupported"
    assert failing(replace(good, labels=("sport",)), quietly) == "unknown_label"
    assert failing(replace(good, labels=("sport", "space", "sport")), quietly) == "bad_labels"
    assert failing(request_for("sequential", ["sport"], rows=[]), quietly) == "no_fresh_rows"
    assert failing(request_for("sequential", ["sport"], max_length=65), quietly) == "sequence_too_long"


def test_parents_that_do_not_fit_say_why(request_for: RequestFor, quietly: Any) -> None:
    parent = request_for("sequential", ["sport", "space"], output="parent")
    train(parent, **quietly)
    child = request_for("sequential", ["sport", "space"], output="child", parent=parent.output)
    assert failing(replace(child, labels=("space", "sport")), quietly) == "bad_labels"
    assert failing(replace(child, base=replace(child.base, sha256="0" * 64)), quietly) == "base_model_changed"
    assert failing(replace(child, parent="/nonexistent"), quietly) == "bad_version"
    Path(parent.output, "labels.json").write_text('["sport"]')
    assert failing(child, quietly) == "bad_version"


def test_a_task_of_one_class_and_of_one_row_trains(
    request_for: RequestFor, rows_about: Any, quietly: Any
) -> None:
    assert train(request_for("replay", ["sport"], rows=rows_about(["sport"], 1)), **quietly).steps == 2
