"""What deploys, and nothing else: the method's own modules are dropped, and the rest is proven to be the trained main head."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from compress import loading, models
from compress.data import views
from compress.errors import StageError
from compress.methods import build_method
from compress.models import checkpoints
from compress.models.count import macs, params
from compress.models.taps import Tapped
from compress.results import Distilled, File, Network, Stripped, Trained, TrainingData
from compress.schema import Distill
from compress.store import Context, Stage
from compress.train import accuracy, predict


def _run(config: Distill, *, context: Context, student: Network, teacher: Trained | None, trained: Distilled, data: TrainingData) -> Stripped:
    """Keep `method.deployed(student)`; assert it bit for bit against the trained main head; record its float32 accuracy."""
    state = load_file(trained.combined.path)
    dropped = tuple(sorted(name.removeprefix("method.") for name in state if name.startswith("method.")))
    pictures = loading.pictures(data, "cpu")
    model = models.build(student.model, classes=student.classes, width=student.width).to(memory_format=torch.channels_last)
    checkpoints.fit(model, {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}, source="distill")
    method = build_method(
        config,
        student=loading.shape(student, model),
        teacher=loading.shape(teacher.network, loading.network(teacher.network, None, "cpu")) if teacher else None,
        train_labels=pictures.labels,
    )
    checkpoints.fit(method, {name.removeprefix("method."): value for name, value in state.items() if name.startswith("method.")}, source="distill")

    path = context.work / "student.safetensors"
    checkpoints.save_state(method.deployed(model), path)
    deployed = loading.network(student, File.of(path), "cpu")
    _prove(model, deployed, method, student, pictures.images[pictures.validation_index[:64]], set(dropped))

    logits = predict(deployed, pictures.images[pictures.validation_index], data.image_size, student.normalization)
    np.save(context.work / "predictions.npy", logits.argmax(dim=1).numpy())
    result = Trained(
        network=student,
        weights=File.of(path),
        top1_validation=accuracy(logits, pictures.labels[pictures.validation_index]),
        params=params(deployed),
        macs=macs(deployed, student.image_size),
        epochs=trained.epochs,
        seconds=trained.seconds,
        images_per_second=trained.images_per_second,
        precision=trained.precision,
        threads=trained.threads,
        origin=f"distilled by {trained.method}" if trained.method != "none" else "trained without a teacher",
    )
    return Stripped(result, dropped, File.of(context.work / "predictions.npy"))


@torch.no_grad()
def _prove(model: nn.Module, deployed: nn.Module, method: nn.Module, student: Network, images: torch.Tensor, dropped: set[str]) -> None:
    """The file holds the student alone, and answers as the main head did in training. Raises StageError where it does not."""
    pixels = views.to_float(views.evaluation_view(images, student.image_size), student.normalization.mean, student.normalization.std)
    tapped = Tapped(model.eval(), {"pooled": loading.pooled_tap(student)})
    main = tapped(pixels)[0]
    tapped.close()
    if not torch.equal(main, deployed.eval()(pixels)):
        raise StageError(f"strip: the stripped {student.model} does not answer bit for bit like the trained main head")
    fresh = params(models.build(student.model, classes=student.classes, width=student.width))
    if params(deployed) != fresh:
        raise StageError(f"strip: the stripped {student.model} has {params(deployed):,} parameters, a fresh one {fresh:,}")
    left = dropped & set(deployed.state_dict())
    if left:
        raise StageError(f"strip: keys of the method remain in the student: {', '.join(sorted(left))}")


run = Stage("strip", 1, _run, Stripped)
