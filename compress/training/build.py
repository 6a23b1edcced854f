"""From records to live objects: a network with its weights, images on the device, the teacher's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress import models
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import Distilled, Network, Trained, TrainingData
from compress.data import training_arrays, validation_images
from compress.data.streaming.batches import Stream
from compress.data.streaming.listing import Listing
from compress.methods import Method, Outline, build_method
from compress.models import checkpoints
from compress.models.deployed import to_deployed
from compress.models.input_adapter import InputAdapter, inner_network
from compress.models.onnx_network import OnnxNetwork
from compress.models.outline import outline
from compress.recipe.schema import Distill
from compress.training.evaluation import ImageSet


def load_network(record: Network, weights: File | None, device: str) -> nn.Module:
    """Build the network that a record names, in the form that it names, on the device in channels_last.

    Args:
        record: the network.
        weights: None: fresh weights.
        device: "cpu", "cuda", "cuda:N" or "meta".
    """
    if record.black_box:
        assert weights is not None  # the file is the network
        adapted = _adapted(record, OnnxNetwork(weights.path, torch.get_num_threads()))
        # The adapter's order of answers moves; onnxruntime stays on the CPU.
        return adapted.to(device)
    model = to_deployed(
        _built(record),
        record.model,
        record.deployed,
        record.taps,
    )
    if weights is not None:
        checkpoints.load_state(model, checkpoints.read_state(weights.path), source=str(weights.path))
    return _to_device(_adapted(record, model), device)


def build_for_training(
    record: Network,
    key: str,
    weights: File | None,
    *,
    new_head: bool,
    device: str,
    say: Callable[[str], object] = str,
) -> tuple[nn.Module, str | None]:
    """Build the network that training starts from, on the device in channels_last.

    Args:
        record: the network.
        key: "none" (fresh), "file", or torchvision's or timm's name of weights.
        weights: the checkpoint file, where the key is "file".
        new_head: leave the classifier fresh where the checkpoint's has another number of classes.
        device: "cpu", "cuda" or "cuda:N".
        say: gets one sentence on what was taken from a file that holds more than the weights.

    Returns:
        The network, and the path of its last layer where pretrained weights left that one fresh; None: they did not,
        or there are two last layers.

    Raises:
        StageError: the last layer would be random in a network that is not trained.
    """
    fresh: tuple[str, ...] = ()
    if weights is None and key not in ("none", "file"):
        model, fresh = models.pretrained(record.model, key, record.outputs or record.classes, record.side)
        if fresh and not new_head:
            raise StageError(
                f"weights: {key} of {record.model} is for another number of classes, so its last layer would answer at "
                "random; give the candidate `train`"
            )
    else:
        model = _built(record)
    if weights is not None:
        note, fresh = checkpoints.load_file(model, weights.path, key=record.weights_key, new_head=new_head)
        if note:
            say(note)
    heads = {name.rpartition(".")[0] for name in fresh}
    return _to_device(_adapted(record, model), device), heads.pop() if len(heads) == 1 else None


def _built(record: Network) -> nn.Module:
    return models.build(
        record.model, classes=record.outputs or record.classes, width=record.width, image_size=record.side
    )


def _to_device(model: nn.Module, device: str) -> nn.Module:
    moved: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _adapted(record: Network, model: nn.Module) -> nn.Module:
    """Return the network behind an adapter, where its input or the order of its answers differs from the recipe's."""
    if not record.needs_adapter:
        return model
    return InputAdapter(model, size=record.own_size, bgr=record.channels == "bgr", order=record.order)


def outline_of(record: Network, model: nn.Module | None = None) -> Outline:
    """Return what a method may know of a network; weights are read off `model` where it is given."""
    if record.black_box:
        return Outline(record.model, record.classes, {})
    found = outline(
        record.model,
        classes=record.outputs or record.classes,
        width=record.width,
        image_size=record.side,
        model=None if model is None else inner_network(model),
        stages=record.taps,
    )
    if not record.needs_adapter:
        return found
    taps = {name: " + ".join(f"network.{part}" for part in tap.split(" + ")) for name, tap in found.taps.items()}
    if record.order is None:
        return replace(found, taps=taps)
    # The classifier itself answers in another order, so methods that work on it do not get it.
    return replace(
        found,
        classes=record.classes,
        shapes={name: shape for name, shape in found.shapes.items() if name != "head"},
        taps={name: tap for name, tap in taps.items() if name != "head"},
        classifier=None,
    )


def load_distilled(
    config: Distill, trained: Distilled, teacher: Trained | None, image_set: ImageSet
) -> tuple[nn.Module, Method]:
    """Load student and method as distillation left them, on the CPU, the student in channels_last.

    Args:
        config: the recipe's `distill` section.
        trained: the stage's result.
        teacher: that taught it, or None.
        image_set: that it was trained on.
    """
    state, record = load_file(trained.combined.path), trained.network
    model = _built(record).to(memory_format=torch.channels_last)
    checkpoints.load_state(model, _with_prefix(state, "student."), source="distill")
    method = build_method(
        config,
        student=outline_of(record, model),
        teacher=outline_of(teacher.network, load_network(teacher.network, teacher.weights, "cpu")) if teacher else None,
        train_labels=image_set.labels,
        train_index=image_set.train_index,
    )
    checkpoints.load_state(method, _with_prefix(state, "method."), source="distill")
    return model, method


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_images(data: TrainingData, device: str) -> ImageSet:
    """Load training and validation images as uint8 on the device; those of a streamed set stay in their files."""
    images, labels, train_index, validation_index = training_arrays(data)
    streamed_validation, stream = None, None
    if isinstance(images, Listing):
        workers = data.streamed.workers if data.streamed is not None else None
        streamed_validation = torch.from_numpy(validation_images(data))
        stream = Stream(
            images,
            augment=data.augment,
            workers=workers,
            device=device,
            shards_at_once=data.shards_at_once,
            crop_scale=data.crop_scale,
        )
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)).to(device) if stream is None else stream,
        labels=torch.from_numpy(np.asarray(labels)).to(device),
        train_index=torch.from_numpy(train_index).to(device),
        validation_index=torch.from_numpy(validation_index).to(device),
        augment=data.augment,
        image_size=data.image_size,
        streamed_validation=streamed_validation,
        distortion=data.distortion,
        crop_scale=data.crop_scale,
    )
