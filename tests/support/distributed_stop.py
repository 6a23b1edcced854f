"""The script of `test_distributed_stop.py` under torchrun: trainings interrupted in mid-epoch, and one with a cache.

Argument: working folder. Each process prints how each training ended. The same command resumes the interrupted ones.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from distributed_steps import CLASSES, COUNT, SIDE, Progress, Teacher, train
from torch import Tensor

from compress.core import distributed
from compress.core.errors import CompressError, Interrupted
from compress.data.augment import views
from compress.training import checkpoint
from compress.training.teacher.logit_cache import TeacherCache

BATCH = 3  # pictures: twelve steps an epoch
TOLD = {  # by training and rank: behind which step of all which signal
    "whole": {},
    "one": {1: (16, signal.SIGINT)},
    "first": {0: (16, signal.SIGTERM)},
    "both": {0: (19, signal.SIGINT), 1: (16, signal.SIGTERM)},
}
messages = 0  # of all processes to all, so far


@dataclass
class Telling(Progress):
    """Sends its process a signal after a step; `sent`: messages of each step."""

    told: tuple[int, signal.Signals] | None
    steps: int = 0
    sent: list[int] = field(default_factory=list)
    started: tuple[int, int] = (1, 0)
    dies: bool = False

    def start_at(self, epoch: int, step: int) -> None:
        self.started = epoch, step

    def step(self, images: int, losses: Mapping[str, Tensor]) -> None:
        self.steps += 1
        self.sent.append(messages - sum(self.sent))
        if self.told is not None and self.steps == self.told[0]:
            os.kill(os.getpid(), self.told[1])


def counted(all_reduce: Any) -> Any:
    def count(*args: Any, **named: Any) -> Any:
        global messages
        messages += 1
        return all_reduce(*args, **named)

    return count


def slow(write: Any) -> Any:
    """Write as on slow storage."""

    def later(*args: Any) -> None:
        time.sleep(0.3)
        write(*args)

    return later


class Keeping(Teacher):
    """A teacher whose `save` writes a file slowly."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def save(self) -> None:
        time.sleep(0.3)
        self.file.write_text("answers")


def say(name: str, group: distributed.Group, text: object) -> None:
    sys.stdout.write(f"<{name} {group.rank}> {text}\n")  # one write: two processes' lines stay whole
    sys.stdout.flush()


def ended(name: str, own: Path, group: distributed.Group) -> int:
    """Train, or resume; return the exit code."""
    global messages
    messages, progress = 0, Telling(TOLD[name].get(group.rank))
    try:
        train("dhkd", own, group, "cpu", progress=progress, batch_size=BATCH, teacher=Keeping(own / "answers"))
    except Interrupted as error:  # all is there before any process ends: torchrun then ends all
        state, answers = (
            torch.load(own.parent / name / "checkpoint.pt", weights_only=True)["state"],
            (own.parent / name / "answers").read_text(),
        )
        say(
            name,
            group,
            f"{error} | began at {progress.started} | steps {progress.steps} | "
            f"kept {state['epoch'], state['step']} and {answers}",
        )
        return error.exit_code
    say(name, group, f"done | began at {progress.started} | messages {progress.sent}")
    return 0


def taught(folder: Path, own: Path, group: distributed.Group) -> None:
    """Two trainings with one teacher; the second one shards its images in another order."""
    rows = []
    for seed in (0, 1):
        said = Teacher()
        cache = TeacherCache(
            lambda raw, said=said: said.forward(None, raw)[0].float(),
            images=COUNT,
            views=views.view_count("crop_flip", SIDE),
            classes=CLASSES,
            device="cpu",
            folder=folder / "logits",
            warn=lambda text: print(text, flush=True),
        )
        (own / str(seed)).mkdir(exist_ok=True)
        train(
            "kd",
            own / str(seed),
            group,
            "cpu",
            progress=Telling(None),
            batch_size=BATCH,
            teacher=cache,
            seed=seed,
            views=2,
        )
        rows.append(cache.rows_run)
    say("taught", group, f"rows {rows}")


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: None)  # torchrun's, for one that is left when the other has ended
    distributed.STEP_TIMEOUT = timedelta(minutes=1)  # for those whose neighbour does something else
    torch.distributed.all_reduce = counted(torch.distributed.all_reduce)
    checkpoint.write_atomically = slow(checkpoint.write_atomically)  # type: ignore[attr-defined]
    with distributed.joined("cpu") as (group, _):
        codes = []
        for name in (*TOLD, "taught"):
            own = folder / (
                name if group.is_main else f"{name}.beside"
            )  # as the store gives each process a folder of its own
            own.mkdir(exist_ok=True)
            if name in TOLD:
                codes.append(ended(name, own, group))
            else:
                taught(folder, own, group)
        return max(codes)


if __name__ == "__main__":
    try:
        distributed.leave(main(Path(sys.argv[1])))
    except CompressError as error:
        print(f"said: {error}", flush=True)
        distributed.leave(error.exit_code)
