"""From records to live things: a network with its weights, pictures on the device, a teacher that remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress import models
from compress.core.records.base import File, sha256_of
from compress.core.records.training import Distilled, Network, Trained, TrainingData
from compress.data import training_arrays, validation_images
from compress.data.augment import views
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
from compress.training.precision import autocast, resolve_precision
from compress.training.step import TeacherSource
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache

LOGITS_VERSION = 2  # raised when the same teacher and view would give other logits


def load_network(record: Network, weights: File | None, device: str) -> nn.Module:
    """The network that a record names, in the form that it names, on the device in channels_last; fresh weights where none are given."""
    if record.black_box:
        assert weights is not None  # the file is the network
        return _contracted(record, OnnxNetwork(weights.path, torch.get_num_threads())).to(
            device
        )  # the order of its answers lies there
    model = to_deployed(
        models.build(record.model, classes=record.outputs or record.classes, width=record.width),
        record.model,
        record.deployed,
        record.taps,
    )
    if weights is not None:
        checkpoints.load_state(model, checkpoints.read_state(weights.path), source=str(weights.path))
    return _contracted(record, model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_for_training(record: Network, key: str, weights: File | None, *, new_head: bool, device: str) -> nn.Module:
    """The network that training starts from, on the device: fresh ("none"), a checkpoint file, or torchvision weights by name.

    `new_head`: a classifier for another number of classes is left fresh (the network is trained further).
    """
    if weights is None and key not in ("none", "file"):
        model = models.pretrained(record.model, key, record.outputs or record.classes)
    else:
        model = models.build(record.model, classes=record.outputs or record.classes, width=record.width)
    if weights is not None:
        checkpoints.load_state(model, checkpoints.read_state(weights.path), source=str(weights.path), new_head=new_head)
    return _contracted(record, model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _contracted(record: Network, model: nn.Module) -> nn.Module:
    """The network behind its own input contract, where it has one."""
    if not record.contracted:
        return model
    return InputAdapter(model, size=record.own_size, bgr=record.channels == "bgr", order=record.order)


def outline_of(record: Network, model: nn.Module | None = None) -> Outline:
    """What a method may know of a network; weights are read off `model` where it is given."""
    if record.black_box:
        return Outline(record.model, record.classes, {})
    own = None if model is None else inner_network(model)
    found = outline(
        record.model,
        classes=record.outputs or record.classes,
        width=record.width,
        image_size=record.side,
        model=own,
        stages=record.taps,
    )
    if not record.contracted:
        return found
    taps = {name: " + ".join(f"network.{part}" for part in tap.split(" + ")) for name, tap in found.taps.items()}
    if record.order is None:
        return replace(found, taps=taps)
    # its classifier answers in another order: methods that work on the classifier itself do not get it
    shapes = {name: shape for name, shape in found.shapes.items() if name != "head"}
    return replace(
        found,
        classes=record.classes,
        shapes=shapes,
        taps={name: taps[name] for name in taps if name != "head"},
        classifier=None,
    )


def load_distilled(
    config: Distill, trained: Distilled, teacher: Trained | None, pictures: ImageSet
) -> tuple[nn.Module, Method]:
    """Student and method as distillation left them, on the CPU; the student in channels_last."""
    state, record = load_file(trained.combined.path), trained.network
    model = models.build(record.model, classes=record.classes, width=record.width).to(memory_format=torch.channels_last)
    checkpoints.load_state(
        model,
        {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")},
        source="distill",
    )
    method = build_method(
        config,
        student=outline_of(record, model),
        teacher=outline_of(teacher.network, load_network(teacher.network, teacher.weights, "cpu")) if teacher else None,
        train_labels=pictures.labels,
        train_index=pictures.train_index,
    )
    checkpoints.load_state(
        method,
        {name.removeprefix("method."): value for name, value in state.items() if name.startswith("method.")},
        source="distill",
    )
    return model, method


def load_images(data: TrainingData, device: str) -> ImageSet:
    """Training and validation pictures, as uint8 on the device; of a set that stays in its files, as a stream to it."""
    images, labels, train_index, validation_index = training_arrays(data)
    held, pixels = None, None
    if isinstance(images, Listing):
        workers = data.streamed.workers if data.streamed is not None else None
        held = torch.from_numpy(validation_images(data))
        pixels = Stream(
            images, augment=data.augment, workers=workers, device=device, shards_at_once=data.shards_at_once
        )
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)).to(device) if pixels is None else pixels,
        labels=torch.from_numpy(np.asarray(labels)).to(device),
        train_index=torch.from_numpy(train_index).to(device),
        validation_index=torch.from_numpy(validation_index).to(device),
        augment=data.augment,
        image_size=data.image_size,
        held=held,
        distortion=data.distortion,
    )


def teacher_cache(
    teacher: Trained, data: TrainingData, count: int, *, device: str, cache: Path | None, warn: Callable[[str], None]
) -> TeacherCache:
    """The teacher as a function of (picture, view), which remembers its logits under `cache`/logits.

    `count`: how many pictures the indices may name. Of streamed pictures nothing is remembered: a view rarely comes again.
    """
    record = teacher.network
    model = load_network(record, teacher.weights, device).eval().requires_grad_(False)
    precision, prepare = _teacher_precision(record, device), _preparing(record, device)

    @torch.no_grad()
    def forward(raw: Tensor) -> Tensor:
        with autocast(device, precision):
            return model(prepare(raw)).float()

    scheme = [
        LOGITS_VERSION,
        record,
        teacher.weights,
        data.images,
        data.image_size,
        data.augment,
        precision,
        device.split(":")[0],
    ]
    scheme += [] if data.distortion is None else [data.distortion]
    folder = cache / "logits" / sha256_of(scheme) if cache is not None else None
    count_views = views.view_count(data.augment, data.image_size, distorted=data.distortion is not None)
    return TeacherCache(
        forward,
        pictures=count,
        views=count_views,
        classes=record.classes,
        device=device,
        folder=folder,
        warn=warn,
        remember=data.streamed is None,
        image_size=max(record.side, data.image_size),
        recordable=not (
            record.black_box and data.streamed is not None
        ),  # onnxruntime answers on the CPU, of streamed pictures within the step
        runs_on="cpu" if record.black_box else None,
    )


def _teacher_precision(record: Network, device: str) -> str:
    if record.black_box:
        return "float32"
    return resolve_precision("auto", device)


def _preparing(record: Network, device: str) -> Callable[[Tensor], Tensor]:
    """Raw pixels uint8 (N, H, W, 3) -> what the network takes; its constants lie on the device."""
    mean, std = (
        torch.tensor(values, device=device) for values in (record.normalization.mean, record.normalization.std)
    )
    return lambda raw: views.to_float(raw, mean, std)


def teacher_source(
    teacher: Trained,
    method: Method,
    taps: Mapping[str, str],
    data: TrainingData,
    count: int,
    *,
    device: str,
    cache: Path | None,
    warn: Callable[[str], None],
) -> TeacherSource:
    """What the method is taught by: remembered logits where they are all that it reads, else the teacher network with taps.

    `taps`: the teacher's, by name; `count`: how many pictures the indices may name.
    """
    batch_stats = method.teacher_mode == "batch_stats"
    if not method.teacher_taps:
        return teacher_cache(teacher, data, count, device=device, cache=cache, warn=warn)
    apart = (
        teacher_cache(teacher, data, count, device=device, cache=cache, warn=warn)
        if batch_stats and method.reads_logits
        else None
    )
    record = teacher.network
    return TeacherNetwork(
        load_network(record, teacher.weights, device),
        {name: taps[name] for name in method.teacher_taps},
        _preparing(record, device),
        partial(autocast, device, _teacher_precision(record, device)),
        batch_stats=batch_stats,
        logits=apart or ("own" if method.reads_logits else None),
    )
