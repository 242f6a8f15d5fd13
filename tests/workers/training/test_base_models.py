"""Base models: known by their content, and refused where the allow-list pins another."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from service.config import BUILT_IN_BASE_MODELS
from workers.preparation import base_folder
from workers.training.base_models import check_base, folder_sha256
from workers.training.contract import BaseFolder
from workers.training.dequantising import plain_base
from workers.training.errors import TrainingFailed


def test_the_hash_of_a_checkpoint_covers_weights_and_tokenizer_but_no_bystander(
    tiny: BaseFolder, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny.folder, tmp_path / "copy"))
    before = folder_sha256(copy)
    (copy / "README.md").write_text("hello")
    assert folder_sha256(copy) == before == folder_sha256(Path(tiny.folder))
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)
        weights.seek(-1, 2)
        weights.write(bytes([last[0] ^ 1]))
    assert folder_sha256(copy) != before


def test_a_checkpoint_other_than_the_pinned_one_is_refused_naming_both_hashes(tiny: BaseFolder) -> None:
    found = check_base(tiny)
    assert check_base(replace(tiny, pinned=found)) == found
    with pytest.raises(TrainingFailed, match=f"{found}.*pins.*{'0' * 64}") as failed:
        check_base(replace(tiny, pinned="0" * 64))
    assert failed.value.code == "base_model_mismatch"


def test_a_quantised_file_other_than_the_pinned_one_is_not_even_opened(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"not the weights you are looking for")
    base = BaseFolder("other", str(tmp_path), gguf="other.gguf", cache=str(tmp_path), pinned="0" * 64)
    with pytest.raises(TrainingFailed) as failed:
        plain_base(base)
    assert failed.value.code == "base_model_mismatch"


@pytest.mark.parametrize("name", sorted(BUILT_IN_BASE_MODELS))
def test_built_in_base_models_are_pinned_and_what_is_installed_matches(name: str) -> None:
    base = base_folder(name)
    assert base.pinned is not None
    if base.gguf is None:
        assert check_base(base) == base.pinned
    else:
        assert plain_base(base).pinned is None  # checked before it was unpacked
