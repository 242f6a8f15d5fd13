"""A version between two others: the story of a `blend`, from a request to a version folder."""

import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from workers.strategies.blend import Blend
from workers.strategies.catalogue import check_takes
from workers.strategies.merge import interpolate_head
from workers.training.adapters import Adapter
from workers.training.algebra import average, compress, scaled
from workers.training.base_models import check_base
from workers.training.classifier import ClassificationHead
from workers.training.contract import TrainRequest, TrainResult
from workers.training.dequantising import plain_base
from workers.training.devices import device_name
from workers.training.errors import TrainingFailed
from workers.training.untrained import CPU, untrained
from workers.training.versions import Version, facts_of, read_version, write_version
from workers.training.watching import OnProgress, ShouldStop, Watch


def blend(request: TrainRequest, *, on_progress: OnProgress, should_stop: ShouldStop) -> TrainResult:
    """Write the version `beta` of the way from `request.parent` to `request.child` to `request.output`.

    Computed on the CPU in float32, without a look at the base's weights: same versions, same bits.

    Raises:
        TrainingFailed: `strategy_unsupported`, `bad_parameters`, `bad_version`, `base_model_changed`, `bad_labels` or
            `adapters_differ`.
        Cancelled, Stopped: as asked through `should_stop`.
    """
    began = time.monotonic()
    watch = Watch(on_progress, should_stop)
    watch.at("loading")
    check_takes(Blend, request)
    params = Blend(request.parameters).params
    request = replace(request, base=plain_base(request.base))
    sha256 = check_base(request.base)
    parent, child = read_sides(request, sha256)
    watch.at("consolidating")
    adapter, error = blended_adapter(
        None if parent is None else parent.adapter,
        child.adapter,
        params.beta,
        max_rank=request.adapter.max_rank,
    )
    head = blended_head(None if parent is None else parent.head, child.head, params.beta)
    watch.at("saving")
    facts = facts_of(
        request,
        sha256=sha256,
        extra={
            "parameters": params.model_dump(mode="json"),
            "rank": adapter.rank,
            "compression": {"relative_error": error},
            "device": device_name(CPU),
        },
    )
    write_version(Path(request.output), Version(adapter, head, child.labels, facts))
    return untrained(child.labels, seconds=time.monotonic() - began)


def read_sides(request: TrainRequest, sha256: str) -> tuple[Version | None, Version]:
    """Read the parent, where there is an adapter to it, and the child.

    Raises:
        TrainingFailed: `bad_version`, `base_model_changed`, or `bad_labels` where their heads have other orders.
    """
    if request.child is None:
        raise TrainingFailed("bad_version", "a blend needs the version on the other side of the parent")
    child, parent = read_side(request, request.child, sha256), None
    if request.parent is not None:
        parent = read_side(request, request.parent, sha256)
        if child.labels[: len(parent.labels)] != parent.labels:
            raise TrainingFailed(
                "bad_labels", "the version's labels do not begin with its parent's, in their order"
            )
    return parent, child


def read_side(request: TrainRequest, folder: str, sha256: str) -> Version:
    """Read one of the two versions, checked against the base."""
    return read_version(Path(folder), request.base, task_type=request.task_type, sha256=sha256)


def blended_adapter(
    parent: Adapter | None, child: Adapter, beta: float, *, max_rank: int
) -> tuple[Adapter, float]:
    """Return the adapter whose ΔW is (1 − β)·ΔW_parent + β·ΔW_child, and its compression's relative error.

    Raises:
        TrainingFailed: `adapters_differ` when they do not adapt the same layers, or are not plain LoRA.
    """
    if parent is None:
        return compress(scaled(child, beta), max_rank)
    return average(parent, child, beta, max_rank=max_rank)


@torch.no_grad()
def blended_head(
    parent: ClassificationHead | None, child: ClassificationHead | None, beta: float
) -> ClassificationHead | None:
    """Return the head between both; see `workers.strategies.blend` for labels that only the child has."""
    head = deepcopy(child)
    interpolate_head(head, parent, beta)
    return head
