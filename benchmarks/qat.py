"""Quantisation-aware distillation compared with static int8 of the same student and of a longer trained one.

    python benchmarks/qat.py recipes/mobilenet.yaml --seeds 3

Runs on CPU or CUDA. There are three forms of int8, the gentlest first: per-channel weights of 8 bits, per-channel
weights of 7 bits (x86-avx2), one scale a tensor. Every run is an ordinary `compress run` with another `--set`, cached
in --artifacts, so an interrupted benchmark resumes. The same student is measured in float, static and tuned on the test
images, seed by seed. The table is printed and written to benchmarks/results/.

`--spread 32` scales the channels in front of each ReLU by factors between 1/32 and 1, and back behind it. The float
answers stay, but int8 has fewer levels for most channels. This is a hard case on purpose; networks that trained for
long have such channels by themselves (largest to median channel 6 to 17 in EfficientNet-Lite0).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import result_file
from onnx import numpy_helper
from seeds import mean

from compress.core.console import Console
from compress.core.records.base import File
from compress.core.records.deployment import Exported
from compress.pipeline import deployment
from compress.pipeline import run as pipeline
from compress.recipe import loader
from compress.verdict.intervals import paired_drop
from export.graph import onnx_file, surgery

CASES = {
    "8 bits, per channel": ("quantize.target=x86-vnni", "quantize.per_channel=true"),
    "7 bits, per channel": ("quantize.target=x86-avx2", "quantize.per_channel=true"),
    "8 bits, per tensor": ("quantize.target=x86-vnni", "quantize.per_channel=false"),
}
SHORT = (
    "teacher.candidates=[{model: resnet8x4, weights: embedded}]",
    "distill.baseline=false",
    "require={}",
    "validate.repeats=16",
)
PAIRS = ("static_loses", "tuned_loses", "tuned_gains_over_static", "tuned_gains_over_longer_static")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(1), help="of distillation")
@click.option("--further", default=2, show_default=True, type=click.IntRange(1), help="epochs of tuning")
@click.option(
    "--spread",
    default=1.0,
    show_default=True,
    type=click.FloatRange(1),
    help="scale channels apart by up to this factor",
)
@click.option("--longer/--no-longer", default=True, help="also train in float for as long, and quantise that")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="only these")
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "qat.json", help="the result")
@click.option("--set", "overrides", multiple=True, help="further overrides, given to every run")
def main(
    path: Path,
    seeds: int,
    epochs: int,
    further: int,
    spread: float,
    longer: bool,
    cases: tuple[str, ...],
    artifacts: Path,
    out: Path,
    overrides: tuple[str, ...],
) -> None:
    """Run every case with every seed and compare."""
    chosen = {name: CASES[name] for name in (cases or CASES)}
    if spread > 1:
        _spread(spread)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(seeds):
        for name, settings in chosen.items():
            common = (*SHORT, f"seed={seed}", f"name=qat-{path.stem}", *settings, *overrides)
            tuned = _run(
                path,
                artifacts,
                (*common, f"train.epochs={epochs}", "quantize.scheme=qat", f"quantize.epochs={further}"),
            )
            other = _run(path, artifacts, (*common, f"train.epochs={epochs + further}")) if longer else None
            runs[name].append({"seed": seed, **_seed(tuned, other)})
            print(
                name,
                json.dumps({key: value for key, value in runs[name][-1].items() if key != "environment"}),
                flush=True,
            )
    table = {name: _row(rows) for name, rows in runs.items()}
    for line in _lines(table, seeds):
        print(line)
    content = {
        "command": f"python benchmarks/qat.py {path} --seeds {seeds} --epochs {epochs} --further {further}"
        + f" --spread {spread:g}"
        + "".join(f' --case "{one}"' for one in cases)
        + ("" if longer else " --no-longer")
        + "".join(f" --set {one}" for one in overrides),
        "epochs": epochs,
        "further": further,
        "test_pictures": runs[next(iter(runs))][0]["images"],
        "table": table,
        "runs": {
            name: [{key: value for key, value in row.items() if key != "environment"} for row in rows]
            for name, rows in runs.items()
        },
        "environment": {
            key: value for key, value in runs[next(iter(runs))][0]["environment"].items() if key != "compress"
        },
    }
    result_file.write(out, content)
    print(f"written: {out}")


def _run(path: Path, artifacts: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Make one `compress run`; return its report and which test images each file gets right."""
    outcome = pipeline.run(
        loader.load(path, overrides), artifacts=artifacts, device="auto", until=None, force=(), console=Console()
    )
    assert outcome.report is not None and outcome.run_folder is not None  # no --until
    with np.load(outcome.run_folder / "predictions.npz") as stored:
        right = {
            row["file"]: stored[f"logits/{row['file']}"].argmax(axis=1) == stored["labels"]
            for row in outcome.report["models"]
        }
    return {"report": outcome.report, "right": right}


def _seed(tuned: dict[str, Any], longer: dict[str, Any] | None) -> dict[str, Any]:
    """Return one student's forms: top-1 on the test images, and the paired differences in points [95 %]."""
    right, report = tuned["right"], tuned["report"]
    floats, static, qat = (right[f"student.{name}.onnx"] for name in ("fp32", "static.int8", "int8"))
    more: dict[str, Any] = {}
    if longer is not None:
        other = longer["right"]["student.int8.onnx"]
        more = {
            "longer_float": float(longer["right"]["student.fp32.onnx"].mean()),
            "longer_static": float(other.mean()),
        }
        more["tuned_gains_over_longer_static"] = _pair(qat, other)
    return {
        "images": len(floats),
        "float": float(floats.mean()),
        "static": float(static.mean()),
        "tuned": float(qat.mean()),
        "static_loses": _pair(floats, static),
        "tuned_loses": _pair(floats, qat),
        "tuned_gains_over_static": _pair(qat, static),
        **more,
        **{
            key: report["tuning"][key]
            for key in ("epochs", "lr", "agreement", "mean_abs_diff", "images_per_second", "threads")
        },
        "int8_mac_share": [row["int8_mac_share"] for row in report["models"] if row["precision"] == "int8"],
        "environment": report["environment"],
    }


def _pair(better: np.ndarray, worse: np.ndarray) -> dict[str, Any]:
    drop = paired_drop(better, worse)
    return {"points": drop.drop_points, "ci95": [drop.low, drop.high], "mcnemar_p": drop.p}


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, per cent and points, with Student's interval."""
    names = [key for key in ("float", "static", "tuned", "longer_float", "longer_static") if key in runs[0]]
    pairs = [key for key in PAIRS if key in runs[0]]
    return {
        **{key: statistics.mean(100 * run[key] for run in runs) for key in names},
        **{key: mean([run[key]["points"] for run in runs]) for key in pairs},
    }


def _lines(table: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    lines = [f"{seeds} seeds, test top-1 in per cent, differences in points [95 % over seeds]", ""]
    for name, row in table.items():
        lines.append(f"{name}: float {row['float']:.2f}, static {row['static']:.2f}, tuned {row['tuned']:.2f}")
        for key in PAIRS:
            if key in row:
                ends = row[key]["ci95"]
                lines.append(
                    f"  {key:<34}{row[key]['mean']:+.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
                )
    return lines


def _spread(factor: float) -> None:
    """Replace the convert stage by one that also scales the channels of int8's source apart."""
    plain = deployment.CONVERT

    def run(config: Any, **told: Any) -> Exported:
        result: Exported = plain.run(config, **told)
        if told["recorded"] is None:
            return result
        target = told["context"].work / "spread.onnx"
        take_apart((result.int8_source or result.file).path, target, factor)
        return dataclasses.replace(result, int8_source=File.of(target))

    deployment.CONVERT = dataclasses.replace(plain, version=1000 * plain.version + round(factor), run=run)


def take_apart(source: Path, target: Path, factor: float) -> None:
    """Scale each channel between a Conv, a Relu and a Conv by 1/factor to 1, and back; the function stays the same."""
    model, random = onnx.load(str(source)), np.random.default_rng(0)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = surgery.producers(model.graph)
    readers = surgery.consumers(model.graph)
    for last in [node for node in model.graph.node if node.op_type == "Conv"]:
        relu = behind.get(last.input[0])
        first = (
            behind.get(relu.input[0])
            if relu is not None and relu.op_type == "Relu" and len(readers[relu.output[0]]) == 1
            else None
        )
        if first is None or first.op_type != "Conv" or len(readers[first.output[0]]) != 1:
            continue
        weight, bias, next_weight = (
            numpy_helper.to_array(tensors[name]).copy() for name in (*first.input[1:3], last.input[1])
        )
        by = np.exp(random.uniform(-np.log(factor), 0, len(weight))).astype(np.float32)
        depthwise = next_weight.shape[1] == 1
        if not depthwise and next_weight.shape[1] != len(by):
            continue
        weight, bias = weight * by[:, None, None, None], bias * by
        next_weight = next_weight / (by[:, None, None, None] if depthwise else by[None, :, None, None])
        for name, value in zip((*first.input[1:3], last.input[1]), (weight, bias, next_weight), strict=True):
            tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    onnx_file.save(model, target)


if __name__ == "__main__":
    main()
