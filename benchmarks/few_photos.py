"""Short fine-tunings on a few hundred photos: what each default of `train` is worth, against a last layer alone.

    python benchmarks/few_photos.py PHOTOS --weights efficientnet-lite0.pth

EfficientNet-Lite0 teaches EfficientNet-Lite0, both from ImageNet weights in a file, for a few epochs. Every run is an
ordinary `compress run`, cached in --artifacts, so that an interrupted benchmark resumes. PHOTOS has train/CLASS and
test/CLASS. Settings are compared on validation images; the test images are read by each run's `validate` alone. The
result is written after every run.
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
SETTINGS: dict[str, dict[str, Any]] = {
    "as before": {"batch_norm": "running", "probe": False},
    "statistics recomputed": {"batch_norm": "recomputed", "probe": False},
    "the defaults": {},
    "statistics frozen": {"batch_norm": "frozen"},
}
# The last layer alone: one epoch at a rate that changes nothing.
PROBE = {"batch_norm": "frozen", "epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
SMALL_CROPS = {"as before": [0.08, 1.0], "statistics recomputed": [0.08, 1.0]}


def recipe(photos: Path, weights: Path, name: str, seed: int, side: int, epochs: int) -> dict[str, Any]:
    """Return the recipe of one run. `name`: of SETTINGS, or "a last layer alone"."""
    alone = name not in SETTINGS
    train = PROBE if alone else {"epochs": epochs, **SETTINGS[name]}
    network = {"model": "efficientnet_lite0", "weights": str(weights)}
    crops = {"crop_scale": SMALL_CROPS[name]} if name in SMALL_CROPS else {}
    return {
        "name": "few-photos",
        "seed": seed,
        "data": {
            "source": "folder",
            "root": str(photos),
            "image_size": side,
            "augment": "resized_crop",
            "validation": 0.25,
            "calibration": 128,
            **crops,
        },
        "teacher": {"candidates": [{**network, "train": {**train, "seed": seed}}]},
        "student": network,
        "distill": {"method": "none" if alone else "dhkd"},
        "train": train,
        "validate": {"repeats": 16, "warmup": 5},
    }


@click.command()
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--side", default=128, show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "few_photos.json")
def main(photos: Path, weights: Path, seeds: int, side: int, epochs: int, artifacts: Path, out: Path) -> None:
    """Run every setting with every seed and compare each with a last layer alone."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("a last layer alone", *SETTINGS)}
    for seed in range(seeds):
        for name, rows in runs.items():
            content = recipe(photos.absolute(), weights.absolute(), name, seed, side, epochs)
            rows.append(run(content, name, seed, artifacts))
            result_file.write(out, result(runs, seeds, side, epochs))
    for name, row in result(runs, seeds, side, epochs)["table"].items():
        print(f"{name:24} float {row['fp32_top1']['mean']:5.1f} %  int8 {row['top1']['mean']:5.1f} %")
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
        "warnings": report["cautions"],
        "_right": right,
        "_environment": report["environment"],
        "_images": len(right["student.int8.onnx"]),
    }
    print(f"{name}, seed {seed}: float {row['fp32_top1']:.1f} %, int8 {row['top1']:.1f} %", flush=True)
    return row


def result(runs: dict[str, list[dict[str, Any]]], seeds: int, side: int, epochs: int) -> dict[str, Any]:
    """Return the content of the result file."""
    every = [row for rows in runs.values() for row in rows]
    alone = {row["seed"]: row for row in runs["a last layer alone"]}
    environment = {key: value for key, value in every[0]["_environment"].items() if key != "compress"}
    return {
        "command": "python benchmarks/few_photos.py PHOTOS --weights FILE",
        "seeds": seeds,
        "image_size": side,
        "epochs": epochs,
        "test_images": every[0]["_images"],
        "environment": environment,
        "table": {name: table_row(rows, alone) for name, rows in runs.items() if rows},
        "runs": {
            name: [{key: one for key, one in row.items() if key[0] != "_"} for row in rows]
            for name, rows in runs.items()
        },
    }


def table_row(rows: list[dict[str, Any]], alone: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return a setting's accuracies (per cent), and its gain over a last layer alone, seed by seed."""
    keys = ("validation_top1", "teacher_validation_top1", "fp32_top1", "top1")
    table: dict[str, Any] = {key: mean([row[key] for row in rows]) for key in keys}
    for key, file in (("fp32_gain", "student.fp32.onnx"), ("gain", "student.int8.onnx")):
        drops = [paired_drop(alone[row["seed"]]["_right"][file], row["_right"][file]) for row in rows]
        table[key] = [{"points": -drop.drop_points, "ci95": [-drop.high, -drop.low]} for drop in drops]
    return table


if __name__ == "__main__":
    main()
