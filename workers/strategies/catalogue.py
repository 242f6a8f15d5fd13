"""The strategies by name, and the file that tells the service about them without torch.

`python -m workers.strategies.catalogue` writes `service/updates/strategies.json`.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from workers.strategies.agem import Agem
from workers.strategies.analytic import Analytic
from workers.strategies.auto import Auto
from workers.strategies.base import Offer, Strategy
from workers.strategies.blend import Blend
from workers.strategies.derpp import Derpp
from workers.strategies.ewc import Ewc
from workers.strategies.joint import Joint
from workers.strategies.lwf import Lwf
from workers.strategies.merge import Merge
from workers.strategies.olora import Olora
from workers.strategies.osft import Osft
from workers.strategies.replay import Replay
from workers.strategies.sequential import Sequential
from workers.training.contract import TrainRequest
from workers.training.errors import TrainingFailed

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (Sequential, Replay, Derpp, Ewc, Lwf, Agem, Olora, Osft, Merge, Analytic, Joint)
}

OFFERS: dict[str, type[Offer]] = {**STRATEGIES, Auto.name: Auto, Blend.name: Blend}
"""Everything that an update may show: the strategies, `auto`, which picks one of them, and `blend`, which trains nothing."""

CATALOGUE_FILE = Path(__file__).parents[2] / "service" / "updates" / "strategies.json"


def catalogue() -> list[dict[str, Any]]:
    """Describe every strategy as plain JSON, in name order; `parameters` is the JSON schema of its parameters."""
    return [describe(OFFERS[name]) for name in sorted(OFFERS)]


def describe(strategy: type[Offer]) -> dict[str, Any]:
    """One entry of the catalogue."""
    return {
        "name": strategy.name,
        "summary": strategy.summary,
        "description": inspect.cleandoc(sys.modules[strategy.__module__].__doc__ or ""),
        "offered": strategy.offered,
        "task_types": list(strategy.task_types),
        "adapter_types": list(strategy.adapter_types),
        "needs_replay": strategy.needs_replay,
        "starts_from": strategy.starts_from,
        "uses": sorted(strategy.uses),
        "many_devices": strategy.many_devices,
        "seeded": strategy.seeded,
        "probes": strategy.probes,
        "parameters": strategy.params_type.model_json_schema(),
    }


def as_json() -> str:
    """The catalogue file's text."""
    return json.dumps(catalogue(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def strategy_of(request: TrainRequest) -> Strategy:
    """Make the request's strategy with its parameters checked.

    Raises:
        TrainingFailed: `unknown_strategy`, `strategy_unsupported`, `bad_parameters`.
    """
    strategy = STRATEGIES.get(request.strategy)
    if strategy is None:
        known = ", ".join(sorted(OFFERS))
        raise TrainingFailed(
            "unknown_strategy", f"there is no strategy {request.strategy!r}; there are {known}"
        )
    check_takes(strategy, request)
    return strategy(request.parameters)


def check_takes(strategy: type[Offer], request: TrainRequest) -> None:
    """Check that a strategy takes the request's task type, kind of adapter and number of devices.

    Raises:
        TrainingFailed: `strategy_unsupported`.
    """
    if request.task_type not in strategy.task_types or request.adapter.kind not in strategy.adapter_types:
        raise TrainingFailed(
            "strategy_unsupported",
            f"{strategy.name!r} does not train {request.task_type!r} with a {request.adapter.kind!r} adapter",
        )
    if request.settings.devices > 1 and not strategy.many_devices:
        raise TrainingFailed(
            "strategy_unsupported", f"{strategy.name!r} trains on one device; leave training.devices at 1"
        )


if __name__ == "__main__":
    CATALOGUE_FILE.write_text(as_json(), encoding="utf-8")
