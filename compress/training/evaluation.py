"""Images on the device, and a network's predictions for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.core.records.training import Distortion, Normalization
from compress.data.augment import views
from compress.data.streaming.batches import ShardMixing, Stream
from compress.models.input_adapter import InputAdapter, inner_network
from compress.models.onnx_network import OnnxNetwork
from compress.training import forward_batch
from compress.training.precision import without_tf32

MIN_BATCH = 250


@dataclass(frozen=True)
class ImageSet:
    """Training and validation images with their labels, on the device.

    Attributes:
        images: uint8 (P, S, S, 3) prepared for views, or a stream that decodes them.
        labels: int64 (P,), -1 for an unlabelled image.
        train_index: int64 (M,), images to train on: labelled ones, unless `with_unlabelled` added the others.
        validation_index: int64 (V,), labelled.
        augment: the scheme that numbers the views, as `data.augment`.
        image_size: side of a view in pixels.
        streamed_validation: of a stream the validation images as in evaluation, uint8 (V, S, S, 3) on the CPU.
        distortion: applied to each view after it is cropped and flipped.
        crop_scale: see `views.crop_boxes`.
    """

    images: Tensor | Stream
    labels: Tensor
    train_index: Tensor
    validation_index: Tensor
    augment: str
    image_size: int
    streamed_validation: Tensor | None = None
    distortion: Distortion | None = None
    crop_scale: tuple[float, float] | None = None

    @property
    def shards(self) -> ShardMixing | None:
        """How an epoch mixes a stream's shards; None where it mixes all images."""
        return self.images.shards if isinstance(self.images, Stream) else None

    def with_unlabelled(self) -> ImageSet:
        """Return the same set with the unlabelled images among those to train on."""
        unlabelled = torch.nonzero(self.labels < 0).squeeze(1)
        return replace(self, train_index=torch.cat([self.train_index, unlabelled]).sort().values)

    def validation(self) -> Tensor:
        """Return the validation images, uint8 (V, S, S, 3)."""
        return self.images[self.validation_index] if self.streamed_validation is None else self.streamed_validation


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    image_size: int,
    normalization: Normalization,
    *,
    batch_size: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return the model's logits, float32 (N, K), in evaluation mode; the model's own mode is restored.

    Args:
        model: the network, on the device.
        images: stored images, uint8 (N, S, S, 3); each is seen through the evaluation view.
        image_size: side of that view in pixels.
        normalization: the model's.
        batch_size: None: chosen by device and image size.
        device: the model's, where the images are on another.
    """
    training, place = model.training, device or images.device
    size = batch_size or max(MIN_BATCH, _rows_at_once(model, place, image_size))
    model.eval()
    out, mean, std = [], *(torch.tensor(values, device=place) for values in (normalization.mean, normalization.std))
    with without_tf32():
        for begin in range(0, len(images), size):
            pixels = views.evaluation_view(images[begin : begin + size], image_size).to(place)
            out.append(model(views.to_float(pixels, mean, std)).float())
    model.train(training)
    return torch.cat(out)


def _rows_at_once(model: nn.Module, device: torch.device, image_size: int) -> int:
    """Return how many images fit into one call: a network may enlarge them, and an ONNX network runs on the CPU."""
    side = max(image_size, (model.size if isinstance(model, InputAdapter) else None) or 0)
    return forward_batch.rows_at_once("cpu" if isinstance(inner_network(model), OnnxNetwork) else device, side)


def score(metric: str | None, logits: Tensor, labels: Tensor) -> float:
    """Return a metric as a fraction; classes without images are left out of means over classes.

    Args:
        metric: "balanced_accuracy": the mean of the classes' recalls; "macro_f1": the mean of their F1; else top-1.
        logits: (N, K).
        labels: int64 (N,).
    """
    if metric in (None, "top1"):
        return accuracy(logits, labels)
    answers, classes = logits.argmax(dim=1), logits.shape[1]
    asked, named, right = (
        torch.bincount(one, minlength=classes).double() for one in (labels, answers, labels[labels == answers])
    )
    present = asked > 0
    each = right / asked if metric == "balanced_accuracy" else 2 * right / (asked + named)
    return float(each[present].mean())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy as a fraction."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)
