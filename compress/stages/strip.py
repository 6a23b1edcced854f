"""What deploys, and nothing else: the method's own modules are dropped, and the rest is proven to be the trained main head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import Distilled, Network, Stripped, Trained, TrainingData
from compress.core.store import Context, Stage
from compress.data.augment import views
from compress.methods import Method, Signals
from compress.models import checkpoints
from compress.models.count import macs, params
from compress.models.taps import Tapped
from compress.recipe.schema import Distill
from compress.training import build
from compress.training.evaluation import accuracy, predict

# Largest |logit difference| of a student that ships in another form, times the largest |logit| where that is above 1: sums are taken in another order
# then, and float32 rounds at 6e-8 of what is added up. A bias that should be gone, or a projector that is not the trained one, moves logits by far more.
FORM_LIMIT = 1e-5


def run_strip(
    config: Distill,
    *,
    context: Context,
    student: Network,
    teacher: Trained | None,
    trained: Distilled,
    data: TrainingData,
) -> Stripped:
    """Keep `method.deployed(student)`; assert it bit for bit against the trained main head; record its float32 accuracy."""
    pictures = build.load_images(data, "cpu")
    model, method = build.load_distilled(config, trained, teacher, pictures)

    path = context.work / "student.safetensors"
    kept = {value.data_ptr() for value in method.deployed(model).state_dict().values()}
    dropped = tuple(
        sorted(
            name
            for part in (model, method)
            for name, value in part.state_dict().items()
            if value.data_ptr() not in kept
        )
    )
    checkpoints.save_state(method.deployed(model), path)
    ships = replace(student, deployed=method.deployed_spec())
    deployed = build.load_network(ships, File.of(path), "cpu")
    _prove(model, deployed, method, student, pictures.validation()[:64])

    logits = predict(deployed, pictures.validation(), data.image_size, student.normalization)
    np.save(context.work / "predictions.npy", logits.argmax(dim=1).numpy())
    result = Trained(
        network=ships,
        weights=File.of(path),
        top1_validation=accuracy(logits, pictures.labels[pictures.validation_index]),
        params=params(deployed),
        macs=macs(deployed, student.image_size),
        epochs=trained.epochs,
        seconds=trained.seconds,
        images_per_second=trained.images_per_second,
        precision=trained.precision,
        threads=trained.threads,
        kernels=trained.kernels,
        origin=f"distilled by {trained.method}" if trained.method != "none" else "trained without a teacher",
    )
    return Stripped(
        result, dropped, File.of(context.work / "predictions.npy"), params(model), macs(model, student.image_size)
    )


@torch.no_grad()
def _prove(model: nn.Module, deployed: nn.Module, method: Method, student: Network, images: torch.Tensor) -> None:
    """The file answers as the network did in training, bit for bit where it is the plain student, and holds nothing else.

    Raises StageError where it does not.
    """
    pixels = views.to_float(
        views.evaluation_view(images, student.image_size), student.normalization.mean, student.normalization.std
    )
    outline = build.outline_of(student)
    with Tapped(model.eval(), {name: outline.taps[name] for name in method.eval().student_taps}) as tapped:
        logits, taps = tapped(pixels)
    nothing = torch.zeros(len(pixels), dtype=torch.int64)
    trained = method.logits(Signals(nothing, nothing, torch.ones(()), logits, None, taps))
    shipped = deployed.eval()(pixels)
    if method.deployed_spec() is None and not torch.equal(trained, shipped):
        raise StageError(f"strip: the stripped {student.model} does not answer bit for bit like the trained main head")
    away, largest = float((trained - shipped).abs().max()), float(trained.abs().max())
    if not away <= FORM_LIMIT * max(1.0, largest):
        limit = f"{FORM_LIMIT * max(1.0, largest):.1e}, which is {FORM_LIMIT:g} times the largest logit above 1 ({largest:.3g})"
        raise StageError(
            f"strip: what ships of {student.model} answers {away:.1e} away from what was trained; the limit is {limit}"
        )
    ours = {parameter.data_ptr() for parameter in method.deployed(model).parameters()}
    expected = sum(
        parameter.numel() for part in (model, method) for parameter in part.parameters() if parameter.data_ptr() in ours
    )
    if params(deployed) != expected:
        raise StageError(
            f"strip: the stripped {student.model} has {params(deployed):,} parameters, it should have {expected:,}"
        )
    left = set(deployed.state_dict()) - set(model.state_dict()) if method.deployed_spec() is None else set()
    if left:
        raise StageError(f"strip: keys of the method remain in the student: {', '.join(sorted(left))}")


STRIP = Stage("strip", 1, run_strip, Stripped)
