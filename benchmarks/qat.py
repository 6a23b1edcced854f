"""Quantisation-aware distillation against static int8 of the same student, and against static int8 of one that trained as long in float.

    python benchmarks/qat.py recipes/mobilenet.yaml --seeds 3

Three ways to int8, from the gentlest: per-channel weights of 8 bits, per-channel weights of 7 bits (x86-avx2), one scale a tensor. Every run
is an ordinary `compress run` with another `--set`, cached in --artifacts, so an interrupted benchmark goes on where it stopped. The same
student, seed by seed, is measured in float, static and tuned on the test pictures. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np

from compress import pipeline, recipe
from compress.console import Console
from compress.statistics import paired_drop

CASES = {
    "8 bits, per channel": ("quantize.target=x86-vnni", "quantize.per_channel=true"),
    "7 bits, per channel": ("quantize.target=x86-avx2", "quantize.per_channel=true"),
    "8 bits, per tensor": ("quantize.target=x86-vnni", "quantize.per_channel=false"),
}
SHORT = ("teacher.candidates=[{model: resnet8x4, weights: embedded}]", "distill.baseline=false", "require={}", "validate.repeats=16")
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t by number of seeds


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2, 10))
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(1), help="of distillation")
@click.option("--further", default=2, show_default=True, type=click.IntRange(1), help="epochs of tuning")
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "qat.json", help="the result")
@click.option("--set", "overrides", multiple=True, help="further overrides, given to every run")
def main(path: Path, seeds: int, epochs: int, further: int, artifacts: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Run every case with every seed and compare."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for seed in range(seeds):
        for name, settings in CASES.items():
            common = (*SHORT, f"seed={seed}", f"name=qat-{path.stem}", *settings, *overrides)
            tuned = _run(path, artifacts, (*common, f"train.epochs={epochs}", "quantize.scheme=qat", f"quantize.epochs={further}"))
            longer = _run(path, artifacts, (*common, f"train.epochs={epochs + further}"))
            runs[name].append({"seed": seed, **_seed(tuned, longer)})
            print(name, json.dumps({key: value for key, value in runs[name][-1].items() if key != "environment"}), flush=True)
    table = {name: _row(rows) for name, rows in runs.items()}
    for line in _lines(table, seeds):
        print(line)
    content = {
        "command": f"python benchmarks/qat.py {path} --seeds {seeds} --epochs {epochs} --further {further}"
        + "".join(f" --set {one}" for one in overrides),
        "epochs": epochs,
        "further": further,
        "test_pictures": runs[next(iter(runs))][0]["images"],
        "table": table,
        "runs": {name: [{key: value for key, value in row.items() if key != "environment"} for row in rows] for name, rows in runs.items()},
        "environment": {key: value for key, value in runs[next(iter(runs))][0]["environment"].items() if key != "compress"},
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {out}")


def _run(path: Path, artifacts: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """One `compress run`: its report, and which test pictures each file gets right."""
    outcome = pipeline.run(recipe.load(path, overrides), artifacts=artifacts, device="auto", until=None, force=(), console=Console())
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    with np.load(outcome.run_folder / "predictions.npz") as stored:
        right = {row["file"]: stored[f"logits/{row['file']}"].argmax(axis=1) == stored["labels"] for row in outcome.report["models"]}
    return {"report": outcome.report, "right": right}


def _seed(tuned: dict[str, Any], longer: dict[str, Any]) -> dict[str, Any]:
    """One student in its forms: top-1 on the test pictures, and the paired differences in points [95 %]."""
    right, report = tuned["right"], tuned["report"]
    floats, static, qat = (right[f"student.{name}.onnx"] for name in ("fp32", "static.int8", "int8"))
    other = longer["right"]["student.int8.onnx"]
    return {
        "images": len(floats),
        "float": float(floats.mean()),
        "static": float(static.mean()),
        "tuned": float(qat.mean()),
        "longer_float": float(longer["right"]["student.fp32.onnx"].mean()),
        "longer_static": float(other.mean()),
        "static_loses": _pair(floats, static),
        "tuned_loses": _pair(floats, qat),
        "tuned_gains_over_static": _pair(qat, static),
        "tuned_gains_over_longer_static": _pair(qat, other),
        **{key: report["tuning"][key] for key in ("epochs", "lr", "agreement", "mean_abs_diff", "images_per_second", "threads")},
        "int8_mac_share": [row["int8_mac_share"] for row in report["models"] if row["precision"] == "int8"],
        "environment": report["environment"],
    }


def _pair(better: np.ndarray, worse: np.ndarray) -> dict[str, Any]:
    drop = paired_drop(better, worse)
    return {"points": drop.drop_points, "ci95": [drop.low, drop.high], "mcnemar_p": drop.p}


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, per cent and points, with Student's interval."""
    accuracies = {key: statistics.mean(100 * run[key] for run in runs) for key in ("float", "static", "tuned", "longer_float", "longer_static")}
    pairs = ("static_loses", "tuned_loses", "tuned_gains_over_static", "tuned_gains_over_longer_static")
    return {**accuracies, **{key: _mean([run[key]["points"] for run in runs]) for key in pairs}}


def _mean(values: list[float]) -> dict[str, Any]:
    mean, half = statistics.mean(values), T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half], "each": values}


def _lines(table: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    head = ("int8", "float", "static", "tuned", "static loses", "tuned over static", "tuned over longer float, static")
    rows = [head]
    for name, row in table.items():
        numbers = [f"{row[key]:.2f}" for key in ("float", "static", "tuned")]
        pairs = [f"{row[key]['mean']:+.2f} [{row[key]['ci95'][0]:.2f}, {row[key]['ci95'][1]:.2f}]" for key in (
            "static_loses", "tuned_gains_over_static", "tuned_gains_over_longer_static")]  # fmt: skip
        rows.append((name, *numbers, *pairs))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [f"{seeds} seeds, test top-1 in per cent, differences in points [95 % over seeds]", ""]
    return lines + ["  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
                    for row in rows]  # fmt: skip


if __name__ == "__main__":
    main()
