"""What unlabelled images, groups and the choice of a method by trials are worth on small sets, three seeds each.

    python benchmarks/small_sets.py

The images are the embedded ones (Fashion-MNIST), the teacher is the embedded ResNet-8x4, the student a ResNet-8 from
scratch. Every run is an ordinary `compress run`, cached in --artifacts, so that an interrupted benchmark resumes.

- unlabelled: 300 labels and 2,400 images without one, against the 300 labels alone, with and without the teacher.
- groups: clips of 10 shifted, noisy frames of one image. The test part is carved off image by image, or clip by clip
  with `data.group`; the truth is the accuracy on 5,000 images of other clips.
- auto: the method that short trials choose, and the test accuracy of every method trained in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
import yaml
from PIL import Image
from seeds import mean

from compress.core.console import Console
from compress.data.sources import fashion
from compress.pipeline import run as pipeline
from compress.recipe import loader
from export.runtime.model import Model

TEACHER = {"candidates": [{"model": "resnet8x4", "weights": "embedded"}]}
COMMON: dict[str, Any] = {
    "name": "small-sets",
    "teacher": TEACHER,
    "student": {"model": "resnet8"},
    "validate": {"repeats": 16, "warmup": 5},
}
DATA: dict[str, Any] = {"source": "fashion", "image_size": 32, "augment": "crop_flip", "limit_test": 3000}
TRAIN = {"epochs": 16, "batch_size": 32, "lr": 0.05}
METHODS = ("none", "kd", "dkd", "dist", "dhkd")
CLIPS, FRAMES, SHIFT, NOISE = 16, 10, 2, 12.0  # clips of each class; pixels; standard deviation


def make(content: dict[str, Any], artifacts: Path) -> tuple[dict[str, Any], Path]:
    """Make one `compress run`; return its report and its folder."""
    path = artifacts / "small_sets.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**COMMON, **content}))
    outcome = pipeline.run(
        loader.load(path, ()), artifacts=artifacts, device="auto", until=None, force=(), console=Console(quiet=True)
    )
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    return outcome.report, outcome.run_folder


def top1(report: dict[str, Any], file: str) -> float:
    """Return a file's accuracy on the test images, in per cent."""
    rows = [*report["models"], *((report.get("baseline") or {}).get("models") or [])]
    return 100 * float(next(row["top1"] for row in rows if row["file"] == file))


def unlabelled(seed: int, artifacts: Path) -> dict[str, Any]:
    """Compare 300 labels with and without 2,400 further images."""
    data = {**DATA, "split_seed": seed}
    few = {**data, "limit_train": 334, "validation": 34}
    long = {**TRAIN, "epochs": 144}  # as many steps as on all images
    many = {**data, "limit_train": 3000, "labelled": 300}
    kd = {"method": "kd", "kd": {"temperature": 4.0}}
    more, _ = make({"seed": seed, "data": many, "distill": kd, "train": TRAIN}, artifacts)
    alone, _ = make({"seed": seed, "data": few, "distill": kd, "train": long}, artifacts)
    plain, _ = make({"seed": seed, "data": few, "distill": {"method": "none"}, "train": long}, artifacts)
    return {
        "seed": seed,
        "300 labels, no teacher": top1(plain, "student.fp32.onnx"),
        "300 labels, kd": top1(alone, "student.fp32.onnx"),
        "300 labels and 2,400 images without, kd": top1(more, "student.fp32.onnx"),
    }


def write_clips(folder: Path, seed: int) -> np.ndarray:
    """Write the clips as PNG files, CLASS/clip7_3.png; return the indices of the images that they show."""
    arrays, random = fashion.load(), np.random.default_rng(seed)
    used = []
    for label, name in enumerate(fashion.CLASSES):
        chosen = random.permutation(np.flatnonzero(arrays["train_labels"] == label))[:CLIPS]
        used += list(chosen)
        place = folder / name.replace("/", " ")
        place.mkdir(parents=True, exist_ok=True)
        for clip, index in enumerate(chosen):
            padded = np.pad(arrays["train_images"][index], 2 + SHIFT)
            for frame in range(FRAMES):
                x, y = random.integers(0, 2 * SHIFT + 1, 2)
                shown = padded[y : y + 32, x : x + 32] + random.normal(0, NOISE, (32, 32))
                pixels = np.clip(np.round(shown), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").save(place / f"clip{label * CLIPS + clip}_{frame}.png")
    return np.array(used)


def truth(model: Path, seed: int) -> float:
    """Return a file's accuracy on the embedded test images, taken as frames of other clips, in per cent."""
    arrays, random = fashion.load(), np.random.default_rng(1000 + seed)
    images = np.zeros((len(arrays["test_images"]), 32, 32, 3), np.uint8)
    for number, image in enumerate(arrays["test_images"]):
        x, y = random.integers(0, 2 * SHIFT + 1, 2)
        shown = np.pad(image, 2 + SHIFT)[y : y + 32, x : x + 32] + random.normal(0, NOISE, (32, 32))
        images[number] = np.clip(np.round(shown), 0, 255).astype(np.uint8)[..., None]
    loaded = Model.load(model)
    names = [name.replace("/", " ") for name in fashion.CLASSES]
    order = sorted(range(len(names)), key=lambda label: names[label])
    answers = np.array(order)[loaded.run(images).argmax(axis=1)]
    return 100 * float((answers == arrays["test_labels"]).mean())


def grouped(seed: int, artifacts: Path) -> dict[str, Any]:
    """Measure on a test part that is carved off frame by frame, and clip by clip."""
    folder = (artifacts / f"clips{seed}").absolute()
    write_clips(folder, seed)
    row: dict[str, Any] = {"seed": seed}
    for name, group in (("frame by frame", None), ("clip by clip", r"(clip\d+)_")):
        data = {"source": "folder", "root": str(folder), "image_size": 32, "augment": "crop_flip", "calibration": 128}
        data |= {"test": 0.25, "validation": 0.1, **({"group": group} if group else {})}
        content = {"seed": seed, "data": data, "distill": {"method": "none"}, "train": {**TRAIN, "epochs": 8}}
        content["teacher"] = {"candidates": [{"model": "resnet8", "train": {"epochs": 1}}]}
        report, run = make(content, artifacts)
        measured = next(one for one in report["models"] if one["file"] == "student.fp32.onnx")
        row[name] = {
            "top1": 100 * measured["top1"],
            "ci95": [100 * value for value in measured["top1_ci95"]],
            "truth": truth(run / "student.fp32.onnx", seed),
        }
    return row


def tried(seed: int, artifacts: Path) -> dict[str, Any]:
    """Let trials choose a method, and train every method in full."""
    data = {**DATA, "split_seed": seed, "limit_train": 2500, "validation": 600}
    content = {"seed": seed, "data": data, "train": TRAIN}
    chosen, _ = make({**content, "distill": {"method": "auto"}}, artifacts)
    full = {}
    for method in METHODS:
        report, _ = make({**content, "distill": {"method": method}}, artifacts)
        full[method] = top1(report, "student.fp32.onnx")
    rows = chosen["method_choice"]["trials"]
    return {
        "seed": seed,
        "chosen": next(one["method"] for one in rows if one["chosen"]),
        "trial_gains": {one["method"]: [one["gain_points"], one["gain_ci95"], one["p_holm"]] for one in rows},
        "test_top1": full,
        "environment": chosen["environment"],
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the means over the seeds."""
    found: dict[str, Any] = {}
    if rows["unlabelled"]:
        keys = [key for key in rows["unlabelled"][0] if key != "seed"]
        found["unlabelled"] = {key: mean([row[key] for row in rows["unlabelled"]]) for key in keys}
    for name in ("frame by frame", "clip by clip") if rows["groups"] else ():
        own = [row[name] for row in rows["groups"]]
        found[f"groups, {name}"] = {
            "too_high_by_points": mean([one["top1"] - one["truth"] for one in own]),
            "intervals_that_hold_the_truth": sum(one["ci95"][0] <= one["truth"] <= one["ci95"][1] for one in own),
        }
    if rows["auto"]:
        by_method = {method: mean([row["test_top1"][method] for row in rows["auto"]]) for method in METHODS}
        found["auto"] = {
            "chosen": [row["chosen"] for row in rows["auto"]],
            "test_top1_of_the_chosen": mean([row["test_top1"][row["chosen"]] for row in rows["auto"]]),
            "test_top1_of_each": by_method,
        }
    return found


def without(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the machine, which the result has once."""
    return {key: value for key, value in row.items() if key != "environment"}


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "small_sets.json")
def main(seeds: int, artifacts: Path, out: Path) -> None:
    """Run all parts with every seed; the result is written after every part."""
    rows: dict[str, list[dict[str, Any]]] = {"unlabelled": [], "groups": [], "auto": []}
    for seed in range(seeds):
        for name, part in (("auto", tried), ("groups", grouped), ("unlabelled", unlabelled)):
            rows[name].append(part(seed, artifacts))
            environment = {key: value for key, value in rows["auto"][0]["environment"].items() if key != "compress"}
            kept = {part_name: [without(row) for row in own] for part_name, own in rows.items()}
            content = {"command": "python benchmarks/small_sets.py", "seeds": seed + 1, "environment": environment}
            result_file.write(out, {**content, "table": table(rows), "runs": kept})
            print(f"{name}, seed {seed}: {kept[name][-1]}", flush=True)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
