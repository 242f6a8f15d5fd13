"""An adapter that was trained elsewhere, and a model that it is imported into."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.workers.imports.adapters import imported, packed, train_elsewhere
from workers.training.contract import BaseFolder


@pytest.fixture(scope="session")
def trained_elsewhere(minilm: BaseFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter and a head that plain peft trained."""
    return train_elsewhere(minilm, tmp_path_factory.mktemp("trained-elsewhere"))


@pytest.fixture(scope="module")
def world(database_url: str, redis_url: str) -> Iterator[World]:
    """A model with two tasks; only the first is known to the adapter."""
    emptied(database_url)
    world = World(make_client("acme"))
    world.model(gate={"max_regression": 1.0})
    world.task("one")
    world.task("two", ("random", "socket"))
    yield world
    emptied(database_url)


@pytest.fixture(scope="module")
def first(world: World, trained_elsewhere: Path) -> dict[str, Any]:
    """The import that most tests look at: version 1, promoted by the gate."""
    return imported(world, packed(trained_elsewhere), metadata='{"from": "the old pipeline"}')
