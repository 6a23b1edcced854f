"""Short fine-tunings on a few hundred photos, against a last layer alone: settings of `train`, and the photo recipe.

    python benchmarks/few_photos.py PHOTOS --weights FOLDER

FOLDER holds efficientnet-lite0-57934424.pth and efficientnet-lite2-9656183e.pth. Settings are compared at 128 pixels
with EfficientNet-Lite0 as its own teacher, three epochs each; the recipe is recipes/photos.yaml as it is. Every run is
an ordinary `compress run`, cached in --artifacts, so that an interrupted benchmark resumes. PHOTOS has train/CLASS and
test/CLASS. The test images are read by each run's `validate` alone. The result is written after every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
import yaml
from seeds import mean

from compress.core.console import Console
from compress.pipeline import run as pipeline
from compress.recipe import loader
from compress.verdict.intervals import paired_drop

# Settings of the student's and of the teacher's training. "as before" is what 0.1.0 did.
EARLIER = {"lr": 0.005, "probe": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "as before": {**EARLIER, "batch_norm": "running"},
    "statistics recomputed": {**EARLIER, "batch_norm": "recomputed"},
    "the defaults": {},
}
RECIPE = "recipes/photos.yaml"
# The last layer alone: one epoch at a rate that changes nothing.
PROBE = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
ALONE, RECIPE_ALONE = "a last layer alone", "a last layer alone, as in the recipe"
# What each setting is compared with.
BASES = {**dict.fromkeys(SETTINGS, ALONE), RECIPE: RECIPE_ALONE}
SMALL_CROPS = {"as before": [0.08, 1.0], "statistics recomputed": [0.08, 1.0]}
SIDE, EPOCHS = 128, 3


def recipe(photos: Path, weights: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the recipe of one run. `name`: a setting, the photo recipe, or a last layer alone."""
    files = [str(weights / name) for name in ("efficientnet-lite0-57934424.pth", "efficientnet-lite2-9656183e.pth")]
    if name in (RECIPE, RECIPE_ALONE):
        content: dict[str, Any] = yaml.safe_load(Path(RECIPE).read_text())
        content["data"]["root"] = str(photos)
        content["student"]["weights"] = files[0]
        (teacher,) = content["teacher"]["candidates"]
        teacher["weights"] = files[1]
        teacher["train"]["seed"] = seed
    else:
        train = {"epochs": EPOCHS, **SETTINGS.get(name, {})}
        network = {"model": "efficientnet_lite0", "weights": files[0]}
        crops = {"crop_scale": SMALL_CROPS[name]} if name in SMALL_CROPS else {}
        content = {
            "data": {
                "source": "folder",
                "root": str(photos),
                "image_size": SIDE,
                "augment": "resized_crop",
                "validation": 0.25,
                "calibration": 128,
                **crops,
            },
            "teacher": {"candidates": [{**network, "train": {**train, "seed": seed}}]},
            "student": network,
            "distill": {"method": "dhkd"},
            "train": train,
            "validate": {"repeats": 16, "warmup": 5},
        }
    if name in (ALONE, RECIPE_ALONE):
        network = content["student"]
        content |= {"train": PROBE, "distill": {"method": "none"}}
        content["teacher"] = {"candidates": [{**network, "train": {**PROBE, "seed": seed}}]}
        content.pop("require", None)
    return {**content, "name": "few-photos", "seed": seed}


@click.command()
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "few_photos.json")
def main(photos: Path, weights: Path, seeds: int, artifacts: Path, out: Path) -> None:
    """Run every setting with every seed and compare each with a last layer alone."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (RECIPE_ALONE, RECIPE, ALONE, *SETTINGS)}
    for seed in range(seeds):
        for name, rows in runs.items():
            content = recipe(photos.absolute(), weights.absolute(), name, seed)
            rows.append(run(content, name, seed, artifacts))
            result_file.write(out, result(runs, seeds))
    for name, row in result(runs, seeds)["table"].items():
        print(f"{name:36} float {row['fp32_top1']['mean']:5.1f} %  int8 {row['top1']['mean']:5.1f} %")
    print(f"written: {out}")


def run(content: dict[str, Any], name: str, seed: int, artifacts: Path) -> dict[str, Any]:
    """Make one `compress run` and return its row."""
    path = artifacts / "few_photos.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    outcome = pipeline.run(
        loader.load(path, ()), artifacts=artifacts, device="auto", until=None, force=(), console=Console(quiet=True)
    )
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    report = outcome.report
    models = {row["file"]: row for row in report["models"]}
    with np.load(outcome.run_folder / "predictions.npz") as stored:
        right = {
            file: stored[f"logits/{file}"].argmax(axis=1) == stored["labels"]
            for file in ("student.fp32.onnx", "student.int8.onnx")
        }
    row = {
        "seed": seed,
        "validation_top1": 100 * report["student"]["top1_validation"],
        "teacher_validation_top1": 100 * report["teacher"]["top1_validation"],
        "fp32_top1": 100 * models["student.fp32.onnx"]["top1"],
        "top1": 100 * models["student.int8.onnx"]["top1"],
        "status": report["status"],
        "minutes": round(sum(row["seconds"] for row in report["stages"]) / 60, 2),
        "warnings": report["cautions"],
        "_right": right,
        "_environment": report["environment"],
        "_images": len(right["student.int8.onnx"]),
    }
    print(f"{name}, seed {seed}: float {row['fp32_top1']:.1f} %, int8 {row['top1']:.1f} %", flush=True)
    return row


def result(runs: dict[str, list[dict[str, Any]]], seeds: int) -> dict[str, Any]:
    """Return the content of the result file."""
    every = [row for rows in runs.values() for row in rows]
    alone = {base: {row["seed"]: row for row in runs[base]} for base in (ALONE, RECIPE_ALONE)}
    environment = {key: value for key, value in every[0]["_environment"].items() if key != "compress"}
    return {
        "command": "python benchmarks/few_photos.py PHOTOS --weights FOLDER",
        "seeds": seeds,
        "image_size_of_settings": SIDE,
        "epochs_of_settings": EPOCHS,
        "test_images": every[0]["_images"],
        "environment": environment,
        "table": {name: table_row(rows, alone[BASES.get(name, name)]) for name, rows in runs.items() if rows},
        "runs": {
            name: [{key: one for key, one in row.items() if key[0] != "_"} for row in rows]
            for name, rows in runs.items()
        },
    }


def table_row(rows: list[dict[str, Any]], alone: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return a setting's accuracies (per cent), and its gain over a last layer alone, seed by seed."""
    keys = ("validation_top1", "teacher_validation_top1", "fp32_top1", "top1")
    table: dict[str, Any] = {key: mean([row[key] for row in rows]) for key in (*keys, "minutes")}
    for key, file in (("fp32_gain", "student.fp32.onnx"), ("gain", "student.int8.onnx")):
        drops = [paired_drop(alone[row["seed"]]["_right"][file], row["_right"][file]) for row in rows]
        table[key] = [{"points": -drop.drop_points, "ci95": [-drop.high, -drop.low]} for drop in drops]
    return table


if __name__ == "__main__":
    main()
