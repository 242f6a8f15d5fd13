"""Blends on tiny bases: what is added up, and what cannot be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.training.adapters import read_adapter
from workers.training.contract import AdapterSettings, BaseFolder, TrainRequest
from workers.training.errors import TrainingFailed
from workers.training.loop import train
from workers.training.versions import read_version

RequestFor = Callable[..., TrainRequest]
Sides = tuple[TrainRequest, TrainRequest]


@pytest.fixture
def sides(request_for: RequestFor, quietly: Any) -> Sides:
    """A parent and its child, which has one more label."""
    parent = request_for("sequential", ["sport", "space"], learning_rate=1e-2, max_length=16)
    train(parent, **quietly)
    child = request_for(
        "sequential",
        ["sport", "space", "money"],
        output="v2",
        parent=parent.output,
        learning_rate=1e-2,
        seed=4,
    )
    train(child, **quietly)
    return parent, child


def between(version: TrainRequest, beta: float, **changes: Any) -> TrainRequest:
    folder = Path(version.output).parent / f"between-{beta}"
    asked = {
        "strategy": "blend", "parameters": {"beta": beta, "of": 2}, "child": version.output, "fresh": "", "replay": "",
        "output": str(folder),
    }  # fmt: skip
    return replace(version, **{**asked, **changes})


def products(folder: str) -> dict[str, Tensor]:
    return {name: scaling * (b @ a) for name, a, b, scaling in read_adapter(Path(folder)).factors()}


def test_a_blend_is_the_weighted_sum_reads_as_the_child_did_and_has_no_steps(
    sides: Sides, tiny: BaseFolder, quietly: Any
) -> None:
    parent, child = sides
    request = between(child, 0.3)
    result = train(request, **quietly)
    old, new, found = (products(request.output) for request in (parent, child, request))
    for name in found:
        assert torch.allclose(found[name], 0.7 * old[name] + 0.3 * new[name], atol=1e-6)
    version = read_version(Path(request.output), tiny, task_type="text-classification")
    assert version.labels == child.labels
    assert version.max_length == child.settings.max_length == 32
    assert (result.steps, result.fresh_rows, result.labels) == (0, 0, child.labels)
    facts = json.loads(Path(request.output, "version.json").read_text())
    assert (facts["strategy"], facts["parameters"]) == ("blend", {"beta": 0.3, "of": 2})
    assert (facts["rank"], facts["compression"]) == (8, {"relative_error": 0.0})
    assert sorted(path.name for path in Path(request.output).iterdir() if path.is_dir()) == []


def test_past_the_rank_that_the_model_may_have_it_is_the_best_approximation(
    sides: Sides, quietly: Any
) -> None:
    parent, child = sides
    request = between(child, 0.5, adapter=replace(child.adapter, max_rank=4))
    train(request, **quietly)
    found, whole = products(request.output), products(parent.output)
    error = total = 0.0
    for name, one in products(child.output).items():
        exact = 0.5 * whole[name] + 0.5 * one
        values = torch.linalg.svdvals(exact)
        assert torch.allclose((exact - found[name]).norm(), values[4:].norm(), atol=1e-5)
        error += float((exact - found[name]).square().sum())
        total += float(exact.square().sum())
    facts = json.loads(Path(request.output, "version.json").read_text())
    assert facts["rank"] == 4
    assert facts["compression"]["relative_error"] == pytest.approx((error / total) ** 0.5, rel=1e-3, abs=1e-6)


def test_the_ends_are_the_two_versions(sides: Sides, tiny: BaseFolder, quietly: Any) -> None:
    parent, child = sides
    for beta, end in ((0.0, parent), (1.0, child)):
        request = between(child, beta)
        train(request, **quietly)
        expected = products(end.output)
        for name, found in products(request.output).items():
            assert torch.allclose(found, expected[name], atol=1e-7)
        heads = [read_version(Path(one.output), tiny).head for one in (request, end)]
        assert heads[0] is not None
        assert heads[1] is not None
        assert torch.equal(heads[0].weight[:2], heads[1].weight[:2])


def test_what_cannot_be_added_up_is_refused(sides: Sides, quietly: Any) -> None:
    parent, child = sides

    def code(**changes: Any) -> str:
        with pytest.raises(TrainingFailed) as failed:
            train(between(child, 0.5, **changes), **quietly)
        return failed.value.code

    assert code(adapter=replace(child.adapter, use_dora=True)) == "strategy_unsupported"
    assert code(adapter=AdapterSettings(type="oft", oft_block_size=8)) == "strategy_unsupported"
    assert code(child=None) == "bad_version"
    assert code(parent=child.output, child=parent.output) == "bad_labels"
    assert code(parameters={"beta": 1.5, "of": 2}) == "bad_parameters"


def test_an_adapter_on_other_layers_is_refused(sides: Sides, request_for: RequestFor, quietly: Any) -> None:
    _, child = sides
    other = request_for(
        "sequential", child.labels, output="other", adapter=AdapterSettings(r=4, target_modules=("dense",))
    )
    train(other, **quietly)
    with pytest.raises(TrainingFailed) as failed:
        train(between(other, 0.5, parent=child.output), **quietly)
    assert failed.value.code == "adapters_differ"


def test_a_language_models_first_version_is_blended_with_its_base(
    causal_request: RequestFor, tiny_lm: BaseFolder, quietly: Any
) -> None:
    child = causal_request("sequential")
    train(child, **quietly)
    request = between(child, 0.25)
    train(request, **quietly)
    version = read_version(Path(request.output), tiny_lm, task_type="causal-lm")
    assert (version.head, version.labels) == (None, ())
    expected = products(child.output)
    for name, found in products(request.output).items():
        assert torch.allclose(found, 0.25 * expected[name], atol=1e-7)
