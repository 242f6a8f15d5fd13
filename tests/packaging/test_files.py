"""What a deployer reads: Dockerfile, docker-compose.yml, constraints.txt, Makefile, the CI script."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN_SERVICES = ("migrate", "api", "sweeper", "worker", "worker-gpu")


def stages() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, by the stage's name."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = list(found.get(match[1], ()))
        elif found and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def instruction(stage: list[str], name: str) -> str:
    """The last instruction of this name, which is the one that counts."""
    return [line for line in stage if line.startswith(f"{name} ")][-1]


def pins() -> dict[str, Version]:
    """The pinned version of each package of constraints.txt, by its canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines), (
        "name==version and nothing else"
    )
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("target", ["api", "worker"])
def test_an_image_runs_the_command_as_a_fixed_user_who_is_not_root(target: str) -> None:
    stage = stages()[target]
    assert instruction(stage, "USER") == "USER 10001:10001"
    assert instruction(stage, "ENTRYPOINT") == 'ENTRYPOINT ["palimpsest"]'
    assert instruction(stage, "CMD").startswith(f'CMD ["{target}"')


def test_the_api_image_takes_nothing_from_the_training_packages() -> None:
    assert not any("worker" in line or "torch" in line for line in stages()["api"] + stages()["api-packages"])
    needed = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert not needed & {"torch", "transformers", "peft", "safetensors"}


def test_the_api_image_is_alive_when_livez_answers() -> None:
    assert "127.0.0.1:8000/livez" in instruction(stages()["api"], "HEALTHCHECK")


def test_images_are_built_at_the_pinned_versions() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    installs = [line for line in text.splitlines() if "pip --python" in line and "/wheel/" not in line]
    assert len(installs) == 4
    assert all("-c /requirements/constraints.txt" in line for line in installs)


def test_compose_follows_its_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*checker, str(ROOT / "docker-compose.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_has_no_more_rights_than_it_needs(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("user", "10001") not in ("root", "0")
    assert service["restart"] in ("unless-stopped", "on-failure:3")


def test_compose_refuses_to_start_without_its_secrets() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    required = set(re.findall(r"\$\{(\w+):\?set \1 in \.env", text))
    assert required == {
        "POSTGRES_PASSWORD",
        "PALIMPSEST_DB_PASSWORD",
        "VALKEY_PASSWORD",
        "PALIMPSEST_KEY_PEPPER",
    }
    assert not re.findall(rf"\$\{{(?:{'|'.join(required)})(?!:\?)", text), "a secret with a default"
    example = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == used
    assert not any(example[name] for name in required), "no secret in the example"


def test_only_the_api_is_reachable_and_only_from_this_machine_by_default() -> None:
    published = {
        name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service
    }
    assert published == {"api": ["${PALIMPSEST_BIND:-127.0.0.1}:${PALIMPSEST_PORT:-8000}:8000"]}


def test_nothing_of_the_service_starts_before_its_database_is_migrated() -> None:
    for name in OWN_SERVICES:
        needs = COMPOSE["services"][name]["depends_on"]
        if name == "migrate":
            assert needs == {"postgres": {"condition": "service_healthy"}}
        else:
            assert needs["migrate"] == {"condition": "service_completed_successfully"}


def test_compose_keeps_what_must_survive_in_named_volumes() -> None:
    mounts = {mount for service in COMPOSE["services"].values() for mount in service["volumes"]}
    named = {mount.partition(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"]) >= {"pgdata", "valkeydata", "artifacts"}
    assert any(argument == "--appendonly yes" for argument in COMPOSE["services"]["valkey"]["command"])


def test_services_use_images_and_commands_that_exist() -> None:
    targets = stages()
    for name in OWN_SERVICES:
        service = COMPOSE["services"][name]
        assert service["build"]["target"] in targets
        assert service.get("command", ["api"])[0] in ("api", "worker", "sweeper", "migrate")


def test_only_what_listens_on_the_apis_port_is_checked_there() -> None:
    for name in OWN_SERVICES:
        service = COMPOSE["services"][name]
        listens = service.get("command", ["api"]) == ["api"]
        if service["build"]["target"] == "api" and not listens:  # or `up --wait` waits for it in vain
            assert service["healthcheck"] == {"disable": True}, name


def test_the_gpu_worker_asks_for_one_gpu_and_only_under_its_profile() -> None:
    worker = COMPOSE["services"]["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"worker", "s3", "otel", "embedded", "dev"}
    for line in [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_the_wheel_carries_every_file_that_the_service_reads() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, patterns in setuptools["package-data"].items():
        files = {
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        carried = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        assert files <= carried, package


def test_constraints_name_no_build_of_torch_and_no_gpu_packages() -> None:
    pinned = pins()
    assert pinned["torch"].local is None
    assert not [name for name in pinned if name.startswith(("nvidia-", "triton", "cuda"))]


def test_the_worker_crash_of_celery_5_7_stays_out() -> None:
    assert pins()["celery"] < Version("5.7")


def test_the_ci_script_and_the_help_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?: |$)", makefile, re.MULTILINE))
    documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == documented >= {"setup", "demo", "test", "test-full", "lint", "images", "clean", "up"}
    steps = re.findall(r"^\s*step ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps == ["setup", "test", "test-slow", "lint"]
    assert set(steps) <= targets


@pytest.mark.parametrize("script", [".ci/run", "scripts/setup", "deploy/postgres-login.sh"])
def test_a_script_can_be_run_and_parsed(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = path.read_text().splitlines()[0].removeprefix("#!").split()
    assert subprocess.run([*shell, "-n", path], check=False).returncode == 0


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"
