"""Benchmark scripts: how often networks run, what is in a cache, and the ratios that are printed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import authors_loop
import memory
import numpy as np
import pytest
import startup
import torch
import train_speed
from click.testing import CliRunner
from torch import Tensor, nn

PICTURES, BATCH, CLASSES = 12, 4, 3


def test_the_published_loop_runs_each_network_once_a_batch_and_two_backward_passes() -> None:
    ran = dict.fromkeys(("teacher", "student", "head", "backward"), 0)
    last: list[Tensor] = []

    def count(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            ran[name] += 1

        return note

    def pooled() -> Iterator[Tensor]:
        while True:
            yield last[-1]

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES))

    teacher, student, head = network(), network(), nn.Linear(5, CLASSES)
    for name, module in (("teacher", teacher), ("student", student), ("head", head)):
        module.register_forward_hook(count(name))
    student[2].register_forward_hook(lambda _, inputs, out: last.append(out))
    student[0].weight.register_hook(count("backward"))  # both losses reach it
    before = [p.clone() for p in teacher.parameters()]
    images = np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8)
    batches = authors_loop.loader(images, np.arange(PICTURES) % CLASSES, (0.5,) * 3, (0.25,) * 3, BATCH)
    optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.1)
    seconds, seen = authors_loop.train(student, head, pooled(), teacher, batches, optimizer, device="cpu")
    count_of_batches = PICTURES // BATCH
    assert ran == {
        "teacher": count_of_batches,
        "student": count_of_batches,
        "head": count_of_batches,
        "backward": 2 * count_of_batches,
    }
    assert seen == PICTURES and seconds > 0
    assert all(torch.equal(one, other) for one, other in zip(before, teacher.parameters(), strict=True))


# --- ours beside it: cold, warm and limited views

VIEWS_OF_AN_EPOCH = 200


def training(known: set[str], asked: Callable[[bool, int], int | None]) -> Callable[..., str]:
    """Stand in for `compress run --until distill`.

    It records that the teacher ran on `asked(whether the cache has anything, new views)` views.
    """

    def run(*command: str) -> str:
        folder = command[command.index("--artifacts") + 1]
        told = dict(part.split("=") for part in command if part.startswith("train."))
        epochs = int(told["train.epochs"])
        new = VIEWS_OF_AN_EPOCH * min(epochs, int(told.get("train.views", epochs)))
        stage = Path(folder) / "cache" / "distill" / "key"
        stage.mkdir(parents=True, exist_ok=True)
        (stage / "history.csv").write_text("epoch,images_per_second\n1,5\n2,700\n")
        (stage / "stage.json").write_text(json.dumps({"result": {"teacher_rows": asked(folder in known, new)}}))
        known.add(folder)
        return ""

    return run


def speeds(folder: Path, monkeypatch: pytest.MonkeyPatch, asked: Callable[[bool, int], int | None]) -> dict[str, float]:
    monkeypatch.setattr(train_speed, "_run", training(set(), asked))
    pictures = VIEWS_OF_AN_EPOCH + train_speed.CLASSES
    images, labels = np.zeros((pictures, 32, 32, 3), np.uint8), np.arange(pictures) % train_speed.CLASSES
    return train_speed._ours(
        train_speed.Setting("cpu", "auto", pictures, 128, images, labels), "resnet8", "resnet8", folder
    )


def test_warm_training_does_not_run_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speeds(tmp_path, monkeypatch, lambda known, new: 0 if known else new) == {
        "cold": 700.0,
        "warm": 700.0,
        "views": 700.0,
    }


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda known, new: new, "warm: the teacher ran on 400 views in 2 epochs, not on 0 to 0"),
        (lambda known, new: 1 if known else new, "warm: the teacher ran on 1 views"),
        (lambda known, new: 0, "cold: the teacher ran on 0 views in 2 epochs, not on 201 to 400"),
        (lambda known, new: None, "cold: the teacher ran on None views"),
        (lambda known, new: 0 if known else 200 if new == 400 else new, "cold: the teacher ran on 200 views"),
        (
            lambda known, new: 0 if known else new if new == 400 else 1000,
            "views: 4: the teacher ran on 1000 views in 5 epochs, not on 601 to 800",
        ),
        (lambda known, new: 0 if known else new if new == 400 else 0, "views: 4: the teacher ran on 0 views"),
    ],
)
def test_a_speed_measured_with_the_wrong_cache_state_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Callable[[bool, int], int | None], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        speeds(tmp_path, monkeypatch, asked)


# --- start-up and memory


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, anew: tuple[str, ...] = ()) -> Any:
    """startup.py on a run that is in the cache, where commands only say what they would."""
    stages = ("data", "distill", "validate")
    (folder / "a" / "cache" / "validate" / "key").mkdir(parents=True)
    (folder / "a" / "cache" / "validate" / "key" / "stage.json").write_text("{}")
    (folder / "r.yaml").write_text("name: r\n")
    clock = iter(float(number) for number in range(1000))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        forced = [*anew, *(told for flag, told in zip(command, command[1:], strict=False) if flag == "--force")]
        report = {"seconds": dict.fromkeys(stages, 1.0), "reused": [stage for stage in stages if stage not in forced]}
        if "torch" in command[-1]:
            next(clock), next(clock)  # three times as long as any other
        return subprocess.CompletedProcess(
            command, 2 if "train.epoch=1" in command else 0, json.dumps(report) if "--json" in command else "", ""
        )

    monkeypatch.setattr(startup, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(startup, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    told = [
        str(folder / "r.yaml"),
        "--repeats",
        "2",
        "--artifacts",
        str(folder / "a"),
        "--out",
        str(folder / "out.json"),
    ]
    return CliRunner().invoke(startup.main, told)


def test_startup_prints_each_command_relative_to_importing_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = started(monkeypatch, tmp_path)
    assert done.exit_code == 0, done.output
    ratios = {line[:14].strip(): line.split("n = 2  ")[1] for line in done.output.splitlines() if "n = 2" in line}
    third = "0.33x [0.33, 0.33] of import torch"
    assert ratios == {
        "help": third,
        "recipe error": third,
        "import torch": "1.00x [1.00, 1.00] of import torch",
        "check": third,
        "cached run": third,
    }
    assert json.loads((tmp_path / "out.json").read_text())["rows"].keys() == ratios.keys()


@pytest.mark.parametrize(
    ("anew", "words"),
    [
        (("distill",), "distill ran and was not reused"),
        (("data", "validate"), "data, validate ran and were not reused"),
    ],
)
def test_an_uncached_run_is_not_timed_as_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: tuple[str, ...], words: str
) -> None:
    done = started(monkeypatch, tmp_path, anew)
    assert done.exit_code == 1 and f"cached run: {words}" in done.output and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("peak", "ratio", "code"), [(1_200_000_000, "0.80x", 0), (1_800_000_000, "1.20x", 1)])
def test_memory_is_printed_relative_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: int, ratio: str, code: int
) -> None:
    (tmp_path / "r.yaml").write_text("name: r\n")
    process = SimpleNamespace(returncode=0, stdout=iter(()))
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(Popen=lambda *_, **__: process, PIPE=-1, STDOUT=-2))
    monkeypatch.setattr(memory, "_watch", lambda *_: ({"data": peak + 5}, {1: 7, 2: peak}))
    done = CliRunner().invoke(memory.main, [str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out.json")])
    assert (
        f"largest process {peak / 1e6:.0f} MB, {ratio} the limit of 1500 MB" in done.output and done.exit_code == code
    )
    assert json.loads((tmp_path / "out.json").read_text())["peak_of_largest_process"] == peak
