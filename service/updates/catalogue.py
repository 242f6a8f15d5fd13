"""The strategies, as the workers' generated catalogue describes them; no torch is needed to check a request."""

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

from service.errors import FieldError, NotFound, Unprocessable, field_errors
from service.models import Model
from service.registry.schemas import AdapterSpec
from service.updates.schemas import StrategyInfo, StrategyRequest

LONGEST_MESSAGE = 300


@lru_cache
def strategies() -> dict[str, StrategyInfo]:
    """Returns every strategy by name, those among them that a request for an update may not name."""
    text = files("service.updates").joinpath("strategies.json").read_text(encoding="utf-8")
    document = json.loads(text)
    entries = document["strategies"] if isinstance(document, dict) else document
    return {entry["name"]: StrategyInfo.model_validate(entry) for entry in entries}


def require_strategy(name: str) -> StrategyInfo:
    """Returns the strategy of that name. Raises `NotFound`."""
    info = strategies().get(name)
    if info is None:
        raise NotFound(f"No strategy '{name}'. {_offer()}", code="strategy_not_found", param="strategy")
    return info


def offered_strategies() -> list[StrategyInfo]:
    """Returns the strategies that a request for an update may name."""
    return [info for info in strategies().values() if info.offered]


def _offer() -> str:
    return f"Strategies are: {', '.join(sorted(info.name for info in offered_strategies()))}."


def _require_finite(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Unprocessable(
                f"strategy.{name} must be a finite number, not {value}.",
                code="invalid_strategy_parameters", param=f"strategy.{name}",
            )  # fmt: skip


def require_applicable(info: StrategyInfo, *, model: Model, param: str) -> None:
    """Raises `Unprocessable` where the strategy cannot take the model's task or adapter type."""
    for kind, wanted, taken in (
        ("task type", model.task_type, info.task_types),
        ("adapter type", AdapterSpec.model_validate(model.adapter).kind, info.adapter_types),
    ):
        if wanted not in taken:
            raise Unprocessable(
                f"The strategy '{info.name}' takes the {kind} {', '.join(taken)}, not {wanted}.",
                code="strategy_not_applicable", param=param,
            )  # fmt: skip


def check_strategy(request: StrategyRequest, *, model: Model, devices: int) -> dict[str, Any]:
    """Returns the strategy's parameters with defaults filled in.

    Raises `Unprocessable` for an unknown strategy, one that cannot take the model's task or adapter type or
    so many devices, and for unknown or out-of-bounds parameters.
    """
    info = strategies().get(request.name)
    if info is None or not info.offered:
        raise Unprocessable(
            f"Unknown strategy '{request.name}'. {_offer()}",
            code="unknown_strategy", param="strategy.name",
        )  # fmt: skip
    require_applicable(info, model=model, param="strategy.name")
    if devices > 1 and not info.many_devices:
        raise Unprocessable(
            f"The strategy '{info.name}' trains on one device; leave training.devices at 1.",
            code="strategy_not_applicable", param="training.devices",
        )  # fmt: skip
    parameters = request.parameters
    _require_finite(parameters)
    faults = sorted(
        Draft202012Validator(info.parameters).iter_errors(parameters), key=lambda fault: list(fault.path)
    )
    if faults:
        errors = [
            FieldError(
                loc=["body", "strategy", *fault.absolute_path],
                msg=_short(fault.message),
                type=str(fault.validator),
            )
            for fault in faults
        ]
        raise Unprocessable(
            f"strategy '{info.name}': {_short(faults[0].message)}", code="invalid_strategy_parameters", param="strategy",
            extra=field_errors(errors),
        )  # fmt: skip
    defaults = {
        name: schema["default"]
        for name, schema in info.parameters.get("properties", {}).items()
        if "default" in schema
    }
    return {**defaults, **parameters}


def _short(message: str) -> str:
    # The validator repeats the value it was given, however long.
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"
