"""What is checked of an uploaded tar before anything unpacks it, without the base model."""

import io
import json
import tarfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Unprocessable
from service.imports.archive import FILES, index_tar, unpack_tar
from service.imports.checks import Contents, Rules, check_upload
from tests.service.imports.uploads import (
    CONFIG,
    LABELS,
    MODULE,
    adapter,
    config,
    entry,
    extended,
    files,
    head,
    member,
    record,
    safetensors,
    tar_of,
    tar_with,
)

RULES = Rules(
    task_type="text-classification", kind="lora", max_rank=64, target_modules="auto", base_model="minilm-l6",
    base_sha256="a" * 64, max_labels=10, max_label_length=20,
)  # fmt: skip
SOUND = tar_of(files())


def found_in(tar: bytes, rules: Rules = RULES) -> Contents | str:
    """What the checks find, or the code that they refuse the tar with; its message is made of sentences."""
    try:
        return check_upload(io.BytesIO(tar), rules=rules)
    except Unprocessable as error:
        refusal = error
    assert refusal.detail.endswith((".", "…")), refusal.detail
    assert len(refusal.detail) < 700
    return refusal.code


def facts(**content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sound_adapter_passes_in_every_dialect_of_tar(form: int) -> None:
    assert found_in(tar_of(files(), form=form)) == Contents(labels=("math", "os"), max_length=128)
    timed = entry("README.md", mtime=1234567890.5)  # which makes an extended header in one dialect
    assert found_in(tar_of(files(), timed, form=form)) == Contents(labels=("math", "os"), max_length=128)


def test_a_tar_of_the_current_folder_passes() -> None:
    named = {f"./{name}": data for name, data in files(facts=facts(max_length=64)).items()}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as target:
        target.addfile(entry("./", kind=tarfile.DIRTYPE))
        for name, data in named.items():
            target.addfile(entry(name, size=len(data)), io.BytesIO(data))
    assert found_in(tar.getvalue()) == Contents(labels=("math", "os"), max_length=64)


@pytest.mark.parametrize(
    ("tar", "code"),
    [
        (b"", "bad_archive"),
        (b"\x1f\x8b" + bytes(600), "bad_archive"),
        (b"not a tar" * 100, "bad_archive"),
        (SOUND[:-10240], "bad_archive"),
        (SOUND[:700], "bad_archive"),
        (tar_of({}), "missing_file"),
        (tar_of(files(), entry("labels.json", kind=tarfile.SYMTYPE, link="/etc/passwd")), "unsafe_archive"),
        (tar_of(files(), entry("version.json", kind=tarfile.LNKTYPE, link="labels.json")), "unsafe_archive"),
        (tar_of(files(), entry("version.json", kind=tarfile.CHRTYPE)), "unsafe_archive"),
        (tar_of(files(), entry("version.json", kind=tarfile.FIFOTYPE)), "unsafe_archive"),
        (tar_of(files(), entry("version.json", kind=tarfile.CONTTYPE)), "unsafe_archive"),
        (tar_of(files(), entry("version.json", kind=tarfile.GNUTYPE_SPARSE)), "unsafe_archive"),
        (tar_of(files(), entry("/etc/version.json")), "unsafe_archive"),
        (tar_of(files(), entry("../version.json")), "unsafe_archive"),
        (tar_of(files(), entry("a/../../version.json")), "unsafe_archive"),
        (tar_of(files(), entry("..\\version.json")), "unsafe_archive"),
        (tar_of(files(), entry("labels.json")), "unsafe_archive"),
        (tar_of(files(), entry("./labels.json")), "unsafe_archive"),
        (tar_of(files(), entry("model.py")), "unexpected_file"),
        (tar_of(files(), entry("adapter_model.bin")), "unexpected_file"),
        (tar_of(files(), entry("my/adapter_config.json")), "unexpected_file"),
        (tar_of(files(), entry("state", kind=tarfile.DIRTYPE)), "unexpected_file"),
        (tar_of(files(), *(entry("README.md"),) * 2), "unsafe_archive"),
        (tar_of(files(), entry("README.md", pax_headers={"path": "/etc/x"}), form=tarfile.PAX_FORMAT), "unsafe_archive"),
        (tar_of(files(), entry("README.md", pax_headers={"size": "9"}), form=tarfile.PAX_FORMAT), "unsafe_archive"),
        (tar_of(files(), entry("README.md", pax_headers={"GNU.sparse.major": "1"}), form=tarfile.PAX_FORMAT), "unsafe_archive"),
        (tar_of(files(), entry("README.md", pax_headers={"comment": "x" * 100_000}), form=tarfile.PAX_FORMAT), "unsafe_archive"),
        (tar_of(files(), entry("x" * 200), form=tarfile.GNU_FORMAT), "unsafe_archive"),
        (tar_of(files(), *(entry(".", kind=tarfile.DIRTYPE),) * 70), "unexpected_file"),
    ],
)  # fmt: skip
def test_a_hostile_or_broken_tar_is_refused_with_a_code(tar: bytes, code: str) -> None:
    assert found_in(tar) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"head": None}, "missing_file"),
        ({"labels": None}, "missing_file"),
        ({"tensors": None}, "missing_file"),
        ({"config": None}, "missing_file"),
        ({"config": b"[]"}, "bad_adapter_config"),
        ({"config": b"{"}, "bad_json"),
        ({"config": b"\xff"}, "bad_json"),
        ({"config": b"[" * 100_000}, "bad_json"),
        ({"config": b'{"r": NaN}'}, "bad_json"),
        ({"config": b'{"r": 1, "r": 9999}'}, "bad_json"),
        ({"config": b'{"r": 1e999}'}, "bad_json"),
        ({"config": b'{"a\\u0000": 1}'}, "bad_json"),
        ({"facts": b'{"pooling": "a\\u0000"}'}, "bad_json"),
        ({"facts": b'{"strategy": ["\\ud800"]}'}, "bad_json"),
        ({"facts": b'{"seed": ' + b"[" * 70 + b"]" * 70 + b"}"}, "bad_json"),
        ({"facts": b'{"seed": -1e999}'}, "bad_json"),
        ({"labels": b'["\\u0000"]'}, "bad_json"),
        ({"tensors": safetensors({"\0": (1,)})}, "bad_safetensors"),
        ({"head": safetensors({"x" * 100_000: (1,)})}, "head_does_not_fit"),
        ({"config": config(r=10**4000)}, "rank_too_high"),
        ({"config": b" " * 2_000_000}, "bad_archive"),
        ({"config": config(peft_type="IA3")}, "bad_adapter_config"),
        ({"config": config(modules_to_save=["classifier"])}, "bad_adapter_config"),
        ({"config": config(r=65)}, "rank_too_high"),
        ({"config": config(r=10**12)}, "rank_too_high"),
        ({"config": config(lora_alpha=0)}, "bad_adapter_config"),
        ({"config": config(lora_alpha=None)}, "bad_adapter_config"),
        ({"config": config(r="8")}, "bad_adapter_config"),
        ({"config": config(r=True)}, "bad_adapter_config"),
        ({"config": config(rank_pattern={"query": 600})}, "rank_too_high"),
        ({"config": config(rank_pattern={"query": 4.5})}, "rank_too_high"),
        ({"config": config(rank_pattern={"(a+)+$": 4})}, "bad_adapter_config"),
        ({"config": config(rank_pattern=[])}, "bad_adapter_config"),
        ({"config": config(lora_alpha=-1)}, "bad_adapter_config"),
        ({"config": config(lora_dropout=7)}, "bad_adapter_config"),
        ({"config": config(use_dora="yes")}, "bad_adapter_config"),
        ({"config": config(use_dora=True)}, "adapter_kind_differs"),
        ({"config": config(peft_type="OFT")}, "adapter_kind_differs"),
        ({"config": config(target_modules="(a+)+$")}, "bad_adapter_config"),
        ({"config": config(target_modules="auto")}, "bad_adapter_config"),
        ({"config": config(target_modules=["(a+)+$"])}, "bad_adapter_config"),
        ({"config": config(target_modules=[])}, "bad_adapter_config"),
        ({"config": config(target_modules=None)}, "bad_adapter_config"),
        ({"tensors": adapter(rank=65)}, "rank_too_high"),
        ({"tensors": safetensors({"embeddings.weight": (2, 2)})}, "adapter_does_not_fit"),
        ({"head": head(3)}, "head_does_not_fit"),
        ({"head": head(rows=3)}, "head_does_not_fit"),
        ({"head": safetensors({"weight": (2, 384)})}, "head_does_not_fit"),
        ({"head": safetensors({"weight": (768,), "bias": (2,)})}, "head_does_not_fit"),
        ({"labels": b'{"math": 0}'}, "bad_labels"),
        ({"labels": b'["math", 1]'}, "bad_labels"),
        ({"labels": b'["math", "math"]'}, "bad_labels"),
        ({"labels": b'["math", ""]'}, "bad_labels"),
        ({"labels": b'["math", "\\u0000"]'}, "bad_json"),
        ({"labels": b'["math", "\\ud800"]'}, "bad_json"),
        ({"labels": json.dumps(["x" * 21, "os"]).encode()}, "bad_labels"),
        ({"labels": json.dumps([f"{n}" for n in range(11)]).encode(), "head": head(11)}, "bad_labels"),
        ({"facts": b"[]"}, "bad_version_file"),
        ({"facts": facts(format=2)}, "bad_version_file"),
        ({"facts": facts(max_length=10**9)}, "bad_version_file"),
        ({"facts": facts(max_length="128")}, "bad_version_file"),
        ({"facts": facts(task_type="causal-lm")}, "wrong_task_type"),
        ({"facts": facts(task_type=["causal-lm"])}, "wrong_task_type"),
        ({"facts": facts(base_model={"name": "minilm-l6", "sha256": "b" * 64})}, "wrong_base_model"),
        ({"facts": facts(base_model={"name": "another"})}, "wrong_base_model"),
    ],
)  # fmt: skip
def test_files_that_do_not_suit_the_model_are_refused_with_a_code(
    changes: dict[str, bytes | None], code: str
) -> None:
    assert found_in(tar_of(files(**changes))) == code


def test_the_base_is_known_by_its_hash_under_whatever_name() -> None:
    elsewhere = files(facts=facts(base_model={"name": "their-name", "sha256": "a" * 64}, max_length=32))
    assert found_in(tar_of(elsewhere)) == Contents(labels=tuple(LABELS), max_length=32)
    unpinned = replace(RULES, base_sha256=None)  # then the worker, which has the base at hand, compares
    other = files(facts=facts(base_model={"name": "their-name", "sha256": "b" * 64}))
    assert found_in(tar_of(other), unpinned) == Contents(labels=tuple(LABELS), max_length=128)


def test_the_models_own_regular_expression_may_come_back() -> None:
    pattern = r".*\.(query|value)"
    own = files(config=config(target_modules=pattern))
    assert found_in(tar_of(own)) == "bad_adapter_config"
    assert isinstance(found_in(tar_of(own), replace(RULES, target_modules=pattern)), Contents)


def test_a_language_model_has_neither_head_nor_labels() -> None:
    graded = replace(RULES, task_type="causal-lm")
    assert found_in(SOUND, graded) == "unexpected_file"
    assert found_in(tar_of(files(head=None, labels=None)), graded) == Contents(labels=(), max_length=128)


A = f"{MODULE}.lora_A.weight"


@pytest.mark.parametrize(
    "tensors",
    [
        b"",
        bytes(7),
        (2**63).to_bytes(8, "little") + b"{}",
        (5 * 2**20).to_bytes(8, "little") + bytes(6 * 2**20),
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 15]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [2**39, 2**39], "data_offsets": [0, 16]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [2, True, 2], "data_offsets": [0, 16]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": ["F32"], "shape": [2, 2], "data_offsets": [0, 16]}}),
        safetensors({A: (2, 2)}, **{A: {"dtype": "F32", "shape": [2, 2]}}),
        safetensors({A: (2, 2)}, **{A: 7}),
        safetensors({A: (0, 2)}),
        safetensors({A: (2, 2)}, overlapping={"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}),
        safetensors({A: (2, 2)}, behind={"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}),
        safetensors({A: (2, 2)}) + b"more",
        safetensors({A: (2, 2)})[:-1],
    ],
)  # fmt: skip
def test_tensors_that_lie_about_themselves_are_refused(tensors: bytes) -> None:
    assert found_in(tar_of(files(tensors=tensors))) == "bad_safetensors"


@pytest.mark.parametrize(
    "hidden",
    [record("path", "adapter_config.json"), record("size", "9"), record("GNU.sparse.major", "1"), b"x"],
)
def test_nothing_hides_behind_the_records_of_an_extended_header(hidden: bytes) -> None:
    """`tarfile` reads the whole block, and would let the records there rename what the checks have seen."""
    says = record("comment", "harmless")
    assert found_in(tar_with(extended(says), member("README.md", b"hi"))) == Contents(("math", "os"), 128)
    block = extended(says + hidden, says=len(says))
    assert found_in(tar_with(block, member("README.md", b"hi"))) == "unsafe_archive"


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (record("path", "x"), "unsafe_archive"),
        (record("linkpath", "x"), "unsafe_archive"),
        (record("GNU.sparse.size", "9"), "unsafe_archive"),
        (record("hdrcharset", "BINARY"), "unsafe_archive"),
        (record("mtimes", "1"), "unsafe_archive"),
        (record("comment", "x" * 500), "unsafe_archive"),
        (b"0 x=y\n", "bad_archive"),
        (b"9 comment=x\n", "bad_archive"),
        (b"13 comment=xyz", "bad_archive"),
        (b"99 comment=x\n", "bad_archive"),
        (b"1" * 512, "bad_archive"),
        (record("mtime", "1e300"), None),
        (record("mtime", "nan"), None),
        (record("SCHILY.dev", "5") + record("LIBARCHIVE.creationtime", "7") + record("uname", "ann"), None),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_an_extended_header_says_what_is_harmless_or_the_tar_is_refused(
    records: bytes, code: str | None, before: bool, tmp_path: Path
) -> None:
    tar = tar_with(extended(records), before=before)
    assert found_in(tar) == (code or Contents(labels=("math", "os"), max_length=128))
    if code is None:
        unpack_tar(io.BytesIO(tar), tmp_path / "upload")
        assert {path.name: path.read_bytes() for path in (tmp_path / "upload").iterdir()} == files()


def test_a_header_full_of_digits_holds_nobody_up() -> None:
    began = time.process_time()
    assert found_in(tar_with(*[extended(b"9" * 65_536)] * 3, before=True)) == "unsafe_archive"
    assert time.process_time() - began < 1


def test_unpacking_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(Unprocessable):
        unpack_tar(io.BytesIO(tar_with(member("evil.py", b"x"))), tmp_path / "work" / "upload")
    assert list((tmp_path / "work").iterdir()) == []
    unpack_tar(io.BytesIO(tar_with(member("README.md", b"x"))), tmp_path / "work" / "upload")
    assert {path.name for path in (tmp_path / "work" / "upload").iterdir()} == files().keys()


def test_an_extended_header_as_large_as_the_body_is_never_held() -> None:
    bomb = tar_of(
        files(), entry("README.md", pax_headers={"comment": "x" * 30_000_000}), form=tarfile.PAX_FORMAT
    )
    tracemalloc.start()
    try:
        assert found_in(bomb) == "unsafe_archive"
        assert (
            tracemalloc.get_traced_memory()[1] < 40_000_000
        )  # BytesIO shares the body; nothing else is near its size
    finally:
        tracemalloc.stop()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(at=st.integers(0, len(SOUND) - 1), put=st.binary(min_size=1, max_size=12))
def test_whatever_a_few_bytes_become_the_answer_is_a_code_or_an_adapter(at: int, put: bytes) -> None:
    """And where it passes, what `tarfile` would unpack are the files that were checked, nothing else."""
    spoilt = SOUND[:at] + put + SOUND[at + len(put) :]
    found = found_in(spoilt)
    if isinstance(found, Contents):
        with tarfile.open(fileobj=io.BytesIO(spoilt)) as tar:
            unpacked = {member.name: member.size for member in tar.getmembers() if member.isfile()}
            assert len(tar.getmembers()) == len(unpacked)
        members = index_tar(io.BytesIO(spoilt))
        assert unpacked == {name: member.size for name, member in members.items()}
        assert unpacked.keys() <= FILES


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*CONFIG, "bias", "layers_to_transform"]),
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers() | st.text()),
)  # fmt: skip
def test_whatever_an_option_of_the_configuration_is_the_answer_is_a_code_or_an_adapter(
    name: str, value: Any
) -> None:
    found = found_in(tar_of(files(config=config(**{name: value}))))
    assert isinstance(found, Contents | str)
