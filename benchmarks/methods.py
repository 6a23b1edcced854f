"""DHKD against plain training against KD on one recipe, several seeds: the whole workflow for each, test pictures at the end.

    python benchmarks/methods.py recipes/mobilenet.yaml --seeds 3

Every run is an ordinary `compress run` (same epochs, same teacher, another `--set seed` and `--set distill.method`), cached in --artifacts,
so an interrupted benchmark goes on where it stopped. Prints a table and writes it, with every run's number, to benchmarks/results/.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import click
import numpy as np

from compress import pipeline, recipe
from compress.console import Console
from compress.statistics import paired_drop

METHODS = ("none", "kd", "dhkd")
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t by number of seeds


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2, 10))
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/methods-<recipe>.json")
@click.option("--set", "overrides", multiple=True, help="further overrides, given to every run")
def main(path: Path, seeds: int, artifacts: Path, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Run every method with every seed and compare."""
    runs = {method: [_run(path, method, seed, artifacts, overrides) for seed in range(seeds)] for method in METHODS}
    table = {method: _row(runs[method], runs["none"]) for method in METHODS}
    for line in _lines(table, runs["none"][0]["teacher_top1"], seeds):
        print(line)
    out = out or Path(__file__).parent / "results" / f"methods-{path.stem}.json"
    content = {
        "command": f"python benchmarks/methods.py {path} --seeds {seeds}" + "".join(f" --set {one}" for one in overrides),
        "teacher_top1": runs["none"][0]["teacher_top1"],
        "test_pictures": runs["none"][0]["images"],
        "table": table,
        "runs": {method: [{key: value for key, value in run.items() if key != "correct"} for run in rows] for method, rows in runs.items()},
        "environment": {key: value for key, value in runs["none"][0]["environment"].items() if key != "compress"},
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {out}")


def _run(path: Path, method: str, seed: int, artifacts: Path, overrides: tuple[str, ...]) -> dict:
    """One `compress run`; the recipe's verdict does not matter here."""
    own = (f"distill.method={method}", f"seed={seed}", "distill.baseline=false", "require={}", "validate.repeats=100", f"name=methods-{path.stem}")
    loaded = recipe.load(path, (*own, *overrides))
    outcome = pipeline.run(loaded, artifacts=artifacts, device="auto", until=None, force=(), console=Console())
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    rows = {(row["role"], row["precision"]): row for row in outcome.report["models"]}
    with np.load(outcome.run_folder / "predictions.npz") as stored:
        correct = {name: stored[f"logits/{name}"].argmax(axis=1) == stored["labels"] for name in ("student.fp32.onnx", "student.int8.onnx")}
    return {
        "method": method,
        "seed": seed,
        "images": rows["teacher", "fp32"]["images"],
        "teacher_top1": rows["teacher", "fp32"]["top1"],
        "fp32_top1": rows["student", "fp32"]["top1"],
        "int8_top1": rows["student", "int8"]["top1"],
        **{key: outcome.report["student"][key] for key in ("epochs", "precision", "threads", "images_per_second")},
        "correct": correct["student.int8.onnx"],
        "environment": outcome.report["environment"],
    }


def _row(runs: list[dict], plain: list[dict]) -> dict:
    """Mean, spread and paired gain over plain training of a method, in per cent and points."""
    gains = [100 * (run["int8_top1"] - other["int8_top1"]) for run, other in zip(runs, plain, strict=True)]
    pairs = [paired_drop(other["correct"], run["correct"]) for run, other in zip(runs, plain, strict=True)]
    half = T_975[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    return {
        "fp32_top1": _spread([run["fp32_top1"] for run in runs]),
        "int8_top1": _spread([run["int8_top1"] for run in runs]),
        "gain_points": {"mean": statistics.mean(gains), "ci95": [statistics.mean(gains) - half, statistics.mean(gains) + half], "each": gains},
        "gain_ci95_of_each_seed": [[-pair.high, -pair.low] for pair in pairs],
    }


def _spread(values: list[float]) -> dict:
    values = [100 * value for value in values]
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "low": min(values), "high": max(values), "n": len(values)}


def _lines(table: dict, teacher: float, seeds: int) -> list[str]:
    lines = [f"teacher {100 * teacher:.2f} %; {seeds} seeds, test top-1 in per cent: mean (standard deviation)", ""]
    lines.append(f"{'method':<8}{'student fp32':>18}{'student int8':>18}{'gain over plain, points [95 %]':>34}")
    for method, row in table.items():
        fp32, int8 = (f"{row[key]['mean']:.2f} ({row[key]['sd']:.2f})" for key in ("fp32_top1", "int8_top1"))
        gain = "-" if method == "none" else f"{row['gain_points']['mean']:+.2f} [{row['gain_points']['ci95'][0]:.2f}, {row['gain_points']['ci95'][1]:.2f}]"
        lines.append(f"{method:<8}{fp32:>18}{int8:>18}{gain:>34}")
    return lines


if __name__ == "__main__":
    main()
