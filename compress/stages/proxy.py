"""A short distillation of the student, for `teacher.select: proxy` and `distill.method: auto`."""

from __future__ import annotations

import numpy as np

from compress.core.records.base import File
from compress.core.records.training import Network, Proxied, Trained, TrainingData
from compress.core.store import Context, Stage
from compress.recipe.schema import Distill, ResolvedTrain
from compress.training import build
from compress.training.distill import train_student
from compress.training.evaluation import predict


def run_proxy(
    config: Distill,
    *,
    context: Context,
    student: Network,
    start: str,
    weights: File | None,
    teacher: Trained | None,
    data: TrainingData,
    train: ResolvedTrain,
    share: float,
) -> Proxied:
    """Distil for a few epochs and judge the student on the validation images.

    Args:
        config: The recipe's `distill` section.
        context: Of the stage.
        student: The student's network.
        start: The student's `weights` key, as in the distill stage.
        weights: The student's checkpoint, where `start` is "file".
        teacher: The candidate; None where the method needs none.
        data: The training data.
        train: The settings of the short training.
        share: Fraction of the training images that it sees.
    """
    source = f"from {teacher.network.model}" if teacher is not None and not config.plain else "without a teacher"
    title = f"proxy: {student.model} {source}"
    short = train_student(
        config,
        context=context,
        student=student,
        start=start,
        weights=weights,
        teacher=teacher,
        data=data,
        train=train,
        share=share,
        title=title,
    )
    dataset = build.load_images(data, context.device)
    shipped, shown = short.method.deployed(short.model), dataset.validation()
    logits = predict(shipped, shown, data.image_size, student.normalization, device=dataset.labels.device)
    correct = logits.argmax(dim=1) == dataset.labels[dataset.validation_index]
    np.save(context.work / "correct.npy", correct.cpu().numpy())
    return Proxied(
        top1_validation=int(correct.sum()) / len(correct),
        correct=File.of(context.work / "correct.npy"),
        images=short.validation_images,
        epochs=len(short.fitted.history),
        share=share,
        seconds=round(short.fitted.seconds, 2),
    )


PROXY = Stage("proxy", 6, run_proxy, Proxied, together=True)
