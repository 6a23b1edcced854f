"""Training speed of this project's DHKD and of the published code's loop: same networks, batch and mathematics.

    # on the CPU and, if there is one, on CUDA
    python benchmarks/train_speed.py
    # on CUDA alone, recorded as a graph
    python benchmarks/train_speed.py --device cuda
    # compiled, too, as a training of 50,000 steps or more is
    python benchmarks/train_speed.py --device cuda --engine compile

Both sides take turns. For each pair and round there are four processes, started as a user would start them:

- authors: a pass of their loop (`authors_loop.py`), after an untimed batch;
- cold: the second epoch of `compress run --until distill` with an empty cache; the teacher runs at every step;
- warm: the second epoch of the same run made again; the first run has left the teacher's logits for all its views;
- views: n: an epoch of a run with an empty cache and `train.views: n`, after the n epochs in which the teacher answered
  for n views of each image; it does not run any more. Those n epochs cost what cold costs. `views.py` measured what the
  limit does to accuracy; its result stands beside the speed.

The script ends with an error if the teacher ran on more or fewer views than that. Images per second come from the
training time of the one epoch: kernels are chosen, networks compiled and graphs recorded in the epochs before. Images
are CIFAR-100 if COMPRESS_TEST_DATA names it, else noise; teachers have random weights. Neither changes the cost.
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
from typing import Any

import authors_loop
import click
import numpy as np
import result_file
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from compress import models
from compress.methods.dhkd import auxiliary_head
from compress.models import catalog
from compress.models.outline import outline
from compress.models.taps import Tapped

PAIRS = (("resnet56", "mobilenet_v2"), ("resnet32x4", "resnet8x4"), ("resnet32x4", "shufflenet_v2"))
CLASSES, BATCH = 100, 64
# A limit of the study in views.py.
VIEWS = 4
STUDY = result_file.RESULTS / "views.json"
LINES, ENGINES = ("cold", "warm", "views"), ("auto", "graph", "compile", "eager")
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@dataclass(frozen=True)
class Setting:
    """What all lines have in common.

    `engine` is `train.engine`. `pictures` counts the images of an epoch of ours, `theirs` those of a pass of the
    authors' loop, which is slower.
    """

    device: str
    engine: str
    pictures: int
    theirs: int
    images: np.ndarray
    labels: np.ndarray


@click.command()
@click.option("--device", help="cpu or cuda; default: the CPU and, where there is one, CUDA")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(ENGINES),
    help="train.engine of our runs; auto compiles none this short",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--pictures",
    type=click.IntRange(3 * CLASSES),
    help="of an epoch of ours; default: 1,280 on the CPU, 50,000 on CUDA",
)
@click.option("--pair", "chosen", multiple=True, help="teacher:student, more than once; default: all three")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="default: benchmarks/results/train_speed-<device>.json, -<engine> unless that is auto",
)
@click.option(
    "--authors-alone",
    is_flag=True,
    hidden=True,
    help="one pass of the authors' loop for the one --pair; prints images per second",
)
def main(
    device: str | None,
    engine: str,
    rounds: int,
    pictures: int | None,
    chosen: tuple[str, ...],
    out: Path | None,
    authors_alone: bool,
) -> None:
    """Measure all pairs, print a table of ratios, write the numbers."""
    pairs = [(one.split(":")[0], one.split(":")[1]) for one in chosen] or list(PAIRS)
    devices = [device] if device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if out and len(devices) > 1:
        raise click.UsageError("--out is one file and there are two devices: say which by --device")
    for one in devices:
        setting = _setting(one, engine, pictures)
        if authors_alone:
            print(_authors(setting, *pairs[0]))
        else:
            _measure(setting, pairs, rounds, out or result_file.path("train_speed", one, engine))


def _setting(device: str, engine: str, pictures: int | None) -> Setting:
    cuda = device.startswith("cuda")
    count = pictures or (50_000 if cuda else 1_280)
    images, labels = _images(count)
    return Setting(device, engine, count, max(count // 4, 2 * BATCH), images, labels)


def _measure(setting: Setting, pairs: list[tuple[str, str]], rounds: int, path: Path) -> None:
    study = _study()
    rows: list[dict] = []
    for teacher, student in pairs:
        rows.append(_row(setting, teacher, student, rounds))
        content = {
            "command": result_file.command("train_speed.py"),
            "batch": BATCH,
            "pictures": setting.pictures,
            "pictures_authors": setting.theirs,
            "rounds": rounds,
            "engine": setting.engine,
            "views": VIEWS,
            "views_accuracy": study,
            "rows": rows,
            "unit": "pictures/s",
            "environment": result_file.environment(setting.device),
        }
        result_file.write(path, content)  # what is measured is kept if the next pair is not
    print("\nimages/s, median of the rounds; ratio to the authors' loop, median and range of the rounds")
    print(
        f"{'pair':<28}{'authors':>8}"
        + "".join(f"{name:>26}" for name in ("cold", "warm, all views", f"views: {VIEWS}"))
    )
    for row in rows:
        print(
            f"{row['teacher'] + ' -> ' + row['student']:<28}{row['authors']['median']:>8.0f}"
            + "".join(_cell(row, name) for name in LINES)
        )
    print(_accuracy(study))
    print("\n".join(table(content)))
    print(f"written: {path}")


def table(content: dict[str, Any]) -> list[str]:
    """Return the result as docs/benchmarks/training.md shows it, in lines of Markdown."""

    def cell(row: dict[str, Any], name: str) -> str:
        ratio = row[name]["ratio"]
        ends = f" [{ratio['low']:.1f}, {ratio['high']:.1f}]" if ratio["n"] > 1 else ""
        return f"{row[name]['median']:.0f}, {ratio['median']:.1f}x{ends}"

    head = (
        "teacher -> student",
        "published loop",
        "cold: the teacher runs",
        "warm: its logits are known",
        f"`train.views: {content['views']}`, known",
    )
    rows = [
        (
            f"{row['teacher']} -> {row['student']}",
            f"{row['authors']['median']:.0f}",
            *(cell(row, name) for name in LINES),
        )
        for row in content["rows"]
    ]
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def _cell(row: dict, name: str) -> str:
    ratio = row[name]["ratio"]
    return f"{row[name]['median']:>9.0f} {ratio['median']:>4.1f}x" + f"[{ratio['low']:.1f}, {ratio['high']:.1f}]".rjust(
        11
    )


def _study() -> dict[str, Any] | None:
    """Return what `train.views: VIEWS` did to accuracy, and where; None if `views.py` has not been run."""
    if not STUDY.is_file():
        return None
    found = json.loads(STUDY.read_text())
    row = found["table"][str(VIEWS)]
    return {
        "gain_points": row["gain_points"]["mean"],
        "ci95": row["gain_points"]["ci95"],
        "seeds": row["top1"]["n"],
        "teacher": found["teacher"]["model"],
        "student": found["student"],
        "method": found["method"],
        "epochs": found["epochs"],
        "pictures": found["pictures"],
        "data": "embedded pictures, a tenth for validation, crops and flips",
        "source": f"benchmarks/results/{STUDY.name}",
    }


def _accuracy(study: dict[str, Any] | None) -> str:
    if study is None:
        return (
            f"views: {VIEWS}: the effect of the limit on accuracy is not known here: {STUDY} is missing; "
            "make it with: python benchmarks/views.py --seeds 5"
        )
    low, high = study["ci95"]
    return (
        f"views: {VIEWS}: accuracy {study['gain_points']:+.2f} [{low:+.2f}, {high:+.2f}] points from all views, "
        f"not on these pairs: {study['teacher']} -> {study['student']} by {study['method']}, {study['epochs']} epochs, "
        f"{study['pictures']:,} {study['data']}, {study['seeds']} seeds ({study['source']})"
    )


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (count, 32, 32, 3) and labels (count,)."""
    root = os.environ.get("COMPRESS_TEST_DATA")
    folder = Path(root) / "cifar100" if root else None
    labels = np.arange(count) % CLASSES
    if folder is None or not folder.is_dir():
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels
    paths = sorted(folder.glob("train-*.webp"))[: -(-count // 5000)]
    return np.concatenate([sheet(path) for path in paths])[:count], labels


def sheet(path: Path) -> np.ndarray:
    """Read a sheet of 50 rows of 100 images of 32x32 pixels: uint8 (5000, 32, 32, 3)."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels.reshape(50, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _row(setting: Setting, teacher: str, student: str, rounds: int) -> dict:
    speeds: dict[str, list[float]] = {"authors": [], "cold": [], "warm": [], "views": []}
    for number in range(rounds):
        told = [
            "--authors-alone",
            "--pair",
            f"{teacher}:{student}",
            "--device",
            setting.device,
            "--pictures",
            str(setting.pictures),
        ]
        speeds["authors"].append(float(_run(str(Path(__file__).resolve()), *told)))
        with tempfile.TemporaryDirectory() as folder:
            for name, speed in _ours(setting, teacher, student, Path(folder)).items():
                speeds[name].append(speed)
        print(
            f"{teacher} -> {student}, round {number + 1}: "
            + ", ".join(f"{name} {values[-1]:.0f}" for name, values in speeds.items()),
            flush=True,
        )
    row: dict = {
        "teacher": teacher,
        "student": student,
        "authors": {"median": statistics.median(speeds["authors"]), "each": speeds["authors"]},
    }
    for name in LINES:
        row[name] = {
            "median": statistics.median(speeds[name]),
            "each": speeds[name],
            "ratio": result_file.ratio(speeds[name], speeds["authors"]),
        }
    return row


def _run(*command: str) -> str:
    """Run a Python process and return what it prints. Raises SystemExit with its stderr if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _authors(setting: Setting, teacher: str, student: str) -> float:
    """Return the images per second of a pass of the authors' loop, after an untimed batch."""
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
    """The student, which keeps the last input of its classifier."""

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
    """Return the images per second of `compress run --until distill`: cold, warm, and with limited views."""
    np.savez(
        folder / "pictures.npz",
        train_images=setting.images,
        train_labels=setting.labels,
        test_images=setting.images[:CLASSES],
        test_labels=setting.labels[:CLASSES],
        class_names=np.array([f"class {number}" for number in range(CLASSES)]),
    )
    torch.manual_seed(0)
    save_file(models.build(teacher, classes=CLASSES).state_dict(), folder / "teacher.safetensors")
    content = {
        "data": {
            "source": "npz",
            "root": "pictures.npz",
            "validation": CLASSES,
            "normalize": {"mean": list(MEAN), "std": list(STD)},
        },
        "teacher": {"candidates": [{"model": teacher, "weights": "teacher.safetensors"}]},
        "student": {"model": student},
        "distill": {"method": "dhkd"},
        "train": {"batch_size": BATCH, "schedule": {"kind": "constant"}},
    }
    path = folder / "speed.yaml"
    path.write_text(yaml.safe_dump(content))
    each = setting.pictures - CLASSES  # views that one epoch trains on
    return {
        # The teacher runs in the timed epoch, too; some views come again.
        "cold": _speed(path, folder / "cold", setting, epochs=2, asked=(each + 1, 2 * each)),
        "warm": _speed(path, folder / "cold", setting, epochs=2, asked=(0, 0), again=True),
        "views": _speed(
            path, folder / "few", setting, epochs=VIEWS + 1, asked=((VIEWS - 1) * each + 1, VIEWS * each), views=VIEWS
        ),
    }


def _speed(
    path: Path,
    artifacts: Path,
    setting: Setting,
    *,
    epochs: int,
    asked: tuple[int, int],
    views: int | None = None,
    again: bool = False,
) -> float:
    """Return the images per second of the last epoch. `again`: train once more, with cached logits.

    Raises SystemExit if the teacher ran on fewer or more views than `asked`: something else was timed.
    """
    told = [f"train.epochs={epochs}", f"train.engine={setting.engine}", *([f"train.views={views}"] if views else [])]
    command = ["run", str(path), "--artifacts", str(artifacts), "--device", setting.device, "--until", "distill", "-q"]
    _run(
        "-m",
        "compress",
        *command,
        *(part for one in told for part in ("--set", one)),
        *(["--force", "distill"] if again else []),
    )
    (history,) = (artifacts / "cache" / "distill").glob("*/history.csv")
    rows = json.loads((history.parent / "stage.json").read_text())["result"]["teacher_rows"]
    if rows is None or not asked[0] <= rows <= asked[1]:
        kind = "warm" if again else f"views: {views}" if views else "cold"
        raise SystemExit(
            f"{kind}: the teacher ran on {rows} views in {epochs} epochs, not on {asked[0]} to {asked[1]}; "
            "the time would be of something else"
        )
    with history.open() as stream:
        return float(list(csv.DictReader(stream))[-1]["images_per_second"])


if __name__ == "__main__":
    main()
