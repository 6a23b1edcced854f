"""Both networks' penultimate features on the same validation images, and the logits of DHKD's heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.core.records.base import File
from compress.core.records.training import Network
from compress.data import stratified
from compress.data.augment import views
from compress.methods import Method
from compress.methods.dhkd import DHKD
from compress.models.taps import Tapped
from compress.pipeline.run_folder.cache_refs import Kept
from compress.training import build
from compress.training.evaluation import ImageSet, predict

MOST_IMAGES = 1000
MOST_CLASSES = 10
PERPLEXITY = 30.0
NEIGHBOURS = 10
STREAM = 5  # random stream of the draw
BATCH = 250  # images in memory at once


@dataclass(frozen=True)
class Drawn:
    """Some validation images.

    `index` (M,) points into all stored images, `labels` (M,) into `classes`, which are indices of the data's classes.
    """

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[int, ...]


def draw(images: ImageSet, count: int, seed: int) -> Drawn:
    """Draw at most MOST_IMAGES validation images of at most MOST_CLASSES classes, in proportion.

    Args:
        images: the images of the run.
        count: how many classes the data has; those that are shown are spread evenly over the list.
        seed: of the draw.
    """
    shown = tuple(
        int(value) for value in np.unique(np.linspace(0, count - 1, min(count, MOST_CLASSES)).round().astype(np.int64))
    )
    index = images.validation_index.cpu().numpy()
    labels = images.labels.cpu().numpy()[index]
    index, labels = index[np.isin(labels, shown)], labels[np.isin(labels, shown)]
    chosen = stratified(labels, MOST_IMAGES, seed, STREAM)
    return Drawn(index[chosen], np.searchsorted(shown, labels[chosen]), shown)


def unavailable_reason(record: Network) -> str | None:
    """Why a network's features cannot be read, one sentence; None where they can."""
    if record.black_box:
        return f"The teacher {record.model} is an ONNX file: it gives logits and no features."
    if record.source is not None:
        return (
            f"{record.model} is code of its own, which `compress analyze` does not run; so its features are not read."
        )
    return None


def pooled(record: Network, weights: File, images: ImageSet, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute what the classifier reads, (M, d).

    Args:
        record: the network.
        weights: its file.
        images: the images of the run.
        index: (M,), the stored images to take.
    """
    model = build.load_network(record, weights, "cpu").eval()
    return _tapped(model, {"pooled": build.outline_of(record).taps["pooled"]}, record, images, index)[1]


@torch.no_grad()
def _tapped(
    model: nn.Module, taps: dict[str, str], record: Network, images: ImageSet, index: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits (M, K) and the one tapped map (M, d)."""
    seen: list[torch.Tensor] = []
    (name,) = taps

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        logits, maps = tapped(pixels)
        seen.append(maps[name].float().flatten(1))
        return logits

    with Tapped(model, taps) as tapped:
        logits = [
            answer(
                views.to_float(
                    views.evaluation_view(images.images[part], record.image_size),
                    record.normalization.mean,
                    record.normalization.std,
                )
            )
            for part in torch.split(torch.from_numpy(index), BATCH)  # images that stay in their files are decoded here
        ]
    return torch.cat(logits).float().numpy(), torch.cat(seen).numpy()


@dataclass(frozen=True)
class Heads:
    """Logits float32 (V, K) of the teacher and of the student's two heads, on all validation images."""

    teacher: NDArray[np.float32]
    classifier: NDArray[np.float32]
    auxiliary: NDArray[np.float32]
    labels: NDArray[np.int64]


def heads(kept: Kept, images: ImageSet) -> Heads | None:
    """Compute the logits of DHKD's two heads; None if the method has no auxiliary head."""
    if "dhkd" not in kept.method.method or any(
        unavailable_reason(record) for record in (kept.teacher.network, kept.trained.network)
    ):
        return None
    model, method = build.load_distilled(kept.method, kept.trained, kept.teacher, images)
    auxiliary = _auxiliary(method)
    if auxiliary is None:
        return None
    record, index = kept.trained.network, images.validation_index.numpy()
    logits, features = _tapped(model.eval(), {"pooled": build.outline_of(record).taps["pooled"]}, record, images, index)
    teacher = kept.teacher.network
    taught = predict(
        build.load_network(teacher, kept.teacher.weights, "cpu"),
        images.validation(),
        teacher.image_size,
        teacher.normalization,
    ).numpy()
    with torch.no_grad():
        second = auxiliary.eval()(torch.from_numpy(features)).numpy()
    return Heads(taught, logits, second, images.labels[images.validation_index].numpy())


def _auxiliary(method: Method) -> nn.Module | None:
    return next(
        (part.auxiliary for part in method.modules() if isinstance(part, DHKD) and part.auxiliary is not None), None
    )


def same_class_neighbours(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of each image's NEIGHBOURS nearest images that are of its class, a mean over images.

    Distances are Euclidean, between the features themselves.
    """
    upcast = features.astype(np.float64)
    square = (upcast**2).sum(axis=1)
    distance = square[:, None] + square[None, :] - 2 * upcast @ upcast.T
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(labels) - 1)]
    return float((labels[near] == labels[:, None]).mean())


def plane(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Lay out features in the plane by t-SNE, (M, d) -> (M, 2), from principal components and with a fixed seed.

    Raises ImportError without scikit-learn. Source: van der Maaten and Hinton 2008, by scikit-learn.
    """
    from sklearn.manifold import TSNE

    spread = min(PERPLEXITY, (len(features) - 1) / 3)
    laid: NDArray[np.float64] = TSNE(perplexity=spread, init="pca", random_state=seed, n_jobs=1).fit_transform(features)
    return laid
