"""A rank beside the lead: `python -m workers.training.follower`, started by `teams.started` with its job on stdin."""

import os
import pickle
import sys
import threading
from pathlib import Path

import torch

from workers.training.errors import TrainingFailed
from workers.training.folders import write_json
from workers.training.loop import follow
from workers.training.teams import Job, Team, leave, meet


def main() -> None:
    """Take part in one update, then leave; a failure is written down for the lead."""
    job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=die_with_the_lead, daemon=True).start()
    torch.set_num_threads(job.threads)
    folder, size = Path(job.folder), job.request.settings.devices
    (folder / f"ready-{job.rank}").touch()
    try:
        meet(job.rank, size, job.folder)
        follow(job.request, Team(job.rank, size))
    except TrainingFailed as error:
        reason = {"code": error.code, "message": error.message, "detail": error.detail}
        write_json(folder / f"failure-{job.rank}", reason)
        raise
    finally:
        leave()


def die_with_the_lead() -> None:
    """End this process when the lead's end of the pipe closes, whatever it is busy with."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
