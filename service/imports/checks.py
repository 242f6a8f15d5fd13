"""Whether an uploaded adapter suits a model, as far as can be told without its base: pure checks over the files.

What is left to the worker's child, which has the base at hand: names and shapes of every tensor, and the numbers in them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from service.errors import Unprocessable
from service.imports.archive import (
    ADAPTER_CONFIG,
    ADAPTER_TENSORS,
    HEAD,
    LABELS,
    VERSION_FACTS,
    Member,
    index_tar,
    refused,
    shown,
)
from service.imports.documents import TensorShape, read_json, read_tensor_shapes

VERSION_FORMAT = 1
DEFAULT_LENGTH, SHORTEST, LONGEST = 128, 8, 131_072
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")  # no regular expression, which may take for ever to match
PLAIN_PATTERN = re.compile(r"\^?[A-Za-z0-9_.-]{1,256}")
MOST_TARGETS = 10_000
LARGEST_BLOCK = 4096
LONGEST_ID = 64
TENSOR_PREFIX, LORA_A = "base_model.model.", ".lora_A.weight"
OPTIONS: Mapping[str, tuple[type, ...]] = {
    "use_dora": (bool,), "use_rslora": (bool,), "use_cayley_neumann": (bool,), "lora_alpha": (int, float),
    "lora_dropout": (int, float), "module_dropout": (int, float), "num_cayley_neumann_terms": (int,),
    "oft_block_size": (int,), "rank_pattern": (dict,), "alpha_pattern": (dict,),
}  # fmt: skip
MOST = {
    "lora_alpha": 65_536, "lora_dropout": 1, "module_dropout": 1, "num_cayley_neumann_terms": 64,
    "oft_block_size": LARGEST_BLOCK,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """What an adapter must be like to become a version of one model."""

    task_type: str
    kind: str  # lora, dora or oft
    max_rank: int
    target_modules: str | list[str]
    base_model: str
    base_sha256: str | None  # where the catalogue pins it
    max_labels: int
    max_label_length: int
    parent: int = 0
    parent_labels: tuple[str, ...] = ()  # which the adapter's begin with


@dataclass(frozen=True, slots=True)
class Contents:
    """What an upload says of itself; `labels` are empty for a language model."""

    labels: tuple[str, ...]
    max_length: int
    origin_update: str | None = None  # which its `version.json` names as the one that made it


def check_upload(file: BinaryIO, *, rules: Rules) -> Contents:
    """Checks everything that can be told without the base. Raises `Unprocessable`, whose code says what is wrong."""
    members = index_tar(file)
    classifies = rules.task_type == "text-classification"
    _require_files(members, classifies=classifies)
    config = read_json(file, members[ADAPTER_CONFIG], name=ADAPTER_CONFIG)
    check_config(config, rules=rules)
    shapes = read_tensor_shapes(file, members[ADAPTER_TENSORS], name=ADAPTER_TENSORS)
    _check_tensors(shapes, rules=rules)
    labels: tuple[str, ...] = ()
    if classifies:
        labels = _checked_labels(read_json(file, members[LABELS], name=LABELS), rules=rules)
        _check_head(read_tensor_shapes(file, members[HEAD], name=HEAD), labels=labels)
        require_labels_of(rules.parent, known=rules.parent_labels, labels=labels)
    if VERSION_FACTS not in members:
        return Contents(labels=labels, max_length=DEFAULT_LENGTH)
    facts = read_json(file, members[VERSION_FACTS], name=VERSION_FACTS)
    length = check_facts(facts, rules=rules)
    return Contents(labels=labels, max_length=length, origin_update=_origin_update(facts))


def _require_files(members: Mapping[str, Member], *, classifies: bool) -> None:
    needed = {ADAPTER_CONFIG, ADAPTER_TENSORS, *((HEAD, LABELS) if classifies else ())}
    if missing := sorted(needed - members.keys()):
        raise refused(
            f"The tar lacks {' and '.join(missing)}. docs/importing.md says what each file holds.",
            code="missing_file",
        )
    if not classifies and (needless := sorted({HEAD, LABELS} & members.keys())):
        raise refused(
            f"The model is a language model, whose versions have no {' and no '.join(needless)}; leave them out.",
            code="unexpected_file",
        )


def check_config(config: Any, *, rules: Rules) -> None:
    """Checks `adapter_config.json`. Raises `Unprocessable`."""
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "OFT"):
        raise _bad_config("its peft_type is neither LORA nor OFT")
    for name, types in OPTIONS.items():
        value = config.get(name)
        if value is not None and (type(value) not in types or not _within(name, value)):
            raise _bad_config(f"{name} is {shown(str(value))}")
    if config.get("modules_to_save"):
        raise _bad_config(
            "modules_to_save names whole modules, such as a classifier of transformers. A version has the adapter and one "
            "linear head in head.safetensors",
        )
    if config["peft_type"] == "LORA" and not config.get("lora_alpha"):
        raise _bad_config("lora_alpha must be a number above 0")
    _check_kind(config, rules=rules)
    _check_ranks(config, rules=rules)
    _check_targets(config.get("target_modules"), rules=rules)


def _within(name: str, value: Any) -> bool:
    return name not in MOST or 0 <= value <= MOST[name]


def _check_kind(config: Mapping[str, Any], *, rules: Rules) -> None:
    kind = "oft" if config["peft_type"] == "OFT" else "dora" if config.get("use_dora") else "lora"
    if kind != rules.kind:
        raise refused(
            f"The adapter is of kind {kind}, the model's adapters are of kind {rules.kind}. Import it into a model made with "
            f"that adapter ({_made_with(kind)}).",
            code="adapter_kind_differs",
        )


def _made_with(kind: str) -> str:
    return {"oft": '"type": "oft"', "dora": '"use_dora": true', "lora": '"type": "lora"'}[kind]


def _check_ranks(config: Mapping[str, Any], *, rules: Rules) -> None:
    for pattern in ("rank_pattern", "alpha_pattern"):
        for name, value in (config.get(pattern) or {}).items():
            if (
                PLAIN_PATTERN.fullmatch(name) is None
                or type(value) not in (int, float)
                or not 0 < value <= 65_536
            ):
                raise _bad_config(
                    f"{pattern} holds {shown(name)}: {shown(str(value))}; name layers by plain names"
                )
    rank = config.get("r")
    if type(rank) is not int:
        raise _bad_config(f"r is {shown(str(rank))}")
    if config["peft_type"] == "LORA":
        for each in (rank, *(config.get("rank_pattern") or {}).values()):
            _check_rank(each, rules=rules)
    elif not 0 <= rank <= LARGEST_BLOCK:
        raise _bad_config(f"r is {shown(str(rank))}")


def _check_rank(rank: float, *, rules: Rules) -> None:
    if rank != int(rank) or not 1 <= rank <= rules.max_rank:
        raise refused(
            f"The adapter's rank is {shown(str(rank))}; the model takes 1 to {rules.max_rank} (adapter.max_rank).",
            code="rank_too_high",
        )


def _check_targets(targets: Any, *, rules: Rules) -> None:
    if isinstance(targets, str) and targets == rules.target_modules and targets != "auto":
        return  # the model's own regular expression, as a version of its carries it
    if (
        not isinstance(targets, list)
        or not 1 <= len(targets) <= MOST_TARGETS
        or not all(isinstance(name, str) and PLAIN_NAME.fullmatch(name) for name in targets)
    ):
        raise _bad_config(
            "target_modules must be a list of names of layers, or the very regular expression that the model was made with"
        )


def _check_tensors(shapes: Mapping[str, TensorShape], *, rules: Rules) -> None:
    if odd := sorted(name for name in shapes if not name.startswith(TENSOR_PREFIX)):
        raise refused(
            f"{ADAPTER_TENSORS} holds {shown(odd[0])}, which is no tensor of an adapter as PEFT saves it; those begin with "
            f"'{TENSOR_PREFIX}'.",
            code="adapter_does_not_fit",
        )
    for name, tensor in shapes.items():
        if name.endswith(LORA_A) and tensor.shape:
            _check_rank(tensor.shape[0], rules=rules)


def _checked_labels(value: Any, *, rules: Rules) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise _bad_labels("it must be a list of strings, in the order of the head's rows")
    if len(set(value)) != len(value):
        raise _bad_labels("a label stands in it twice")
    if len(value) > rules.max_labels:
        raise _bad_labels(f"it holds {len(value)} labels; a model may have {rules.max_labels}")
    for label in value:
        if not 1 <= len(label) <= rules.max_label_length:
            raise _bad_labels(
                f"a label has {len(label)} characters; 1 to {rules.max_label_length} are allowed"
            )
    return tuple(value)


def require_labels_of(parent: int, *, known: Sequence[str], labels: tuple[str, ...]) -> None:
    """Raises `Unprocessable` where a child's labels do not begin with its parent's, in their order."""
    if labels[: len(known)] == tuple(known):
        return
    first = next(at for at, label in enumerate(known) if labels[at : at + 1] != (label,))
    raise Unprocessable(
        f"Version {parent} has the label '{known[first]}' at place {first}, labels.json has not. A child of that version "
        "keeps its labels and their order and adds its own behind them; with parent=0 any order will do.",
        code="labels_differ", param="parent",
    )  # fmt: skip


def _check_head(shapes: Mapping[str, TensorShape], *, labels: tuple[str, ...]) -> None:
    weight, bias = shapes.get("weight"), shapes.get("bias")
    fits = (
        shapes.keys() == {"weight", "bias"}
        and weight is not None
        and bias is not None
        and len(weight.shape) == 2
        and weight.shape[0] == len(labels)
        and bias.shape == (len(labels),)
    )
    if not fits:
        found = ", ".join(
            f"{shown(name)} {list(tensor.shape)}" for name, tensor in sorted(shapes.items())[:5]
        )
        raise refused(
            f"{HEAD} must hold weight [{len(labels)}, width] and bias [{len(labels)}], one row for each of the {len(labels)} "
            f"labels of {LABELS}; it holds {found}.",
            code="head_does_not_fit",
        )  # fmt: skip


def check_facts(facts: Any, *, rules: Rules) -> int:
    """Checks `version.json` and returns the length to which it says that texts are cut. Raises `Unprocessable`."""
    if not isinstance(facts, dict) or facts.get("format", VERSION_FORMAT) != VERSION_FORMAT:
        raise refused(f"{VERSION_FACTS} is not of format {VERSION_FORMAT}.", code="bad_version_file")
    if facts.get("task_type", rules.task_type) != rules.task_type:
        raise refused(
            f"{VERSION_FACTS} says that the adapter is for {shown(str(facts['task_type']))}; the model is for {rules.task_type}.",
            code="wrong_task_type",
        )
    _check_base(facts.get("base_model"), rules=rules)
    length = facts.get("max_length", DEFAULT_LENGTH)
    if type(length) is not int or not SHORTEST <= length <= LONGEST:
        raise refused(
            f"max_length in {VERSION_FACTS} is {shown(str(length))}; it lies between {SHORTEST} and {LONGEST}.",
            code="bad_version_file",
        )
    return length


def _origin_update(facts: Mapping[str, Any]) -> str | None:
    lineage = facts.get("lineage")
    update = lineage.get("update") if isinstance(lineage, dict) else None
    return update if isinstance(update, str) and len(update) <= LONGEST_ID else None


def _check_base(base: Any, *, rules: Rules) -> None:
    """By the hash, where both are known; names are an operator's own. Without a pin the worker compares the hash."""
    if not isinstance(base, dict):
        return
    sha256, name = base.get("sha256"), base.get("name")
    if sha256 is not None and rules.base_sha256 is not None:
        other = sha256 != rules.base_sha256
    else:
        other = sha256 is None and name is not None and name != rules.base_model
    if other:
        raise refused(
            f"{VERSION_FACTS} says that the adapter was trained on {shown(str(name))}, another base model than "
            f"'{rules.base_model}'. Import it into a model on that base.",
            code="wrong_base_model",
        )


def _bad_config(why: str) -> Exception:
    return refused(f"{ADAPTER_CONFIG} cannot be taken: {why}.", code="bad_adapter_config")


def _bad_labels(why: str) -> Exception:
    return refused(f"{LABELS} cannot be taken: {why}.", code="bad_labels")
