"""Training speed: this project's DHKD training against the published code's loop, same networks, batch and mathematics, in turns.

    python benchmarks/train_speed.py                     on the CPU
    python benchmarks/train_speed.py --device cuda

Per pair and round: a pass of the authors' loop (`authors_loop.py`); `compress run --until distill` with an empty cache (cold: the teacher
runs); the same again with the teacher's logits from that run (warm, all views); and one with `train.views`, its epochs after the last new
view. Each is a process of its own, started as a user would start it.
Pictures per second come from each epoch's training time, the first epoch of every run left out. Pictures are CIFAR-100 where
COMPRESS_TEST_DATA names it, else noise, which costs the same; teachers have random weights, which cost the same, too.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import authors_loop
import click
import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from compress import models
from compress.methods.dhkd import auxiliary_head
from compress.models import catalog
from compress.models.outline import outline
from compress.models.taps import Tapped
from export.runtime import host

PAIRS = (("resnet56", "mobilenet_v2"), ("resnet32x4", "resnet8x4"), ("resnet32x4", "shufflenet_v2"))
CLASSES, BATCH, VIEWS = 100, 64, 2
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@dataclass(frozen=True)
class Setting:
    """What every line has in common. `pictures`: of an epoch of ours; `theirs`: of a pass of the authors' loop, which is slower."""

    device: str
    pictures: int
    theirs: int
    images: np.ndarray
    labels: np.ndarray


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--pictures", type=int, help="of an epoch of ours; default: 1,280 on the CPU, 50,000 on CUDA")
@click.option("--pair", "chosen", multiple=True, help="teacher:student, more than once; default: all three")
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/train_speed-<device>.json")
@click.option("--authors-alone", is_flag=True, hidden=True, help="one pass of the authors' loop for the one --pair; prints pictures per second")
def main(device: str, rounds: int, pictures: int | None, chosen: tuple[str, ...], out: Path | None, authors_alone: bool) -> None:
    """Measure all pairs, print a table of ratios, write the numbers."""
    cuda = device.startswith("cuda")
    count = pictures or (50_000 if cuda else 1_280)
    images, labels = _pictures(count)
    setting = Setting(device, count, count if cuda else max(count // 4, 2 * BATCH), images, labels)
    pairs = [tuple(one.split(":")) for one in chosen] or PAIRS
    if authors_alone:
        print(_authors(setting, *pairs[0]))
        return
    rows = [_row(setting, teacher, student, rounds) for teacher, student in pairs]
    print(f"\n{'pair':<28}{'authors':>10}{'cold':>18}{'warm':>18}{f'views: {VIEWS}':>18}   pictures/s, ratio to the authors' loop [over rounds]")
    for row in rows:
        cells = "".join(_cell(row, name) for name in ("cold", "warm", "views"))
        print(f"{row['teacher'] + ' -> ' + row['student']:<28}{row['authors']['median']:>10.0f}{cells}")
    content = {
        "command": "python " + " ".join(["benchmarks/train_speed.py", *sys.argv[1:]]),
        "batch": BATCH, "pictures": count, "pictures_authors": setting.theirs, "rounds": rounds, "views": VIEWS, "rows": rows, "unit": "pictures/s",
        "environment": {**host(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name() if cuda else "cpu"},
    }  # fmt: skip
    path = out or Path(__file__).parent / "results" / f"train_speed-{device.split(':')[0]}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


def _cell(row: dict, name: str) -> str:
    ratio = row[name]["ratio"]
    return f"{row[name]['median']:>8.0f} {ratio['median']:>4.1f}x [{ratio['low']:.1f}, {ratio['high']:.1f}]"


def _pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 32, 32, 3) and labels (count,)."""
    from PIL import Image

    root = os.environ.get("COMPRESS_TEST_DATA")
    folder = Path(root) / "cifar100" if root else None
    labels = np.arange(count) % CLASSES
    if folder is None or not folder.is_dir():
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels
    parts = []
    for path in sorted(folder.glob("train-*.webp"))[: -(-count // 5000)]:
        sheet = np.asarray(Image.open(path).convert("RGB"))
        parts.append(sheet.reshape(50, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3))
    return np.concatenate(parts)[:count], labels


def _row(setting: Setting, teacher: str, student: str, rounds: int) -> dict:
    speeds: dict[str, list[float]] = {"authors": [], "cold": [], "warm": [], "views": []}
    for number in range(rounds):
        told = ["--authors-alone", "--pair", f"{teacher}:{student}", "--device", setting.device, "--pictures", str(setting.pictures)]
        speeds["authors"].append(float(_run(str(Path(__file__).resolve()), *told)))
        with tempfile.TemporaryDirectory() as folder:
            for name, speed in _ours(setting, teacher, student, Path(folder)).items():
                speeds[name].append(speed)
        print(f"{teacher} -> {student}, round {number + 1}: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in speeds.items()), flush=True)
    row: dict = {"teacher": teacher, "student": student, "authors": {"median": statistics.median(speeds["authors"]), "each": speeds["authors"]}}
    for name in ("cold", "warm", "views"):
        ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds["authors"], strict=True)]
        row[name] = {
            "median": statistics.median(speeds[name]), "each": speeds[name],
            "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)},
        }  # fmt: skip
    return row


def _run(*command: str) -> str:
    """What a Python process prints. Raises SystemExit with its words where it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _authors(setting: Setting, teacher: str, student: str) -> float:
    """Pictures per second of a pass, after one batch that is not timed."""
    torch.manual_seed(0)
    big = models.build(teacher, classes=CLASSES).to(setting.device)
    small = models.build(student, classes=CLASSES).to(setting.device)
    (width,) = outline(student, classes=CLASSES, width=None, image_size=32).shape("pooled", "the auxiliary head")
    head = auxiliary_head("nonlinear", width, CLASSES, 200, 0.1).to(setting.device)
    tapped = Tapped(small, {"pooled": f"{catalog.info(student).classifier}:in"})
    keep = _Keep(tapped)
    optimizer = torch.optim.SGD([*small.parameters(), *head.parameters()], lr=0.01, momentum=0.9, weight_decay=5e-4)
    for count in (BATCH, setting.theirs):
        batches = authors_loop.loader(setting.images[:count], setting.labels[:count], MEAN, STD, BATCH)
        seconds, seen = authors_loop.train(keep, head, keep.pooled(), big, batches, optimizer, device=setting.device)
    tapped.close()
    return seen / seconds


class _Keep(nn.Module):
    """The student, which remembers what its classifier was given."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.model, self.tapped = tapped.model, tapped
        self.last: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        logits, self.last = self.tapped(x)
        return logits

    def pooled(self) -> Iterator[Tensor]:
        while True:
            yield self.last["pooled"]


def _ours(setting: Setting, teacher: str, student: str, folder: Path) -> dict[str, float]:
    """Pictures per second of `compress run --until distill`: cold, warm, and with limited views."""
    np.savez(
        folder / "pictures.npz", train_images=setting.images, train_labels=setting.labels, test_images=setting.images[:CLASSES],
        test_labels=setting.labels[:CLASSES], class_names=np.array([f"class {number}" for number in range(CLASSES)]),
    )  # fmt: skip
    torch.manual_seed(0)
    save_file(models.build(teacher, classes=CLASSES).state_dict(), folder / "teacher.safetensors")
    content = {
        "data": {"source": "npz", "root": "pictures.npz", "validation": CLASSES, "normalize": {"mean": list(MEAN), "std": list(STD)}},
        "teacher": {"candidates": [{"model": teacher, "weights": "teacher.safetensors"}]},
        "student": {"model": student},
        "distill": {"method": "dhkd"},
        "train": {"epochs": 2, "batch_size": BATCH, "schedule": {"kind": "constant"}},
    }
    path = folder / "speed.yaml"
    path.write_text(yaml.safe_dump(content))
    cold = _speed(path, folder / "cold", setting.device, (), skip=1)
    warm = _speed(path, folder / "cold", setting.device, (), skip=1, again=True)
    few = _speed(path, folder / "few", setting.device, (f"train.views={VIEWS}", f"train.epochs={VIEWS + 1}"), skip=VIEWS)
    return {"cold": cold, "warm": warm, "views": few}


def _speed(path: Path, artifacts: Path, device: str, overrides: tuple[str, ...], *, skip: int, again: bool = False) -> float:
    """Median pictures per second of the epochs after the first `skip`. `again`: train anew, with the logits that are known."""
    told = [part for one in overrides for part in ("--set", one)] + (["--force", "distill"] if again else [])
    _run("-m", "compress", "run", str(path), "--artifacts", str(artifacts), "--device", device, "--until", "distill", "-q", *told)
    (stage,) = (artifacts / "cache" / "distill").glob("*/history.csv")
    with stage.open() as stream:
        rows = list(csv.DictReader(stream))
    return statistics.median(float(row["images_per_second"]) for row in rows[skip:])


if __name__ == "__main__":
    main()
