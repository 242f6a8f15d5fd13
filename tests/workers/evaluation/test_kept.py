"""The model that is kept between eval sets: loaded once per version, never mistaken for another."""

from collections.abc import Callable
from typing import Any

import pytest

from workers.evaluation import kept, runner
from workers.evaluation.runner import evaluate
from workers.training.contract import EvaluateRequest, TrainRequest
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The versions that were loaded, in turn."""
    seen: list[str | None] = []
    plain = runner.loaded

    def counting(request: EvaluateRequest, *arguments: Any, merged: bool) -> Any:
        if merged:
            seen.append(request.version)
        return plain(request, *arguments, merged=merged)

    monkeypatch.setattr(runner, "loaded", counting)
    kept.forget()
    return seen


def test_a_version_is_loaded_once_for_many_eval_sets_and_anew_when_it_changes(
    request_for: RequestFor, rows_about: Any, write_rows: Any, quietly: Any, loads: list[str | None]
) -> None:
    request = request_for("sequential", ["sport", "space"])
    train(request, **quietly)
    rows = [write_rows(f"eval-{seed}", rows_about(["sport", "space"], 3, seed=seed)) for seed in (1, 2)]
    asked = [EvaluateRequest(request.task_type, request.base, request.output, path) for path in rows]
    first = [evaluate(each, **quietly) for each in asked]
    assert loads == [request.output]
    kept.forget()
    again = evaluate(asked[0], **quietly)
    assert again.confidence == first[0].confidence
    retrained = request_for("sequential", ["sport", "space"], epochs=4)
    train(retrained, **quietly)
    assert retrained.output == request.output
    assert evaluate(asked[0], **quietly).confidence != first[0].confidence
    assert len(loads) == 3
