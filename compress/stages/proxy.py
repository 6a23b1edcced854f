"""A short distillation of the student from one candidate teacher, judged on validation: what `teacher.select: proxy` compares."""

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
    teacher: Trained,
    data: TrainingData,
    train: ResolvedTrain,
    share: float,
) -> Proxied:
    """Inputs as of the distill stage; `train` is the short one, `share` how much of the training pictures it sees."""
    title = f"proxy: {student.model} from {teacher.network.model}"
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
    pictures = build.load_images(data, context.device)
    shipped, shown = short.method.deployed(short.model), pictures.validation()
    logits = predict(shipped, shown, data.image_size, student.normalization, device=pictures.labels.device)
    correct = logits.argmax(dim=1) == pictures.labels[pictures.validation_index]
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
