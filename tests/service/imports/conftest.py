"""A model that adapters are imported into."""

import pytest

from tests.scenes import World


@pytest.fixture
def scene(world: World) -> World:
    """A model with a task that has eval rows."""
    world.model()
    world.task("one", train=2, held=2)
    return world
