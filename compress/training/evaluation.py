"""Images on the device, and what a network says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.records.training import Distortion, Normalization
from compress.data.augment import views
from compress.data.streaming.batches import ShardMixing, Stream
from compress.models.input_adapter import InputAdapter, inner_network
from compress.models.onnx_network import OnnxNetwork
from compress.training import schedule
from compress.training.precision import exact

EVALUATED = 250  # pictures at once where nothing is trained, at least


@dataclass(frozen=True)
class ImageSet:
    """Training pictures on the device: uint8 (N, S, S, 3) prepared for views, or a stream; labels (N,) int64, and the two index sets.

    `held`: of a stream the validation pictures uint8 (V, S, S, 3) as in evaluation, on the CPU.
    """

    images: Tensor | Stream
    labels: Tensor
    train_index: Tensor
    validation_index: Tensor
    augment: str
    image_size: int
    held: Tensor | None = None
    distortion: Distortion | None = None

    @property
    def shards(self) -> ShardMixing | None:
        """Where an epoch goes through a stream's shards some at a time."""
        return self.images.shards if isinstance(self.images, Stream) else None

    def validation(self) -> Tensor:
        """The validation pictures, uint8 (V, S, S, 3)."""
        return self.images[self.validation_index] if self.held is None else self.held


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
    """Float32 logits (N, K) of stored uint8 pictures (N, S, S, 3) through the evaluation view; the model's mode is kept.

    `device`: the model's, where the pictures are on another. `batch_size`: by where the network computes and its pictures' side where none is given.
    """
    training, place = model.training, device or images.device
    size = batch_size or max(EVALUATED, _rows(model, place, image_size))
    model.eval()
    out, mean, std = [], *(torch.tensor(values, device=place) for values in (normalization.mean, normalization.std))
    with exact():
        for begin in range(0, len(images), size):
            pixels = views.evaluation_view(images[begin : begin + size], image_size).to(place)
            out.append(model(views.to_float(pixels, mean, std)).float())
    model.train(training)
    return torch.cat(out)


def _rows(model: nn.Module, place: torch.device, image_size: int) -> int:
    """Images at once: a network may enlarge them to a side of its own, or compute on the CPU."""
    side = max(image_size, (model.size if isinstance(model, InputAdapter) else None) or 0)
    return schedule.rows_at_once("cpu" if isinstance(inner_network(model), OnnxNetwork) else place, side)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 as a fraction."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)
