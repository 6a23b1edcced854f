"""Both networks' penultimate features on the same validation pictures, laid out in the plane by t-SNE; and the logits of every head."""

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

MOST_PICTURES = 1000
MOST_CLASSES = 10
PERPLEXITY = 30.0
NEIGHBOURS = 10
STREAM = 5  # of the draw of pictures
BATCH = 250  # pictures in memory at once


@dataclass(frozen=True)
class Drawn:
    """Some validation pictures: `index` (M,) into all stored pictures, `labels` (M,) into `classes`, which are indices of the data's classes."""

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[int, ...]


def draw(pictures: ImageSet, count: int, seed: int) -> Drawn:
    """At most MOST_PICTURES validation pictures of at most MOST_CLASSES classes (spread evenly over the list), in proportion."""
    shown = tuple(
        int(value) for value in np.unique(np.linspace(0, count - 1, min(count, MOST_CLASSES)).round().astype(np.int64))
    )
    index = pictures.validation_index.cpu().numpy()
    labels = pictures.labels.cpu().numpy()[index]
    index, labels = index[np.isin(labels, shown)], labels[np.isin(labels, shown)]
    chosen = stratified(labels, MOST_PICTURES, seed, STREAM)
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


def pooled(record: Network, weights: File, pictures: ImageSet, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the classifier reads, (M, d), of the stored pictures `index`."""
    model = build.load_network(record, weights, "cpu").eval()
    return _tapped(model, {"pooled": build.outline_of(record).taps["pooled"]}, record, pictures, index)[1]


@torch.no_grad()
def _tapped(
    model: nn.Module, taps: dict[str, str], record: Network, pictures: ImageSet, index: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (M, K) and the one tapped map (M, d)."""
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
                    views.evaluation_view(pictures.images[part], record.image_size),
                    record.normalization.mean,
                    record.normalization.std,
                )
            )
            for part in torch.from_numpy(index).split(BATCH)  # pictures that stay in their files are decoded here
        ]
    return torch.cat(logits).float().numpy(), torch.cat(seen).numpy()


@dataclass(frozen=True)
class Heads:
    """Logits float32 (V, K) on all validation pictures: the teacher's, those of the student's classifier, and of its auxiliary head."""

    teacher: NDArray[np.float32]
    classifier: NDArray[np.float32]
    auxiliary: NDArray[np.float32]
    labels: NDArray[np.int64]


def heads(kept: Kept, pictures: ImageSet) -> Heads | None:
    """What DHKD's two heads answer; None where the method has no auxiliary head."""
    if "dhkd" not in kept.method.method or any(
        unavailable_reason(record) for record in (kept.teacher.network, kept.trained.network)
    ):
        return None
    model, method = build.load_distilled(kept.method, kept.trained, kept.teacher, pictures)
    auxiliary = _auxiliary(method)
    if auxiliary is None:
        return None
    record, index = kept.trained.network, pictures.validation_index.numpy()
    logits, features = _tapped(
        model.eval(), {"pooled": build.outline_of(record).taps["pooled"]}, record, pictures, index
    )
    teacher = kept.teacher.network
    taught = predict(
        build.load_network(teacher, kept.teacher.weights, "cpu"),
        pictures.validation(),
        teacher.image_size,
        teacher.normalization,
    ).numpy()
    with torch.no_grad():
        second = auxiliary.eval()(torch.from_numpy(features)).numpy()
    return Heads(taught, logits, second, pictures.labels[pictures.validation_index].numpy())


def _auxiliary(method: Method) -> nn.Module | None:
    return next(
        (part.auxiliary for part in method.modules() if isinstance(part, DHKD) and part.auxiliary is not None), None
    )


def same_class_neighbours(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of each picture's NEIGHBOURS nearest ones (Euclidean, in the features themselves) that are of its class, a mean over pictures."""
    wide = features.astype(np.float64)
    square = (wide**2).sum(axis=1)
    distance = square[:, None] + square[None, :] - 2 * wide @ wide.T
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(labels) - 1)]
    return float((labels[near] == labels[:, None]).mean())


def plane(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """t-SNE of (M, d) -> (M, 2), from principal components, with a fixed seed. Raises ImportError without scikit-learn.

    Source: van der Maaten and Hinton 2008, by scikit-learn.
    """
    from sklearn.manifold import TSNE

    spread = min(PERPLEXITY, (len(features) - 1) / 3)
    laid: NDArray[np.float64] = TSNE(perplexity=spread, init="pca", random_state=seed, n_jobs=1).fit_transform(features)
    return laid
