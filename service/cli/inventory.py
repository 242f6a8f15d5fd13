"""`palimpsest storage` and `palimpsest strategies`: what is stored, and what updates can train with."""

from typing import Annotated

import typer

from service.cli.calling import Call, Json, over_http
from service.cli.output import plain, print_facts, print_gap, print_table, size

app = typer.Typer()
strategies = typer.Typer(no_args_is_help=True, help="The continual-learning strategies and their parameters.")

COUNTED = ("examples", "example_bytes", "versions", "artifacts", "artifact_bytes", "replay_entries")


@over_http(app, "storage")
def show_storage(call: Call) -> None:
    """Show how much is stored, model by model."""

    def view(storage: Json) -> None:
        named = [
            (f"{one['model']} (archived)" if one["archived"] else one["model"], one)
            for one in storage["models"]
        ]
        rows = ((name, *_amounts(one)) for name, one in [*named, ("all", storage["total"])])
        columns = [name.removesuffix("_bytes").replace("_", " ") for name in COUNTED]
        columns[1], columns[4] = "of texts", "of adapters"
        print_table(("model", *columns), rows, right=columns)

    call.show(call.api.get("/v1/storage"), view)


@over_http(strategies, "list")
def list_strategies(call: Call) -> None:
    """List every strategy with a summary."""

    def view(strategies: Json) -> None:
        rows = (
            (one["name"], one["summary"], one["task_types"], one["needs_replay"])
            for one in strategies["data"]
        )
        print_table(("strategy", "summary", "task types", "rehearses"), rows)

    call.show(call.api.get("/v1/strategies"), view)


@over_http(strategies, "show")
def show_strategy(
    call: Call, strategy: Annotated[str, typer.Argument(metavar="STRATEGY", help="Its name.")]
) -> None:
    """Show a strategy with its parameters, which `update submit --set strategy.NAME=VALUE` sets."""
    from service.cli.client import path

    call.show(call.api.get(path("strategies", strategy)), _facts)


def _facts(strategy: Json) -> None:
    print_facts([
        ("strategy", strategy["name"]),
        ("summary", strategy["summary"]),
        ("task types", strategy["task_types"]),
        ("adapter types", strategy["adapter_types"]),
        ("rehearses", strategy["needs_replay"]),
        ("starts from", strategy["starts_from"]),
    ])  # fmt: skip
    print_gap()
    for line in strategy["description"].splitlines():
        typer.echo(plain(line))
    print_gap()
    rows = (
        (name, schema.get("default"), schema.get("type"), schema.get("description"))
        for name, schema in strategy["parameters"].get("properties", {}).items()
    )
    print_table(("parameter", "default", "type", "what it does"), rows)


def _amounts(one: Json) -> list[object]:
    return [size(one[name]) if name.endswith("_bytes") else one[name] for name in COUNTED]
