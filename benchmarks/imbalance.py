"""What class weights and balanced sampling are worth on unequal classes, and `train.ema` on equal ones.

    python benchmarks/imbalance.py

The embedded images (Fashion-MNIST), ResNet-8 from scratch by cross-entropy. "unequal": the classes' numbers of training
images fall geometrically from 500 to 10, in another order of classes for each seed. "equal": as many images of each
class. The test images are equal in class and are read once for each finished training. Every training is cached in
--artifacts, so that an interrupted benchmark resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
import torch
from seeds import mean

from compress.core.console import Console
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.core.store import Store
from compress.data import npy
from compress.data.sources import fashion
from compress.recipe.defaults import resolved_train
from compress.recipe.schema import ResolvedCandidate, Train
from compress.stages.teacher import TEACHER
from compress.training import build
from compress.training.evaluation import predict

MODEL, CLASSES, SIDE, MOST, LEAST = "resnet8", 10, 32, 500, 10
NORMALIZATION = Normalization((fashion.MEAN,) * 3, (fashion.STD,) * 3)
# Settings of `train` by data set; the first of each is what the others are compared with.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "unequal": {
        "neither": {},
        "class_weights": {"class_weights": "balanced"},
        "sampling": {"sampling": "balanced"},
    },
    "equal": {"without ema": {}, "ema 0.99": {"ema": 0.99}},
}
# Test images are equal in class, so balanced accuracy is their top-1; `top1` weighs the recalls by the classes' shares
# of the training images instead, as it would be on images like these.
METRICS = ("top1", "balanced_accuracy", "worst_recall", "rare_recall")
RARE = 3  # classes of the fewest images, whose mean recall is `rare_recall`


def counts(name: str, seed: int) -> np.ndarray:
    """Return how many images of each class are trained on, int64 (K,)."""
    falling = np.round(MOST * (LEAST / MOST) ** (np.arange(CLASSES) / (CLASSES - 1))).astype(np.int64)
    if name == "equal":
        return np.full(CLASSES, int(falling.mean()))
    return falling[np.random.default_rng(seed).permutation(CLASSES)]


def pixels(images: np.ndarray) -> np.ndarray:
    """Return grey images (N, 28, 28) as the product holds them: uint8 (N, 32, 32, 3), black around."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=3)


def training_data(name: str, seed: int, folder: Path) -> TrainingData:
    """Write a set's images and labels; a fifth of them is for validation."""
    arrays, random = fashion.load(), np.random.default_rng(100 + seed)
    labels = arrays["train_labels"]
    own = [
        random.permutation(np.flatnonzero(labels == number))[:count] for number, count in enumerate(counts(name, seed))
    ]
    index = np.sort(np.concatenate(own))
    folder.mkdir(parents=True, exist_ok=True)
    return TrainingData(
        npy.write_array(folder / "images.npy", pixels(arrays["train_images"][index])),
        npy.write_array(folder / "labels.npy", labels[index].astype(np.int64)),
        fashion.CLASSES,
        SIDE,
        "crop_flip",
        0.2,
        seed,
    )


def train(data: TrainingData, settings: dict[str, Any], seed: int, epochs: int, store: Store, label: str) -> Trained:
    """Train the network, or find it in the cache."""
    section = Train(epochs=epochs, batch_size=32, lr=0.05, seed=seed, threads=1, precision="float32", **settings)
    own = resolved_train(section, mobile=False, pretrained=False, seed=seed)
    candidate = ResolvedCandidate.model_construct(**(dict(ResolvedCandidate(model=MODEL)) | {"train": own}))
    network = Network(MODEL, None, CLASSES, SIDE, NORMALIZATION)
    found: Trained = store.run(TEACHER, candidate, label=label, network=network, data=data, weights=None)
    return found


def judge(trained: Trained, seed: int, name: str) -> dict[str, float]:
    """Return the accuracies on the test images, in per cent."""
    arrays = fashion.load()
    images, labels = torch.from_numpy(pixels(arrays["test_images"])), arrays["test_labels"]
    model = build.load_network(trained.network, trained.weights, "cpu")
    answers = predict(model, images, SIDE, NORMALIZATION).argmax(1).numpy()
    recall = np.array([(answers[labels == number] == number).mean() for number in range(CLASSES)])
    share = counts(name, seed) / counts(name, seed).sum()
    rare = recall[np.argsort(share, kind="stable")[:RARE]]
    values = ((share * recall).sum(), recall.mean(), recall.min(), rare.mean())
    return {metric: 100 * float(value) for metric, value in zip(METRICS, values, strict=True)}


def table(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return each setting's accuracies, and its gain over the first setting, seed by seed."""
    first = next(iter(rows.values()))
    return {
        name: {metric: mean([row[metric] for row in own]) for metric in METRICS}
        | {
            f"{metric}_gain": mean([row[metric] - before[metric] for row, before in zip(own, first, strict=False)])
            for metric in METRICS
        }
        for name, own in rows.items()
        if own
    }


def content(rows: dict[str, dict[str, list[dict[str, float]]]], seeds: int, epochs: int) -> dict[str, Any]:
    """Return what the result file holds."""
    return {
        "command": result_file.command("imbalance.py"),
        "environment": result_file.environment("cpu"),
        "seeds": seeds,
        "epochs": epochs,
        "images": {name: sorted(counts(name, 0).tolist(), reverse=True) for name in SETTINGS},
        "test_images": len(fashion.load()["test_labels"]),
        "table": {name: table(own) for name, own in rows.items()},
        "runs": rows,
    }


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--epochs", default=10, show_default=True)
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "imbalance.json")
def main(seeds: int, epochs: int, artifacts: Path, out: Path) -> None:
    """Train every setting with every seed, and compare each with plain training of the same seed."""
    torch.set_num_threads(1)
    store = Store(artifacts, "cpu", Console(quiet=True))
    rows: dict[str, dict[str, list[dict[str, float]]]] = {
        data: {name: [] for name in settings} for data, settings in SETTINGS.items()
    }
    for name, settings in SETTINGS.items():
        for seed in range(seeds):
            data = training_data(name, seed, artifacts / "imbalance" / f"{name}-{seed}")
            for setting, changes in settings.items():
                trained = train(data, changes, seed, epochs, store, f"{name} {setting} {seed}")
                rows[name][setting].append(judge(trained, seed, name))
                print(f"{name}, {setting}, seed {seed}: {rows[name][setting][-1]}", flush=True)
                result_file.write(out, content(rows, seeds, epochs))
    for name, lines in content(rows, seeds, epochs)["table"].items():
        for setting, row in lines.items():
            gains = (row["balanced_accuracy_gain"], row["worst_recall_gain"])
            shown = ", ".join(f"{gain['mean']:+.1f} {gain['ci95']}" for gain in gains)
            print(f"{name:8} {setting:14} top-1 {row['top1']['mean']:.1f} %  balanced and worst: {shown}")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
