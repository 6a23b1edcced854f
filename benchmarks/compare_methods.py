"""Every method on the same student, teacher and images, over several seeds: the whole workflow, judged on test images.

    python benchmarks/compare_methods.py
    python benchmarks/compare_methods.py recipes/mobilenet.yaml --method none --method kd --method dhkd

The first command takes the embedded images, and on CUDA two CIFAR-100 pairs, too. Every run is an ordinary
`compress run` of a recipe with another `--set seed` and `--set distill.method`, cached in --artifacts: an interrupted
benchmark resumes, even in the middle of a training. The last epoch counts. Nothing is chosen by the test images, which
`validate` reads once. The result is written after every run; published numbers stand beside ours where there are any.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
import torch
import yaml
from seeds import mean, spread

from compress.core.console import Console
from compress.core.errors import CompressError, StageError
from compress.pipeline import run as pipeline
from compress.recipe import loader
from compress.verdict.intervals import paired_drop

HERE = Path(__file__).parent
EMBEDDED = HERE / "compare_methods.yaml"
PAIRS = tuple(
    HERE.parent / "recipes" / "cifar100" / f"{pair}.yaml" for pair in ("resnet56-resnet20", "resnet32x4-resnet8x4")
)
METHODS = (
    "none",
    "kd",
    "kd_standardized",
    "dkd",
    "dist",
    "dhkd",
    "fitnet",
    "at",
    "rkd",
    "crd",
    "ofd",
    "reviewkd",
    "dhkd+reviewkd",
    "simkd",
    "catkd",
)


def overrides(method: str) -> tuple[str, ...]:
    """Return the `--set` values that choose a method of METHODS."""
    if method == "kd_standardized":  # with the weights of its paper; KD's own do not suit it
        return "distill.method=kd", "distill.kd={standardize: true, temperature: 2.0, ce: 0.1, kd: 9.0}"
    return (f"distill.method=[{method.replace('+', ', ')}]",)


def published() -> dict[str, dict[str, float]]:
    """Return published top-1 in per cent, by pair and method."""
    tables: dict[str, dict[str, float]] = yaml.safe_load((HERE / "published.yaml").read_text())
    return tables


@click.command()
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="only these")
@click.option("--cifar100", type=click.Path(path_type=Path), help="npz file of CIFAR-100; default: torchvision's copy")
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "compare_methods.json", help="the result"
)
@click.option("--set", "more", multiple=True, help="further overrides, given to every run")
def main(
    recipes: tuple[Path, ...],
    seeds: int,
    methods: tuple[str, ...],
    cifar100: Path | None,
    artifacts: Path,
    out: Path,
    more: tuple[str, ...],
) -> None:
    """Run every method with every seed and compare."""
    recipes = recipes or (EMBEDDED, *(PAIRS if torch.cuda.is_available() else ()))
    if len({path.stem for path in recipes}) < len(recipes):
        raise click.UsageError("two recipes have the same name, so their results could not be distinguished")
    content: dict[str, Any] = {
        "command": result_file.command("compare_methods.py"),
        "seeds": seeds,
        "recipes": {},
    }
    try:
        for path in recipes:
            data = (
                (f"data.root={cifar100.absolute()}", "data.source=npz")
                if cifar100 and path.parent.name == "cifar100"
                else ()
            )
            runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods or METHODS}
            # Seeds outside: a benchmark that is stopped has every method with the seeds so far.
            for seed in range(seeds):
                for method, rows in runs.items():
                    rows.append(run(path, method, seed, artifacts, (*data, *more)))
                    content["recipes"][path.stem] = _result(path, runs)
                    result_file.write(out, content)
            print("\n".join(lines(path.stem, content["recipes"][path.stem])), flush=True)
    except CompressError as error:
        print(f"{error}; what is done is kept, and the same command resumes", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"written: {out}")


def run(path: Path, method: str, seed: int, artifacts: Path, more: tuple[str, ...]) -> dict[str, Any]:
    """Make one `compress run` and return its row; the verdict does not matter here. A failed training is a row, too."""
    own = (
        *overrides(method),
        f"seed={seed}",
        "distill.baseline=false",
        "require={}",
        "validate.repeats=16",
        f"name=compare-{path.stem}",
    )
    try:
        outcome = pipeline.run(
            loader.load(path, (*own, *more)),
            artifacts=artifacts,
            device="auto",
            until=None,
            force=(),
            console=Console(),
        )
    except StageError as error:
        print(f"{method}, seed {seed}: {error}", flush=True)
        return {"seed": seed, "failed": str(error)}
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    report, shipped = outcome.report, outcome.report["ships"]["file"]
    models = {row["file"]: row for row in report["models"]}
    with np.load(outcome.run_folder / "predictions.npz") as stored:
        right = stored[f"logits/{shipped}"].argmax(axis=1) == stored["labels"]
    row = {
        "seed": seed,
        "top1": 100 * models[shipped]["top1"],
        "fp32_top1": 100 * models["student.fp32.onnx"]["top1"],
        "validation_top1": 100 * report["student"]["top1_validation"],
        "bytes": models[shipped]["bytes"],
        **{
            key: report["student"][key]
            for key in (
                "params",
                "macs",
                "plain_params",
                "epochs",
                "precision",
                "threads",
                "images_per_second",
                "teacher_rows",
            )
        },
    }
    print(f"{method}, seed {seed}: {row['top1']:.2f} % on {len(right)} test images", flush=True)
    teacher = models["teacher.onnx"]
    common = {
        "test_pictures": len(right),
        "teacher": {"model": report["teacher"]["model"], "top1": 100 * teacher["top1"], "bytes": teacher["bytes"]},
    }
    return {
        **row,
        "_right": right,
        "_common": {**common, "student": report["student"]["model"], "environment": report["environment"]},
    }


def _result(path: Path, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return one recipe's table, its runs and what they share."""
    known = published().get(path.stem, {})
    plain = by_seed(runs.get("none", []))
    common: dict[str, Any] = next((row["_common"] for rows in runs.values() for row in rows if "_common" in row), {})
    environment = {key: value for key, value in common.get("environment", {}).items() if key != "compress"}
    return {
        **common,
        "environment": environment,
        "table": {method: table_row(rows, plain, known.get(method)) for method, rows in runs.items() if rows},
        "runs": {method: [bare(row) for row in rows] for method, rows in runs.items()},
    }


def by_seed(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the runs that did not fail, by seed, for `table_row` to compare others with."""
    return {row["seed"]: row for row in rows if "failed" not in row}


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """Return a run as it stands in a result file."""
    return {key: value for key, value in row.items() if key[0] != "_"}


def table_row(
    runs: list[dict[str, Any]], plain: dict[int, dict[str, Any]], published_top1: float | None = None
) -> dict[str, Any]:
    """Return a method's accuracy (per cent), its gain over plain training of the same seed (points), and its file."""
    done = [run for run in runs if "failed" not in run]
    row: dict[str, Any] = {
        "failed": [run["failed"] for run in runs if "failed" in run],
        "published_top1": published_top1,
    }
    if not done:
        return row
    pairs = [(plain[run["seed"]], run) for run in done if run["seed"] in plain and plain[run["seed"]] is not run]
    drops = [paired_drop(other["_right"], run["_right"]) for other, run in pairs]
    return {
        **row,
        "top1": spread([run["top1"] for run in done]),
        "fp32_top1": spread([run["fp32_top1"] for run in done]),
        "gain_points": mean([run["top1"] - other["top1"] for other, run in pairs]) if pairs else None,
        "gain_ci95_of_each_seed": [[-drop.high, -drop.low] for drop in drops],
        **{key: done[0][key] for key in ("params", "macs", "bytes")},
        "images_per_second": statistics.median(run["images_per_second"] for run in done),
    }


def lines(name: str, result: dict[str, Any]) -> list[str]:
    """Return the table in Markdown."""
    beside = any(row["published_top1"] is not None for row in result["table"].values())
    out = [
        f"{name}: {result['student']} taught by {result['teacher']['model']} ({result['teacher']['top1']:.2f} %), "
        f"{result['test_pictures']:,} test images",
        "",
        "| method | seeds | top-1, % | gain over plain, points [95 %] | parameters | file, bytes | images/s |"
        + (" published, % |" if beside else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if beside else ""),
    ]
    for method, row in result["table"].items():
        if "top1" not in row:
            out.append(f"| {method} | failed: {row['failed'][0]} |" + " |" * (6 if beside else 5))
            continue
        top1, gain = row["top1"], row["gain_points"]
        cells = [
            method,
            str(top1["n"]),
            f"{top1['mean']:.2f}" + (f" ± {top1['sd']:.2f}" if top1["sd"] is not None else ""),
            "",
        ]
        if gain is not None:
            ends = gain["ci95"]
            cells[3] = f"{gain['mean']:+.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
        cells += [f"{row['params']:,}", f"{row['bytes']:,}", f"{row['images_per_second']:,.0f}"]
        if beside:
            cells.append("" if row["published_top1"] is None else f"{row['published_top1']:.2f}")
        out.append("| " + " | ".join(cells) + " |")
    return out


if __name__ == "__main__":
    main()
