"""What gives a method the signals of its teacher: cached logits, or the network where feature maps are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compress.core.records.base import sha256_of
from compress.core.records.training import Network, Trained, TrainingData
from compress.data.augment import views
from compress.methods import Method
from compress.models.onnx_network import check_finite
from compress.training.build import load_network
from compress.training.precision import autocast, resolve_precision
from compress.training.step import TeacherSource
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache

# Raised when the same teacher and view give other logits.
LOGITS_VERSION = 2


def teacher_cache(
    teacher: Trained, data: TrainingData, count: int, *, device: str, cache: Path | None, warn: Callable[[str], None]
) -> TeacherCache:
    """Build the cache of a teacher's logits per (image, view).

    Args:
        teacher: network and weights.
        data: names images and views. Nothing is cached for a streamed set, because its views rarely come again.
        count: how many images the indices may name.
        device: where training runs.
        cache: the folder that gets `logits/`; None: no disk copy.
        warn: see `TeacherCache`.
    """
    record = teacher.network
    model = load_network(record, teacher.weights, device).eval().requires_grad_(False)
    precision, prepare = _teacher_precision(record, device), _normalizer(record, device)

    @torch.no_grad()
    def compute_logits(raw: Tensor) -> Tensor:
        with autocast(device, precision):
            logits: Tensor = model(prepare(raw)).float()
        if record.black_box:  # other networks' losses are watched on the device
            check_finite(record.model, logits)
        return logits

    # What the logits depend on: the name of the disk copy's folder.
    identity = [
        LOGITS_VERSION,
        record,
        teacher.weights,
        data.images,
        data.image_size,
        data.augment,
        precision,
        device.split(":")[0],
    ]
    identity += [] if data.distortion is None else [data.distortion]
    identity += [] if data.crop_scale is None else [{"crop_scale": data.crop_scale}]
    return TeacherCache(
        compute_logits,
        images=count,
        views=views.view_count(data.augment, data.image_size, distorted=data.distortion is not None),
        classes=record.classes,
        device=device,
        folder=cache / "logits" / sha256_of(identity) if cache is not None else None,
        warn=warn,
        remember=data.streamed is None,
        image_size=max(record.side, data.image_size),
        # onnxruntime computes on the CPU, and the logits of streamed images within the step.
        recordable=not (record.black_box and data.streamed is not None),
        runs_on="cpu" if record.black_box else None,
    )


def _teacher_precision(record: Network, device: str) -> str:
    return "float32" if record.black_box else resolve_precision("auto", device)


def _normalizer(record: Network, device: str) -> Callable[[Tensor], Tensor]:
    """Return what maps pixels uint8 (N, H, W, 3) to the network's input; its constants lie on the device."""
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
    """Build what gives the method the teacher's signals.

    A cache of logits where the method reads nothing else, and the network itself where it reads feature maps.

    Args:
        teacher: network and weights.
        method: names the teacher's maps that it reads.
        taps: the teacher's, by name.
        data: see `teacher_cache`.
        count: how many images the indices may name.
        device: where training runs.
        cache: the folder that gets `logits/`; None: no disk copy.
        warn: see `TeacherCache`.
    """
    batch_stats = method.teacher_mode == "batch_stats"
    if not method.teacher_taps:
        return teacher_cache(teacher, data, count, device=device, cache=cache, warn=warn)
    # With the batch's statistics the network gives other logits than those that a method should learn from.
    logits = None
    if batch_stats and method.reads_logits:
        logits = teacher_cache(teacher, data, count, device=device, cache=cache, warn=warn)
    record = teacher.network
    return TeacherNetwork(
        load_network(record, teacher.weights, device),
        {name: taps[name] for name in method.teacher_taps},
        _normalizer(record, device),
        partial(autocast, device, _teacher_precision(record, device)),
        batch_stats=batch_stats,
        logits=logits or ("own" if method.reads_logits else None),
    )
