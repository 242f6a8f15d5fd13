"""What several tests of the service store."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to store."""
    made = tmp_path / "version"
    made.mkdir()
    (made / "version.json").write_text(json.dumps(["row"] * 100))
    return made
