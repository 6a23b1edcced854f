"""Short trainings of the student, by which teachers (`select: proxy`) and methods (`method: auto`) are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.core.plural import plural
from compress.core.records.training import Proxied, Trained, TrainingData
from compress.data import split_of
from compress.recipe.defaults import student_train
from compress.recipe.schema import Distill, ResolvedSchedule, ResolvedTrain
from compress.stages.proxy import PROXY
from compress.verdict import method_choice
from compress.verdict.method_choice import MethodChoice

if TYPE_CHECKING:
    from compress.pipeline.workflow import Workflow

# Fewer validation images than FEW show too little. Then every image is judged, in FOLDS parts, each by trainings on the
# other parts.
FEW, FOLDS = 500, 5
SEEDS = 3


def of_teachers(work: Workflow, candidates: list[Trained], labels: list[str]) -> tuple[Proxied, ...]:
    """Distil the student from every candidate for a few epochs.

    Args:
        work: the workflow, with its settings and store.
        candidates: the teachers.
        labels: their names in messages.
    """
    asked = work.settings.teacher.proxy
    train = short_train(student_train(work.settings), asked.epochs)
    method = work.settings.distill.alone()
    return tuple(
        _trial(work, label, method, one, work.training, train, asked.share)
        for one, label in zip(candidates, labels, strict=True)
    )


def of_methods(work: Workflow, teacher: Trained) -> MethodChoice:
    """Try every method of `distill.auto` and choose one.

    Args:
        work: the workflow, with its settings and store.
        teacher: the chosen teacher.
    """
    asked = work.settings.distill.trials
    folds = _folds(work.training)
    seeds = asked.seeds or (SEEDS if len(folds) == 1 else 1)
    train = short_train(student_train(work.settings), asked.epochs)
    trials = plural(len(asked.methods) * seeds * len(folds), "short training")
    parts = f" and {len(folds)} parts of the images" if len(folds) > 1 else ""
    work.store.console.line(
        f"method auto: {trials} of {plural(train.epochs, 'epoch')}: "
        f"{', '.join(asked.methods)}, each with {plural(seeds, 'seed')}{parts}"
    )
    correct, seconds = list[tuple[str, NDArray[np.bool_]]](), 0.0
    for method in work.settings.distill.candidates:
        rows = []
        for seed in range(seeds):
            own = train.model_copy(update={"seed": train.seed + seed})
            label, source = f"{method.name} seed {seed + 1}", None if method.plain else teacher
            found = [_trial(work, label, method.alone(), source, data, own, asked.share) for data in folds]
            rows.append(np.concatenate([np.load(one.correct.path) for one in found]))
            seconds += sum(one.seconds for one in found)
        correct.append((method.name, np.stack(rows)))
    choice = method_choice.choose(
        correct, folds=len(folds), epochs=train.epochs, share=asked.share, seconds=round(seconds, 2)
    )
    for one in choice.trials:
        work.store.console.line(method_choice.line(one))
    work.store.console.line(f"method: {choice.reason}")
    return choice


def short_train(train: ResolvedTrain, epochs: int | None) -> ResolvedTrain:
    """Return the settings of a short training: the rate falls to zero within it, and its last epoch counts.

    Args:
        train: the settings of the whole training.
        epochs: of the short one; None: a quarter, at least 3, at most all.
    """
    count = min(train.epochs, max(3, train.epochs // 4)) if epochs is None else epochs
    schedule = ResolvedSchedule(kind="cosine", warmup_epochs=min(train.schedule.warmup_epochs, count / 4))
    return train.model_copy(update={"epochs": count, "schedule": schedule, "keep": "last", "patience": None})


def _folds(data: TrainingData) -> list[TrainingData]:
    """Return the data with the validation parts that trials are judged on, one after the other."""
    _, train_index, validation_index = split_of(data)
    if len(validation_index) >= FEW or data.streamed is not None:
        return [data]
    count = min(FOLDS, len(train_index) + len(validation_index))
    return [replace(data, fold=(number, count)) for number in range(count)]


def _trial(
    work: Workflow,
    label: str,
    method: Distill,
    teacher: Trained | None,
    data: TrainingData,
    train: ResolvedTrain,
    share: float,
) -> Proxied:
    student = next(work.students(None))
    part = "" if data.fold is None else f" part {data.fold[0] + 1}"
    proxied: Proxied = work.store.run(
        PROXY,
        method,
        label=f"{label}{part}",
        student=student.network,
        start=student.start,
        weights=student.weights,
        teacher=teacher,
        data=data,
        train=train,
        share=share,
    )
    return proxied
