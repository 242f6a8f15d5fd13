"""The API and the worker's supervisor start without the training libraries."""

import subprocess
import sys

import pytest

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "safetensors"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, where nothing has been imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_api_and_the_command_line_work_where_torch_is_not_installed() -> None:
    done = python(
        BLOCK + "import service.app, service.cli\n"
        "paths = service.app.create_app().openapi()['paths']\n"
        "assert '/livez' in paths and '/v1/models' in paths, sorted(paths)\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_block_of_these_tests_blocks() -> None:
    done = python(BLOCK + "import torch")
    assert "torch is not installed here" in done.stderr


@pytest.mark.parametrize("module", ["service.app", "service.cli", "workers.app", "workers.housekeeping"])
def test_a_long_running_process_holds_no_training_library(module: str) -> None:
    done = python(
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'transformers', 'peft', 'safetensors'} & sys.modules.keys()))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"importing {module} loaded {done.stdout}"
