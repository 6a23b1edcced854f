"""int8 for `web` compared with float in a browser's WebAssembly: answers and time.

    python benchmarks/browser.py [--run RUN_FOLDER]

Needs Chromium and npm; one image at a time, one thread. The networks are torchvision's at 224 pixels with the random
weights of benchmarks/deploy.py, and those in the bundle of a finished run. Differences are between the browser's logits
and this machine's for the same file. Writes benchmarks/results/browser.json.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file

from export.bundle import write
from export.bundle.write import Shipped
from export.graph import rewrites
from export.graph.from_torch import to_onnx
from export.int8 import quantize
from export.int8.integer_share import integer_share
from export.runtime import Contract, host
from export.targets import VerifySettings, dispatch, parse

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0")
IMAGES = 32
# Of random weights. Among a thousand near ties, rounding alone would change the answer for one image in five.
CLASSES = 10


@click.command()
@click.option(
    "--run",
    type=click.Path(exists=True, path_type=Path),
    help="a finished run's folder, whose bundle has an int8 file for web",
)
@click.option("--target", default="browser", show_default=True, help="as of `compress verify`")
@click.option("--repeats", default=200, show_default=True, type=click.IntRange(min=64))
@click.option("--out", default=result_file.RESULTS / "browser.json", type=click.Path(path_type=Path))
def main(run: Path | None, target: str, repeats: int, out: Path) -> None:
    """Measure every network and print what int8 is worth there."""
    import deploy  # beside this script

    rows = []
    images = deploy._shapes(deploy.CALIBRATION + IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        for name in NETWORKS:
            rows.append(_row(name, _bundle(deploy, name, images, Path(temporary) / name), target, repeats))
        if run is not None:
            rows.append(_row("student of a run", run / "bundle.zip", target, repeats))
    content = {
        "command": result_file.command("browser.py"),
        "weights": "random but for the run's student, which is trained; agreement is between the browser and this "
        "machine, for the same file",
        "networks": rows,
        "environment": {**host(), **{name: version(name) for name in ("torch", "torchvision", "onnx")}},
    }
    result_file.write(out, content)
    print(f"written: {out}")


def _bundle(deploy: Any, name: str, images: np.ndarray, folder: Path) -> Path:
    """Return a bundle with one network in float and in int8 for web."""
    folder.mkdir()
    calibration, shown = images[: deploy.CALIBRATION], images[deploy.CALIBRATION :]
    classes = tuple(f"class {number}" for number in range(CLASSES))
    contract = Contract(classes, deploy.SIZE, deploy.MEAN, deploy.STD, "uint8_nhwc", f"compress {version('compress')}")
    plain, source, int8 = folder / "float.onnx", folder / "source.onnx", folder / "int8.onnx"
    to_onnx(deploy._random(name, calibration, CLASSES), plain, contract, images=calibration[:16])
    rewrites.for_integers(plain, source, calibration[:16], integer_share)
    quantize.quantize(source if source.is_file() else plain, int8, calibration, isa="web")
    models = [Shipped(plain, "student", "fp32"), Shipped(int8, "student", "int8", "web")]
    return write.write(folder / "bundle", models, shown, np.zeros(len(shown), dtype=np.int64), title=name).archive


def _row(name: str, zipped: Path, target: str, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        answer = dispatch.verify(
            zipped, parse(target), Path(work), VerifySettings(repeats=repeats), limit_seconds=280, log=print
        )
    files = {row["file"]: row for row in answer["models"]}
    plain = next(row for row in files.values() if row["role"] == "student" and row["precision"] == "fp32")
    int8 = next(row for row in files.values() if row["role"] == "student" and row["target"] == "web")
    speed, low, high = int8["speedup_over"][plain["file"]]
    print(
        f"{name}: float {plain['latency_ms']['p50']:.3g} ms, int8 {int8['latency_ms']['p50']:.3g} ms, "
        f"{speed:.2f}x [{low:.2f}, {high:.2f}] as fast; "
        f"int8 differs from this machine's by {int8['max_abs_diff']:.2g}, agreement {int8['agreement']:.3f}",
        flush=True,
    )
    keys = (
        "role",
        "precision",
        "target",
        "images",
        "agreement",
        "max_abs_diff",
        "latency_ms",
        "first_run_ms",
        "load_ms",
        "speedup_over",
        "contaminated",
        "ok",
    )
    return {
        "network": name,
        "files": {file: {key: row[key] for key in keys} for file, row in files.items()},
        "int8_times_as_fast_as_float": speed,
        "ci95": [low, high],
        "browser": {key: answer["host"][key] for key in ("os", "cpu", "cores", "isolated", "clock_step_ms", "webgpu")},
        "onnxruntime": answer["onnxruntime"],
        "ok": answer["ok"],
    }


if __name__ == "__main__":
    main()
