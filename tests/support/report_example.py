"""A run folder as a run leaves it, made of seeded random numbers with some structure.

`python tests/support/report_example.py FOLDER` renders one to look at.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compress.recipe.schema import Require
from compress.verdict.class_metrics import class_metrics, f1_of_classes
from compress.verdict.facts import Facts
from compress.verdict.gains import distillation_gain, int8_gain
from compress.verdict.intervals import ClassChange, PairedDrop, paired_drop, per_class, top_k_correct, wilson
from compress.verdict.requirements import judge, status

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# file: role, precision, share of right answers, bytes, median ms, integer share
FILES = {
    "teacher.onnx": ("teacher", "fp32", 0.902, 3_480_112, 0.742, 0.0),
    "student.fp32.onnx": ("student", "fp32", 0.899, 2_891_540, 0.211, 0.0),
    "student.int8.onnx": ("student", "int8", 0.896, 912_331, 0.183, 1.0),
    "baseline.int8.onnx": ("baseline", "int8", 0.880, 912_331, 0.184, 1.0),
}


def logits_for(share: float, labels: np.ndarray, skill: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return logits (N, K), right where an image's difficulty, common to all files, and a little noise allow it."""
    n, k = len(labels), len(CLASSES)
    logits = rng.normal(0, 1, (n, k)).astype(np.float32)
    ease = skill + rng.normal(0, 0.09, n)
    right = ease > np.quantile(ease, 1 - share)
    logits[np.arange(n), labels] += np.where(right, 9, -9)
    return logits


def build(folder: Path, *, n: int = 4000, require: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Any]:
    """Fill a run folder with report.json and everything beside it, and return the report."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % len(CLASSES))
    skill = rng.normal(0, 1, n) - 0.8 * np.isin(labels, [2, 4, 6])  # pullovers, coats and shirts look alike
    logits = {name: logits_for(row[2], labels, skill, rng) for name, row in FILES.items()}
    right = {name: top_k_correct(values, labels, 1) for name, values in logits.items()}
    samples = {
        name: row[4] * (1 + 0.03 * rng.standard_normal(704) ** 2 + 0.05 * (rng.random(704) < 0.08))
        for name, row in FILES.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    hashes = np.array([hashlib.sha256(str(index).encode()).hexdigest() for index in range(n)])
    np.savez_compressed(
        folder / "predictions.npz",
        labels=labels,
        sha256=hashes,
        **{f"logits/{name}": one for name, one in logits.items()},
    )
    np.savez_compressed(folder / "latency.npz", **samples)
    write_images(folder, labels, logits, right, rng)
    write_histories(folder / "history", rng)
    report = assemble(
        labels, logits, right, samples, require or {"max_top1_drop": 2.0, "min_speedup": 3.0, "min_compression": 3.0}
    )
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    return report


def assemble(
    labels: np.ndarray, logits: dict[str, Any], right: dict[str, Any], samples: dict[str, Any], require: dict[str, Any]
) -> dict[str, Any]:
    """Build report.json with the keys that every report has, and others."""
    rows = [model_row(name, labels, logits, right, samples) for name in FILES]
    drops = {name: paired_drop(right["teacher.onnx"], right[name]) for name in FILES if name != "teacher.onnx"}
    pairs = [comparison(name, "teacher.onnx", drop, samples) for name, drop in drops.items()]
    inner = paired_drop(right["student.fp32.onnx"], right["student.int8.onnx"])
    pairs.insert(2, comparison("student.int8.onnx", "student.fp32.onnx", inner, samples))
    worth = paired_drop(right["baseline.int8.onnx"], right["student.int8.onnx"])
    ship, own = rows[2], pairs[1]
    facts = Facts(
        file=ship["file"],
        target="local",
        drop=drops[ship["file"]],
        correct=int(right[ship["file"]].sum()),
        images=len(labels),
        latency_ms=ship["latency_ms"]["p50"],
        latency_ci95=ship["latency_ms"]["p50_ci95"],
        timed_runs=704,
        speedup=own["speedup_p50"],
        speedup_ci95=own["speedup_ci95"],
        bytes=ship["bytes"],
        teacher_bytes=rows[0]["bytes"],
        peak_memory_bytes=ship["peak_memory_bytes"],
        int8_mac_share=1.0,
    )
    judged = judge(
        Require(**require),
        facts,
        {name: f"recipes/mobilenet.yaml:{31 + place}:12" for place, name in enumerate(require)},
    )
    changes = per_class(labels, right["teacher.onnx"], right["student.int8.onnx"], len(CLASSES))
    f1 = f1_of_classes(labels, logits["student.int8.onnx"].argmax(axis=1), len(CLASSES))
    contract = {
        "schema": 1,
        "recipe": "mobilenet",
        "status": status(judged),
        "teacher": {
            "model": "resnet8x4",
            "top1_validation": 0.905,
            "params": 1_228_000,
            "macs": 177_000_000,
            "candidates": candidates(),
            "reason": "resnet8x4 has the best accuracy on the 700 validation pictures: 90.50 % against 88.43 %.",
        },
        "student": {
            "model": "mobilenet_v2",
            "params": 706_000,
            "macs": 6_510_000,
            "dropped": ["auxiliary.0.weight", "auxiliary.0.bias"],
            "epochs": 9,
            "method": "dhkd",
            "gpu": "NVIDIA T4",
        },
        "models": rows[:3],
        "comparisons": pairs[:3],
        "device": [
            {
                "target": "local",
                "file": ship["file"],
                "sha256": ship["sha256"],
                "precision": "int8",
                "host": "Linux x86_64",
                "cpu": "AMD EPYC 9R14",
                "onnxruntime": "1.31.1",
                "top1": 0.906,
                "agreement": 1.0,
                "max_abs_diff": 0.0,
                "latency_ms": ship["latency_ms"],
            }
        ],
        "requirements": [{**vars(row)} for row in judged],
        "seconds": {
            "data": 1.9,
            "teacher": 131.2,
            "distill": 128.7,
            "strip": 0.8,
            "convert": 9.4,
            "quantize": 4.1,
            "validate": 31.5,
            "device": 4.0,
        },
        "reused": ["data", "teacher"],
        "environment": {
            "python": "3.11.9",
            "torch": "2.15.0",
            "onnxruntime": "1.31.1",
            "cpu": "AMD EPYC 9R14",
            "cores": 2,
            "isa": "x86-vnni",
            "cuda": None,
        },
    }
    sentence = int8_gain(pairs[2]["speedup_p50"], pairs[2]["speedup_ci95"])
    return contract | {
        "started": "2026-01-31 12:00:00 UTC",
        "command": "compress run recipes/mobilenet.yaml",
        "data": {
            "source": "fashion",
            "image_size": 32,
            "classes": 10,
            "validation_pictures": 700,
            "test_pictures": len(labels),
        },
        "distill": {"method": "dhkd", "alpha": 10.0, "temperature": 2.0, "head": "nonlinear", "align": "none"},
        "classes": CLASSES,
        "unreadable": [{"path": "train/6/broken.jpg", "reason": "image file is truncated"}],
        "warnings": ["The student is trained from scratch on 6,300 pictures: a pretrained start usually gives more."],
        "baseline": {"epochs": 9, "top1_validation": 0.878, "models": rows[3:], "comparisons": pairs[3:]},
        "distillation": {
            "gain_points": -worth.drop_points,
            "ci95": [-worth.high, -worth.low],
            "mcnemar_p": worth.p,
            "model": "student.int8.onnx",
            "against": "baseline.int8.onnx",
            "sentence": distillation_gain(worth),
        },
        "int8_against_float": {
            "speedup": pairs[2]["speedup_p50"],
            "ci95": pairs[2]["speedup_ci95"],
            "sentence": sentence,
        },
        "per_class": [
            {
                "class": CLASSES[row.index],
                "n": row.n,
                "teacher": row.reference,
                "student": row.model,
                "right": right_of(row),
                "student_ci95": list(wilson(right_of(row), row.n)),
                "f1": float(f1[row.index]),
            }
            for row in changes
        ],
    }


def right_of(row: ClassChange) -> int:
    return round((row.model or 0.0) * row.n)


def candidates() -> list[dict[str, Any]]:
    return [
        {
            "model": "resnet8x4",
            "top1_validation": 0.905,
            "chosen": True,
            "params": 1_228_000,
            "macs": 177_000_000,
            "seconds": 131.2,
            "epochs": 6,
            "origin": "trained here",
            "gpu": "NVIDIA H200",
        },
        {
            "model": "resnet20",
            "top1_validation": 0.8843,
            "chosen": False,
            "params": 272_000,
            "macs": 41_000_000,
            "seconds": 74.9,
            "epochs": 6,
            "origin": "trained here",
        },
    ]


def model_row(
    name: str, labels: np.ndarray, logits: dict[str, Any], right: dict[str, Any], samples: dict[str, Any]
) -> dict[str, Any]:
    role, precision, _, size, _, share = FILES[name]
    p50, p90, p99 = (float(value) for value in np.quantile(samples[name], (0.5, 0.9, 0.99)))
    hits, n = int(right[name].sum()), len(labels)
    return {
        "role": role,
        "precision": precision,
        "file": name,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "bytes": size,
        "images": n,
        "top1": hits / n,
        "top1_ci95": list(wilson(hits, n)),
        "top5": float(top_k_correct(logits[name], labels, 5).mean()),
        **class_metrics(labels, logits[name].argmax(1), len(CLASSES), seed=0).row(),
        "agreement_with_teacher": float((logits[name].argmax(1) == logits["teacher.onnx"].argmax(1)).mean()),
        "max_abs_diff_from_torch": 3.1e-6 if precision == "fp32" else None,
        "latency_ms": {
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "runs": 704,
            "threads": 1,
            "batch": 1,
            "p50_ci95": [0.985 * p50, 1.012 * p50],
        },
        "first_run_ms": 2.3 * p50,
        "load_ms": 41.0,
        "peak_memory_bytes": 61_000_000 + 3 * size,
        "int8_mac_share": share,
        "target": "x86-vnni" if precision == "int8" else None,
    }


def comparison(name: str, against: str, drop: PairedDrop, samples: dict[str, Any]) -> dict[str, Any]:
    speedup = float(np.median(samples[against]) / np.median(samples[name]))
    return {
        "model": name,
        "against": against,
        "top1_drop_points": drop.drop_points,
        "top1_drop_ci95": [drop.low, drop.high],
        "mcnemar_p": drop.p,
        "speedup_p50": speedup,
        "speedup_ci95": [0.97 * speedup, 1.02 * speedup],
        "size_ratio": FILES[against][3] / FILES[name][3],
        "images": drop.n,
        "lost": drop.lost,
        "gained": drop.gained,
    }


def write_images(
    folder: Path, labels: np.ndarray, logits: dict[str, Any], right: dict[str, Any], rng: np.random.Generator
) -> None:
    """Write pictures.npz: soft shapes whose form follows the class."""
    lost = np.flatnonzero(right["teacher.onnx"] & ~right["student.int8.onnx"])
    chosen = lost[:24]
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    images = []
    for label in labels[chosen]:
        radius = np.abs(x) ** (1 + label % 4) + np.abs(y * (0.7 + 0.1 * label)) ** (1 + label % 3)
        grey = np.clip(255 * (radius < 0.6) * (0.6 + 0.4 * np.cos(3 * x + label)) + rng.normal(0, 8, x.shape), 0, 255)
        images.append(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2))
    predicted = {
        "teacher": logits["teacher.onnx"][chosen].argmax(1),
        "student": logits["student.int8.onnx"][chosen].argmax(1),
    }
    stacked = np.array(images, np.uint8).reshape(-1, 32, 32, 3)
    np.savez_compressed(
        folder / "pictures.npz", images=stacked, labels=labels[chosen], total=np.array(len(lost)), **predicted
    )


def write_histories(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(exist_ok=True)
    ends = {
        "student": (9, 0.899, 10.0),
        "baseline": (9, 0.880, 0.0),
        "resnet8x4": (6, 0.905, 0.0),
        "resnet20": (6, 0.884, 0.0),
    }
    for name, (epochs, end, alpha) in ends.items():
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(
                ["epoch", "lr", "ce", *(["binary_kl_norm"] if alpha else []), "top1_validation", "images_per_second"]
            )
            for epoch in range(1, epochs + 1):
                left = np.exp(-3.2 * epoch / epochs)
                losses = [0.18 + 1.6 * left + 0.02 * rng.random()] + ([alpha * (0.02 + 0.12 * left)] if alpha else [])
                top1 = end - 0.32 * (left - np.exp(-3.2)) + 0.006 * rng.standard_normal() * (epoch < epochs)
                rate = 0.05 * (1 + np.cos(np.pi * epoch / epochs)) / 2
                writer.writerow([epoch, f"{rate:.5f}", *(f"{loss:.5f}" for loss in losses), f"{top1:.4f}", "981.2"])


if __name__ == "__main__":
    from compress.report.page import render

    build(Path(sys.argv[1]))
    print(render(Path(sys.argv[1])))
