"""One student trained by one method: the distillation itself, and the short ones that teachers are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import Network, Trained, TrainingData
from compress.core.store import Context
from compress.core.text import plural
from compress.data import stratified
from compress.data.augment import views
from compress.methods import Method, build_method
from compress.models.count import macs, params
from compress.models.size_warning import size_increase_warning
from compress.recipe.schema import Distill, ResolvedTrain
from compress.training import build
from compress.training.evaluation import ImageSet
from compress.training.loop import FitResult, fit
from compress.training.precision import LARGEST_LOGIT
from compress.training.step import TeacherSource
from compress.training.teacher import logit_cache
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache

SHARE_STREAM = 3  # other numbers than those of the validation split, calibration and limit_test


@dataclass(frozen=True)
class TrainedStudent:
    """After training: the network, the method with its own modules, and how it went.

    `pictures`: how many validation pictures judged it; `teacher_rows`: see `Distilled`.
    """

    model: nn.Module
    method: Method
    fitted: FitResult
    pictures: int
    teacher_rows: int | None


def train_student(
    config: Distill,
    *,
    context: Context,
    student: Network,
    start: str,
    weights: File | None,
    teacher: Trained | None,
    data: TrainingData,
    train: ResolvedTrain,
    share: float = 1.0,
    title: str = "",
) -> TrainedStudent:
    """Train the student by the configured method.

    `start` is the student's `weights` key ("none", "file" or a torchvision weights name), `weights` the file where it is one. `share`: of
    the training pictures, by class. `title` names the training where it is not the distillation itself.
    """
    torch.manual_seed(train.seed)
    pictures = _share(build.load_images(data, context.device), share, data.split_seed)
    model = build.build_for_training(student, start, weights, new_head=True, device=context.device)
    outline = build.outline_of(student, model)
    taught_by = (
        build.outline_of(teacher.network, build.load_network(teacher.network, teacher.weights, "cpu"))
        if teacher
        else None
    )
    method = build_method(
        config,
        student=outline,
        teacher=taught_by,
        train_labels=pictures.labels,
        train_index=pictures.train_index,
        label_smoothing=train.label_smoothing,
        seed=train.seed,
    ).to(context.device)
    _warn_of_size(model, method, student, context)
    if teacher is not None and method.reads_logits:
        require_logits(teacher)
    teaching = None
    if method.needs_teacher and teacher is not None and taught_by is not None:
        teaching = build.teacher_source(
            teacher,
            method,
            taught_by.taps,
            data,
            len(pictures.images),
            device=context.device,
            cache=context.cache,
            warn=context.console.warn,
        )
        log_teacher_cost(teaching, teacher, config.name, data, len(pictures.train_index), train, context)
    steps = -(-len(pictures.train_index) // train.batch_size)
    with context.console.training(
        title or f"student {student.model} by {config.name}", train.epochs, steps
    ) as progress:
        fitted = fit(
            model,
            method,
            pictures,
            train=train,
            normalization=student.normalization,
            taps=outline.taps,
            teacher=teaching,
            device=context.device,
            folder=context.work,
            progress=progress,
            group=context.group,
        )
    return TrainedStudent(model, method, fitted, len(pictures.validation_index), _rows_run(teaching, context))


def _rows_run(teaching: object, context: Context) -> int | None:
    """Over all processes, which share each batch."""
    if not isinstance(teaching, TeacherCache):
        return None
    return round(context.group.all_reduce_sum({"rows": teaching.rows_run})["rows"])


def require_logits(teacher: Trained) -> None:
    """Raises StageError where the teacher's logits are larger than what is remembered of them can say (float16), or not numbers."""
    if teacher.largest_logit is not None and not teacher.largest_logit <= LARGEST_LOGIT:
        raise StageError(
            f"teacher {teacher.network.model}: its logits reach {teacher.largest_logit:.3g} on the validation pictures, and float16, in which they are "
            f"remembered, ends at {LARGEST_LOGIT:,.0f}: its training went wrong, or its input is not what `normalize` says; choose another"
        )


def _share(pictures: ImageSet, share: float, seed: int) -> ImageSet:
    """The same pictures, so many of them trained on, every class in proportion."""
    if share == 1.0:
        return pictures
    index = pictures.train_index
    chosen = stratified(pictures.labels[index].cpu().numpy(), max(1, round(len(index) * share)), seed, SHARE_STREAM)
    return replace(pictures, train_index=index[torch.from_numpy(chosen).to(index.device)])


def _warn_of_size(model: nn.Module, method: Method, student: Network, context: Context) -> None:
    """Before anything is trained: a method may ship more than the student that the recipe names."""
    plain, shipped = ((params(one), macs(one, student.image_size)) for one in (model, method.deployed(model)))
    if sentence := size_increase_warning(student.model, plain, shipped):
        context.console.warn(sentence)


def log_teacher_cost(
    teaching: TeacherSource,
    teacher: Trained,
    method: str,
    data: TrainingData,
    pictures: int,
    train: ResolvedTrain,
    context: Context,
) -> None:
    """How often the teacher will run, and what remembering its logits can cost, before it is spent. `pictures`: so many are trained on."""
    said, cache = context.console.line, teaching if isinstance(teaching, TeacherCache) else None
    if data.streamed is not None:
        said(
            f"teacher {teacher.network.model} runs on every batch: pictures are decoded in training, so a view rarely comes again"
        )
        return
    if isinstance(teaching, TeacherNetwork):
        said(f"teacher {teacher.network.model} runs on every batch: {method} reads its feature maps")
        cache = teaching.logits if isinstance(teaching.logits, TeacherCache) else None
    if cache is not None:
        said(_cache_line(pictures, data, train, cache))
        known = cache.ensure_loaded().used
        if known:
            said(f"teacher logits: {known:,} rows known from earlier runs")


def _cache_line(pictures: int, data: TrainingData, train: ResolvedTrain, cache: TeacherCache) -> str:
    if not cache.enabled:
        return (
            f"teacher logits: the table of {cache.pictures:,} pictures of {cache.views:,} views each would take {cache.table / 2**20:,.0f} MiB, more than the "
            f"{logit_cache.MEMORY_LIMIT / 2**20:,.0f} MiB that they may; nothing is remembered, the teacher runs at every step"
        )
    every = views.view_count(data.augment, data.image_size, distorted=data.distortion is not None)
    count = min(every, train.views or every, train.epochs)
    rows = min(pictures * count, cache.capacity)
    size = (rows * cache.classes * 2 + cache.table) / 2**20
    full = "" if rows == pictures * count else ", which is all that they may take; for the rest the teacher runs"
    return f"teacher logits: at most {rows:,} rows ({size:.1f} MiB, with their table) for {plural(count, 'view')} a picture{full}"
