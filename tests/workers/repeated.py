"""What tests of repeats share: the seeds of an update with three trainings, and what is stored of it."""

import io
import tarfile

from sqlalchemy import select

from service.db import session_scope
from service.models import RepeatScore, Task
from tests.scenes import World
from workers.repeats import repeat_seeds

SEED = int(str(World.TRAINING["seed"]))
THREE = {**World.TRAINING, "repeats": 3}
SECOND, THIRD = repeat_seeds(SEED, 2)


def stored(update_id: str) -> dict[int, dict[str, tuple[float, bytes]]]:
    """What is stored of the further seeds: score and answers by seed and task."""
    found: dict[int, dict[str, tuple[float, bytes]]] = {}
    with session_scope(tenant="acme") as session:
        rows = session.execute(
            select(RepeatScore, Task.name)
            .join(Task, Task.id == RepeatScore.task_id)
            .where(RepeatScore.update_id == update_id)
        )
        for row, task in rows:
            found.setdefault(row.seed, {})[task] = (row.score, row.correct)
    return found


def weights(world: World, model: str) -> dict[str, bytes]:
    """The tensors of a model's first version."""
    tar = world.client.get(f"/v1/models/{model}/versions/1/adapter").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = [name for name in archive.getnames() if name.endswith(".safetensors")]
        return {name: file.read() for name in members if (file := archive.extractfile(name)) is not None}
