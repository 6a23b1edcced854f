"""Distillation: train the student together with its method's own modules; also the baseline without a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import nn

from compress.core.records.base import File
from compress.core.records.training import Distilled, Network, Trained, TrainingData
from compress.core.store import Context, Stage
from compress.recipe.schema import Distill, ResolvedTrain
from compress.training import checkpoint
from compress.training.distill import train_student


def run_distill(
    config: Distill,
    *,
    context: Context,
    student: Network,
    start: str,
    weights: File | None,
    teacher: Trained | None,
    data: TrainingData,
    train: ResolvedTrain,
) -> Distilled:
    """Train the student by the configured method.

    Args:
        config: The recipe's `distill` section, of the chosen method alone.
        context: Of the stage.
        student: The student's network.
        start: The student's `weights` key: "none", "file" or the name of published weights.
        weights: The checkpoint, where `start` is "file".
        teacher: None for the baseline.
        data: The training data.
        train: The settings of the training.
    """
    trained = train_student(
        config, context=context, student=student, start=start, weights=weights, teacher=teacher, data=data, train=train
    )
    model, method, fitted = trained.model, trained.method, trained.fitted
    path = context.work / "trained.safetensors"
    save_combined(model, method, path)
    return Distilled(
        network=replace(student, weights_key=None),  # the combined file holds the student's own weights
        combined=File.of(path),
        method=config.name,
        epochs=len(fitted.history),
        shipped_epoch=fitted.shipped_epoch,
        seconds=round(fitted.seconds, 2),
        images_per_second=round(fitted.images_per_second, 1),
        precision=fitted.precision,
        threads=fitted.threads,
        kernels=fitted.kernels,
        history=File.of(context.work / checkpoint.HISTORY),
        teacher_rows=trained.teacher_rows,
        gpu=fitted.gpu,
        checks=trained.checks,
    )


def save_combined(model: nn.Module, method: nn.Module, path: Path) -> None:
    """Write student and method into one safetensors file with keys `student.*` and `method.*`."""
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    state |= {f"method.{name}": value for name, value in method.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.items())}
    # save_file would not raise OSError on a full disk, which the store explains.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


DISTILL = Stage("distill", 6, run_distill, Distilled, together=True)
