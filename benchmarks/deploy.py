"""Our int8 against onnxruntime's plain `quantize_static` with its defaults, on torchvision networks with random weights.

    python benchmarks/deploy.py

Latency, size, memory and the share of integer kernels follow from the architecture, so random weights do (BatchNorm has seen the pictures).
Accuracy does not follow from them: agreement and KL to the float file say how well each int8 file computes what the float file computes,
not how well it classifies. Every row is measured on this machine; writes benchmarks/results/deploy.json.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision

import export.measure
from export import quantize, rewrites, search
from export.audit import audit
from export.convert import to_onnx
from export.runtime import Contract, Model, host, isa

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0")
CALIBRATION, EVALUATION = 32, 128
SIZE, CLASSES = 224, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@click.command()
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="a folder of photos; default: seeded pictures of soft shapes")
@click.option("--repeats", default=400, show_default=True, type=click.IntRange(min=64))
@click.option("--out", default=Path(__file__).parent / "results" / "deploy.json", type=click.Path(path_type=Path))
def main(photos: Path | None, repeats: int, out: Path) -> None:
    """Measure every network and print ratios."""
    torch.set_num_threads(1)
    pictures = _photos(photos, CALIBRATION + EVALUATION) if photos else _shapes(CALIBRATION + EVALUATION)
    print(f"{len(pictures)} pictures ({'photos' if photos else 'soft shapes'}), {CALIBRATION} of them calibrate; {isa()}, one thread, batch 1")
    rows = []
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_network(name, pictures, Path(folder), repeats))
        for line in _lines(rows[-1]):
            print(line, flush=True)
    content = {
        "command": "python benchmarks/deploy.py" + (" --photos FOLDER" if photos else ""),
        "weights": "random, BatchNorm statistics from the pictures; agreement and KL are against the float file",
        "pictures": {"kind": "photos" if photos else "soft shapes", "calibration": CALIBRATION, "evaluation": EVALUATION},
        "networks": rows,
        "environment": {**host(), **{name: version(name) for name in ("torch", "torchvision", "onnx")}},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {out}")


def _shapes(count: int) -> np.ndarray:
    """Low-frequency colour fields with edges and a little noise: uint8 (N, SIZE, SIZE, 3), unlike white noise as wide in range as photos."""
    random = np.random.default_rng(0)
    field = torch.from_numpy(random.normal(size=(count, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(field, (SIZE, SIZE), mode="bicubic", align_corners=False).numpy()
    edges = np.where(smooth[:, ::-1] > 0.3, 0.8, -0.4)
    noisy = 128 + 70 * (0.7 * smooth + 0.5 * edges) + random.normal(0, 6, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def _photos(folder: Path, count: int) -> np.ndarray:
    """The first photos of a folder by name, short side resized to 256, centre cut out: uint8 (N, SIZE, SIZE, 3)."""
    from PIL import Image, ImageOps

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[round(index)] for index in np.linspace(0, len(paths) - 1, count)]
    made = []
    for path in chosen:
        with Image.open(path) as photo:
            whole = ImageOps.exif_transpose(photo).convert("RGB")
            scale = 256 / min(whole.size)
            resized = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BILINEAR)
            left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
            made.append(np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))))
    return np.stack(made)


def _network(name: str, pictures: np.ndarray, folder: Path, repeats: int) -> dict[str, Any]:
    """One network: float, onnxruntime's defaults, ours."""
    calibration, evaluation = pictures[:CALIBRATION], pictures[CALIBRATION:]
    contract = Contract(tuple(f"class {number}" for number in range(CLASSES)), SIZE, MEAN, STD, "uint8_nhwc", f"compress {version('compress')}")
    files = {"float": folder / "float.onnx", "defaults": folder / "defaults.onnx", "ours": folder / "ours.onnx"}
    source = folder / "source.onnx"
    to_onnx(_random(name, calibration), files["float"], contract, pictures=calibration[:16])
    seconds = {}
    begin = time.monotonic()
    _onnxruntime_defaults(files["float"], files["defaults"], calibration)
    seconds["defaults"] = time.monotonic() - begin
    begin = time.monotonic()
    judged = rewrites.for_integers(files["float"], source, calibration[:16])
    quantize.quantize(source if source.is_file() else files["float"], files["ours"], calibration, isa=isa())
    seconds["ours"] = time.monotonic() - begin
    timed = export.measure.latency(files, evaluation[:32], repeats=repeats)
    expected = Model.load(files["float"]).run(evaluation, batch=16)
    rows = {kind: {**_row(path, expected, evaluation), **_latency(timed, kind), "seconds_to_make": seconds.get(kind)} for kind, path in files.items()}
    return {
        "network": name,
        "rewrites": [{"name": one.name, "kept": one.kept, "reason": one.reason, "max_abs_diff": one.max_abs_diff, "limit": one.limit} for one in judged],
        "files": rows,
        "ours_against": {kind: _ratios(timed, rows, kind) for kind in ("float", "defaults")},
        "contaminated": timed.contaminated,
        "other_cores": timed.other_cores,
    }


def _random(name: str, images: np.ndarray) -> torch.nn.Module:
    """Seeded weights; BatchNorm has the statistics of the pictures, so that activations neither vanish nor explode."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        network.train()((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    return network.eval()


def _onnxruntime_defaults(source: Path, target: Path, images: np.ndarray) -> None:
    """What its documentation begins with: `quantize_static(model, output, reader)`; the contract is copied, so that our runtime loads it."""
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


def _row(path: Path, expected: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    found = Model.load(path).run(images, batch=16)
    seen = audit(path)
    return {
        "bytes": path.stat().st_size,
        "peak_memory_bytes": export.measure.memory(path),
        "agreement_with_float": float((found.argmax(1) == expected.argmax(1)).mean()),
        "kl_to_float": search.divergence(expected, found),
        "int8_mac_share": seen.int8_mac_share,
        "float_islands": [{key: row[key] for key in ("op", "count", "cause")} for row in seen.causes_counted()],
    }


def _latency(timed: export.measure.LatencyResult, kind: str) -> dict[str, Any]:
    p50, low, high = export.measure.p50_interval(timed, kind)
    return {"p50_ms": p50, "p50_ci95": [low, high], "runs": timed.models[kind].runs}


def _ratios(timed: export.measure.LatencyResult, rows: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """How ours compares: speed, size, memory, as ratios above 1 where ours is better."""
    speed, low, high = export.measure.ratio(timed, kind, "ours")
    memory = [rows[one]["peak_memory_bytes"] for one in (kind, "ours")]
    return {
        "times_faster": speed,
        "times_faster_ci95": [low, high],
        "times_smaller": rows[kind]["bytes"] / rows["ours"]["bytes"],
        "times_less_memory": memory[0] / memory[1] if all(memory) else None,
        "kl": None if kind == "float" else rows[kind]["kl_to_float"] / max(rows["ours"]["kl_to_float"], 1e-12),
    }


def _lines(row: dict[str, Any]) -> list[str]:
    """The table of one network."""
    noise = f"; other processes used {row['other_cores']:.2f} cores" if row["contaminated"] else ""
    lines = ["", f"{row['network']}{noise}"]
    for one in row["rewrites"]:
        lines.append(f"  {'kept' if one['kept'] else 'refused'}: {one['name']}, difference {one['max_abs_diff']:.1e} of {one['limit']:.1e} ({one['reason']})")
    for kind, cells in row["files"].items():
        memory = cells["peak_memory_bytes"]
        lines.append(
            f"  {kind:<10} p50 {cells['p50_ms']:7.3f} ms  {cells['bytes']:>11,} bytes  "
            f"{'-' if memory is None else f'{memory / 1e6:.1f}'} MB peak  agrees {100 * cells['agreement_with_float']:5.1f} %  "
            f"KL {cells['kl_to_float']:.5f}  integer share {100 * cells['int8_mac_share']:5.1f} %"
            + (f"  {sum(island['count'] for island in cells['float_islands'])} islands" if kind != "float" else "")
        )
    for kind, ratios in row["ours_against"].items():
        low, high = ratios["times_faster_ci95"]
        memory = "" if ratios["times_less_memory"] is None else f", {ratios['times_less_memory']:.2f}x less memory"
        closer = "" if ratios["kl"] is None else f", KL {ratios['kl']:.2g}x lower"
        lines.append(
            f"  ours against {kind}: {ratios['times_faster']:.2f}x [{low:.2f}, {high:.2f}] faster, {ratios['times_smaller']:.2f}x smaller{memory}{closer}"
        )
    return lines


if __name__ == "__main__":
    main()
