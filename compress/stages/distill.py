"""Distillation: the student and its method's own modules trained together; also the baseline without a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from compress import checkpoint, loading
from compress.data import views
from compress.methods import Method, build_method
from compress.models import catalog
from compress.models.count import macs, params
from compress.models.growth import larger
from compress.results import Distilled, File, Network, Trained, TrainingData
from compress.schema import Distill, Train
from compress.store import Context, Stage
from compress.teacher_cache import TeacherCache
from compress.train import fit


def _run(
    config: Distill, *, context: Context, student: Network, start: str, weights: File | None, teacher: Trained | None, data: TrainingData, train: Train
) -> Distilled:
    """Train the student by the configured method.

    `start` is the student's `weights` key ("none", "file" or a torchvision weights name), `weights` the file where it is one.
    """
    torch.manual_seed(train.seed or 0)
    pictures = loading.pictures(data, context.device)
    model = loading.start(student, start, weights, new_head=True, device=context.device)
    outline = loading.outline(student, model)
    taught_by = loading.outline(teacher.network, loading.network(teacher.network, teacher.weights, "cpu")) if teacher else None
    method = build_method(
        config, student=outline, teacher=taught_by, train_labels=pictures.labels, train_index=pictures.train_index,
        label_smoothing=train.label_smoothing, seed=train.seed or 0,
    ).to(context.device)  # fmt: skip
    _warn_of_size(model, method, student, context)
    teaching = None
    if method.needs_teacher and teacher is not None and taught_by is not None:
        teaching = loading.teaching(
            teacher, method, taught_by.taps, data, len(pictures.images), device=context.device, cache=context.cache, warn=context.console.warn
        )
        if isinstance(teaching, TeacherCache):
            context.console.line(_cache_line(len(pictures.train_index), data, train, student.classes, teaching.used))
        else:
            context.console.line(f"teacher {teacher.network.model} runs on every batch: {config.name} reads its feature maps")
    steps = -(-len(pictures.train_index) // train.batch_size)
    with context.console.training(f"student {student.model} by {config.name}", train.epochs or 1, steps) as progress:
        fitted = fit(
            model, method, pictures, train=train, normalization=student.normalization, taps=outline.taps,
            depthwise=catalog.info(student.model).depthwise, teacher=teaching, device=context.device, folder=context.work, progress=progress,
        )  # fmt: skip
    path = context.work / "trained.safetensors"
    save_combined(model, method, path)
    checkpoint.discard(context.work)
    return Distilled(
        network=student,
        combined=File.of(path),
        method=config.name,
        epochs=len(fitted.history),
        shipped_epoch=fitted.shipped_epoch,
        seconds=round(fitted.seconds, 2),
        images_per_second=round(fitted.images_per_second, 1),
        precision=fitted.precision,
        threads=fitted.threads,
        history=File.of(context.work / checkpoint.HISTORY),
    )


def _warn_of_size(model: nn.Module, method: Method, student: Network, context: Context) -> None:
    """Before anything is trained: a method may ship more than the student that the recipe names."""
    plain, shipped = ((params(one), macs(one, student.image_size)) for one in (model, method.deployed(model)))
    if sentence := larger(student.model, plain, shipped):
        context.console.warn(sentence)


def _cache_line(pictures: int, data: TrainingData, train: Train, classes: int, known: int) -> str:
    """What remembering the teacher's logits can cost, said before it is spent."""
    every = views.view_count(data.augment, data.image_size)
    count = min(every, train.views or every, train.epochs or 1)
    size = pictures * count * classes * 2 / 2**20
    return f"teacher logits: at most {pictures * count:,} rows ({size:.1f} MiB) for {count} views a picture; {known:,} known from earlier runs"


def save_combined(model: nn.Module, method: nn.Module, path: Path) -> None:
    """Student and method in one safetensors file, keys `student.*` and `method.*`."""
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    state |= {f"method.{name}": value for name, value in method.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.items())}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))  # not save_file: a full disk is then an OSError, which the store explains


run = Stage("distill", 1, _run, Distilled)
