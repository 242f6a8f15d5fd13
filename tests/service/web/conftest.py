"""Pages of a model with a short written lineage."""

import pytest
from fastapi.testclient import TestClient

from tests.conftest import emptied
from tests.scenes import World, make_client
from tests.service.web.visitors import Browser, lineage


@pytest.fixture
def browser(client: TestClient) -> Browser:
    """A browser that is signed in with an all-scopes key of `acme`."""
    return Browser(client)


@pytest.fixture
def long(client: TestClient) -> str:
    """The name of a model of `acme` with five versions of three tasks."""
    lineage(client)
    return "long"


@pytest.fixture(scope="module")
def scene(database_url: str, redis_url: str) -> World:
    """A tenant with such a model and one that learnt nothing yet, for tests of a module that only look."""
    emptied(database_url)
    world = World(make_client("acme"))
    lineage(world.client)
    world.model("fresh")
    return world


@pytest.fixture(scope="module")
def reader(scene: World) -> Browser:
    """A browser that is signed in and looks at the shared scene."""
    return Browser(scene.client)
