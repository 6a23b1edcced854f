"""One student trained by one method: the distillation itself, and the short ones that compare teachers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from compress.core.errors import StageError, UsageError
from compress.core.plural import plural
from compress.core.records.base import File
from compress.core.records.training import Network, Trained, TrainingData
from compress.core.records.training_checks import TrainingChecks
from compress.core.store import Context
from compress.data import stratified
from compress.data.augment import views
from compress.methods import Method, Outline, build_method
from compress.models.count import macs, params
from compress.models.size_warning import size_increase_warning
from compress.recipe.schema import Distill, ResolvedTrain
from compress.training import build
from compress.training.checks import check_training
from compress.training.class_balance import weigh_classes
from compress.training.evaluation import ImageSet
from compress.training.linear_probe import probe_of
from compress.training.loop import FitResult, fit
from compress.training.precision import LARGEST_LOGIT
from compress.training.step import TeacherSource
from compress.training.teacher import logit_cache
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache
from compress.training.teacher.signals import teacher_source

# A random stream of its own, beside those of the validation split, calibration and limit_test.
SHARE_STREAM = 3


@dataclass(frozen=True)
class TrainedStudent:
    """A student after training.

    Attributes:
        model: the network.
        method: with its own trained modules.
        fitted: how training went.
        validation_images: how many images its accuracy was measured on.
        teacher_rows: see `Distilled`.
        checks: see `Distilled`.
    """

    model: nn.Module
    method: Method
    fitted: FitResult
    validation_images: int
    teacher_rows: int | None
    checks: TrainingChecks | None


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

    Args:
        config: the recipe's `distill` section.
        context: the stage's device, folders, console and processes.
        student: the network.
        start: its `weights` key: "none", "file" or the name of published weights.
        weights: the file, where the key is "file".
        teacher: the chosen teacher, or None where the method needs none.
        data: images and splits.
        train: the resolved settings.
        share: of the training images, in (0, 1], in proportion by class.
        title: of the progress display, where this is not the distillation itself.
    """
    torch.manual_seed(train.seed)
    labelled = build.load_images(data, context.device)
    model, head = build.build_for_training(student, start, weights, new_head=True, device=context.device)
    shared = _share_of(labelled, share, data.split_seed)
    class_weights = weigh_classes(student.model, train, shared, data, context)
    probe = probe_of(model, head, shared, student, train, context, data.classes)
    image_set = labelled if config.plain else _with_unlabelled(labelled, config, context)
    image_set = _share_of(image_set, share, data.split_seed)
    outline = build.outline_of(student, model)
    teacher_outline = _teacher_outline(teacher)
    method = build_method(
        config,
        student=outline,
        teacher=teacher_outline,
        train_labels=image_set.labels,
        train_index=image_set.train_index,
        label_smoothing=train.label_smoothing,
        seed=train.seed,
        class_weights=class_weights,
    ).to(context.device)
    _warn_about_size(model, method, student, context)
    if teacher is not None and method.reads_logits:
        check_largest_logit(teacher)
    source = None
    if teacher is not None and teacher_outline is not None and method.needs_teacher:
        source = _teacher_source(teacher, method, teacher_outline, data, image_set, context)
        log_teacher_cost(source, teacher, config.name, data, len(image_set.train_index), train, context)
    steps = -(-len(image_set.train_index) // train.batch_size)
    title = title or f"student {student.model} by {config.name}"
    with context.console.training(title, train.epochs, steps) as progress:
        fitted = fit(
            model,
            method,
            image_set,
            train=train,
            normalization=student.normalization,
            taps=outline.taps,
            teacher=source,
            device=context.device,
            folder=context.work,
            progress=progress,
            group=context.group,
            start_may_ship=probe is not None,
        )
    checks = check_training(method.deployed(model), image_set, student.normalization, train, fitted.steps, probe)
    rows = _teacher_rows(source, context)
    return TrainedStudent(model, method, fitted, len(image_set.validation_index), rows, checks)


def _teacher_source(
    teacher: Trained, method: Method, outline: Outline, data: TrainingData, image_set: ImageSet, context: Context
) -> TeacherSource:
    """Return what gives the method the teacher's signals."""
    return teacher_source(
        teacher,
        method,
        outline.taps,
        data,
        len(image_set.images),
        device=context.device,
        cache=context.cache,
        warn=context.console.warn,
    )


def _teacher_outline(teacher: Trained | None) -> Outline | None:
    if teacher is None:
        return None
    return build.outline_of(teacher.network, build.load_network(teacher.network, teacher.weights, "cpu"))


def _teacher_rows(source: TeacherSource | None, context: Context) -> int | None:
    """Return how many rows the teacher computed, over all ranks; None where no cache counts them."""
    if not isinstance(source, TeacherCache):
        return None
    return round(context.group.all_reduce_sum({"rows": source.rows_run})["rows"])


def check_largest_logit(teacher: Trained) -> None:
    """Raise StageError where the teacher's logits are not finite, or larger than float16 can hold."""
    if teacher.largest_logit is not None and not teacher.largest_logit <= LARGEST_LOGIT:
        raise StageError(
            f"teacher {teacher.network.model}: its logits reach {teacher.largest_logit:.3g} on the validation images, "
            f"and float16, in which they are cached, ends at {LARGEST_LOGIT:,.0f}: its training went wrong, or its "
            "input does not match `normalize`; choose another"
        )


def _with_unlabelled(image_set: ImageSet, config: Distill, context: Context) -> ImageSet:
    """Return the set with the unlabelled images added to those to train on, and say so."""
    more = image_set.with_unlabelled()
    labelled, unlabelled = len(image_set.train_index), len(more.train_index) - len(image_set.train_index)
    if unlabelled == 0:
        return image_set
    if context.group.size > 1:
        raise UsageError(
            "unlabelled images are trained on by one process: with several, each would average its cross-entropy "
            "over another number of labels; run without torchrun, or leave out data.labelled"
        )
    context.console.line(
        f"student learns {plural(labelled, 'image')} with labels, and {plural(unlabelled, 'image')} from the "
        f"teacher alone ({config.name})"
    )
    return more


def _share_of(image_set: ImageSet, share: float, seed: int) -> ImageSet:
    """Return the same images with a share of them to train on, in proportion by class."""
    if share == 1.0:
        return image_set
    index = image_set.train_index
    chosen = stratified(image_set.labels[index].cpu().numpy(), max(1, round(len(index) * share)), seed, SHARE_STREAM)
    return replace(image_set, train_index=index[torch.from_numpy(chosen).to(index.device)])


def _warn_about_size(model: nn.Module, method: Method, student: Network, context: Context) -> None:
    """Warn before training where the method ships a larger network than the student that the recipe names."""
    plain, shipped = ((params(one), macs(one, student.image_size)) for one in (model, method.deployed(model)))
    if sentence := size_increase_warning(student.model, plain, shipped):
        context.console.warn(sentence)


def log_teacher_cost(
    source: TeacherSource,
    teacher: Trained,
    method: str,
    data: TrainingData,
    images: int,
    train: ResolvedTrain,
    context: Context,
) -> None:
    """Print before training how often the teacher will run, and how much memory its logits can take.

    Args:
        source: what gives the method the teacher's signals.
        teacher: the chosen teacher.
        method: the method's name.
        data: the views.
        images: how many are trained on.
        train: the resolved settings.
        context: the stage's console.
    """
    line, name = context.console.line, teacher.network.model
    cache = source if isinstance(source, TeacherCache) else None
    if data.streamed is not None:
        line(f"teacher {name} runs on every batch: images are decoded during training, so a view rarely comes again")
        return
    if isinstance(source, TeacherNetwork):
        line(f"teacher {name} runs on every batch: {method} reads its feature maps")
        cache = source.cache
    if cache is not None:
        line(_cache_cost(images, data, train, cache))
        if known := cache.ensure_loaded().used:
            line(f"teacher logits: {known:,} rows cached by earlier runs")


def _cache_cost(images: int, data: TrainingData, train: ResolvedTrain, cache: TeacherCache) -> str:
    """Return a sentence on the most rows that the cache will hold, and their size."""
    limit = f"{logit_cache.MEMORY_LIMIT / 2**20:,.0f} MiB"
    if not cache.enabled:
        return (
            f"teacher logits: the table for {cache.images:,} images with {cache.views:,} views each would take "
            f"{cache.table / 2**20:,.0f} MiB, more than the limit of {limit}; nothing is cached, the teacher runs at "
            "every step"
        )
    every = views.view_count(data.augment, data.image_size, distorted=data.distortion is not None)
    count = min(every, train.views or every, train.epochs)
    rows = min(images * count, cache.capacity)
    size = (rows * cache.classes * 2 + cache.table) / 2**20
    full = "" if rows == images * count else f", the limit of {limit}; for the rest the teacher runs"
    return (
        f"teacher logits: at most {rows:,} rows ({size:.1f} MiB with their table) for "
        f"{plural(count, 'view')} per image{full}"
    )
