"""docs/erasure.md: its commands clean a model, its Python verifies the receipt."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from tests.scenes import World
from tests.service.cli.conftest import Palimpsest, Result

GUIDE = (Path(__file__).parents[3] / "docs" / "erasure.md").read_text()


def commands() -> list[str]:
    """The guide's commands, in their order."""
    return [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


def verifier() -> Any:
    """The guide's `verify`."""
    (source,) = re.findall(r"test_cli_erasures.py -->\n```python\n(.*?)```", GUIDE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)  # the guide's own text
    return names["verify"]


@pytest.mark.slow  # two updates and a rebuild
def test_the_commands_of_the_guide_clean_a_model_and_its_receipt_verifies(
    world: World, palimpsest: Palimpsest
) -> None:
    world.model()
    world.task("one", train=6, held=4)
    world.examples(
        "one", [{"text": "of theirs", "label": "math", "subject": "customer-17", "split": "train"}]
    )
    assert world.learn("one", promotion="always")["status"] == "promoted"
    erase, rebuild, approve, retire, receipt = commands()

    def follow(line: str, **named: str) -> Result:
        for word, value in named.items():
            line = line.replace(word, value)
        words = shlex.split(line.split(" > ")[0])
        assert words.pop(0) == "palimpsest"
        result = palimpsest(*words)
        assert result.code == 0, result.err
        return result

    follow(erase)
    (erasure,) = world.get("/models/triage/erasures")["data"]
    follow(rebuild.removesuffix(" --wait"), ERASURE=erasure["id"])
    world.work()
    update = world.get(f"/models/triage/erasures/{erasure['id']}")["rebuild_update"]
    follow(approve, UPDATE=update)
    follow(retire, ERASURE=erasure["id"])
    signed = json.loads(follow(receipt, ERASURE=erasure["id"]).out)

    assert signed["receipt"]["complete"]
    assert [each["version"] for each in signed["receipt"]["tainted_versions"]] == [1]
    verifier()(signed, world.get("/signing-key"))
    signed["receipt"]["champion"] = 1
    with pytest.raises(InvalidSignature):
        verifier()(signed, world.get("/signing-key"))
