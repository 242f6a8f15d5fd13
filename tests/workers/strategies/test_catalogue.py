"""What the service is told about the strategies."""

import json

from workers.strategies.catalogue import CATALOGUE_FILE, OFFERS, as_json, catalogue


def test_the_catalogue_file_is_fresh() -> None:
    assert CATALOGUE_FILE.read_text(encoding="utf-8") == as_json(), (
        "run python -m workers.strategies.catalogue"
    )


def test_every_strategy_lies_in_the_file_of_its_name_and_describes_itself() -> None:
    for entry in catalogue():
        strategy = OFFERS[entry["name"]]
        assert strategy.__module__ == f"workers.strategies.{entry['name']}"
        assert entry["summary"]
        for word in ("Source", "Wins", "Costs"):
            assert word in entry["description"], f"{entry['name']} does not tell: {word}"
        assert entry["parameters"]["additionalProperties"] is False


def test_every_parameter_has_bounds_and_a_default() -> None:
    for entry in json.loads(as_json()):
        for name, schema in entry["parameters"]["properties"].items():
            assert {"minimum", "maximum", "default", "description"} <= schema.keys(), (
                f"{entry['name']}.{name}"
            )
