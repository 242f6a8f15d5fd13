"""Scratch folders: one an attempt, so that nobody writes where another reads."""

import shutil
from pathlib import Path

import pytest

from service.config import get_settings
from service.updates.leases import Claim
from workers import workspace
from workers.workspace import leave_workspace, open_workspace


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder of this test's own."""
    settings = get_settings().model_copy(update={"work_dir": tmp_path})
    monkeypatch.setattr(workspace, "get_settings", lambda: settings)
    return tmp_path


def claim(fence: int) -> Claim:
    """A claim on one update."""
    return Claim("acme", "upd_1", "mdl_1", fence, attempt=1, request_id=None, rescore=False)


def checkpoint(work: Path, step: int) -> Path:
    """Leaves a checkpoint in an attempt's folder."""
    folder = work / "checkpoints-of-0" / f"step-{step:09d}"
    folder.mkdir(parents=True)
    (folder / "tensors.safetensors").write_text(f"tensors of step {step}")
    return folder


def test_an_attempt_takes_over_the_checkpoints_of_the_one_before() -> None:
    before = open_workspace(claim(1))
    left = checkpoint(before, 7)
    work = open_workspace(claim(2))
    assert work != before
    taken = work / left.relative_to(before) / "tensors.safetensors"
    assert taken.read_text() == "tensors of step 7"
    assert not before.exists()


def test_an_attempt_takes_over_the_trials_that_a_search_has_finished() -> None:
    before = open_workspace(claim(1))
    (before / "checkpoints-of-0").mkdir()
    (before / "checkpoints-of-0" / "trials.json").write_text("three trials")
    work = open_workspace(claim(2))
    assert (work / "checkpoints-of-0" / "trials.json").read_text() == "three trials"


def test_checkpoints_of_further_seeds_are_taken_over_with_the_versions_own() -> None:
    before = open_workspace(claim(1))
    own = checkpoint(before, 7)
    shutil.copytree(own, before / "checkpoints-of-0-seed-5" / own.name)
    work = open_workspace(claim(2))
    found = sorted(str(folder.relative_to(work)) for folder in work.glob("*/step-*"))
    assert found == ["checkpoints-of-0-seed-5/step-000000007", "checkpoints-of-0/step-000000007"]


def test_only_the_newest_attempts_checkpoints_are_taken_over(root: Path) -> None:
    stale = root / "upd_1" / "2"
    checkpoint(stale, 900)
    newer = root / "upd_1" / "10"  # later than 2, though not by the alphabet
    checkpoint(newer, 7)
    work = open_workspace(claim(11))
    assert [folder.name for folder in work.glob("checkpoints-of-0/*")] == ["step-000000007"]


def test_an_attempt_that_took_nothing_over_hides_no_checkpoint_before_it(root: Path) -> None:
    checkpoint(root / "upd_1" / "1", 7)
    (root / "upd_1" / "2").mkdir()  # killed before it had done anything
    work = open_workspace(claim(3))
    assert [folder.name for folder in work.glob("checkpoints-of-0/*")] == ["step-000000007"]


def test_a_holder_that_wakes_late_leaves_its_successors_folder_alone(root: Path) -> None:
    successor = open_workspace(claim(3))
    checkpoint(successor, 7)
    late = open_workspace(claim(2))
    assert (successor / "checkpoints-of-0" / "step-000000007").exists()
    assert not list(late.glob("checkpoints-of-0/*"))


def test_a_half_written_checkpoint_is_not_taken_over() -> None:
    before = open_workspace(claim(1))
    checkpoint(before, 7).rename(before / "checkpoints-of-0" / "step-000000007.tmp")
    work = open_workspace(claim(2))
    assert not list(work.glob("checkpoints-of-0/*"))


def test_a_holder_that_lost_its_lease_unawares_writes_into_a_folder_of_its_own() -> None:
    stale = open_workspace(claim(1))
    work = open_workspace(claim(2))
    stale.mkdir(exist_ok=True)
    (stale / "fresh.ndjson").write_text("late")
    assert not (work / "fresh.ndjson").exists()


def test_leaving_for_good_removes_every_attempts_folder(root: Path) -> None:
    open_workspace(claim(1))
    work = open_workspace(claim(2))
    leave_workspace(work, keep=True)
    assert work.exists()
    leave_workspace(work, keep=False)
    assert not (root / "upd_1").exists()


def test_a_stale_holder_that_leaves_removes_nothing_of_the_next_attempt() -> None:
    stale = open_workspace(claim(1))
    held = checkpoint(open_workspace(claim(2)), 9)
    checkpoint(stale, 4)
    leave_workspace(stale, keep=False)
    assert held.exists()
    assert not stale.exists()
