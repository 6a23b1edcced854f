"""Drop the method's own modules, and prove that the rest is the trained network."""

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
from compress.models.fused import fused
from compress.models.taps import Tapped
from compress.recipe.schema import Distill
from compress.training import build
from compress.training.evaluation import accuracy, predict

# Largest |logit difference| of a student that ships in another form, times the largest |logit| if that is above 1. Its
# sums are taken in another order, and float32 rounds at 6e-8 of what is added. A bias that should be gone, or a wrong
# projector, moves logits by far more.
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
    """Keep `method.deployed(student)`, check it bit for bit against the trained main head, and record its accuracy.

    Args:
        config: The `distill` section that the student was trained by.
        context: Of the stage.
        student: The student's network.
        teacher: None for the baseline.
        trained: Student and method after training.
        data: The training data.
    """
    dataset = build.load_images(data, "cpu")
    model, method = build.load_distilled(config, trained, teacher, dataset)

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
    _prove(model, deployed, method, student, dataset.validation()[:64])

    counted = fused(deployed.eval(), student.side).network  # as it is exported

    logits = predict(deployed, dataset.validation(), data.image_size, student.normalization)
    np.save(context.work / "predictions.npy", logits.argmax(dim=1).numpy())
    result = Trained(
        network=ships,
        weights=File.of(path),
        top1_validation=accuracy(logits, dataset.labels[dataset.validation_index]),
        params=params(counted),
        macs=macs(counted, student.image_size),
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
    """Check that the file answers as the network did in training, and holds nothing else.

    The plain student must answer bit for bit, another form within FORM_LIMIT. Raises StageError.
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
    difference, largest = float((trained - shipped).abs().max()), float(trained.abs().max())
    limit = FORM_LIMIT * max(1.0, largest)
    if not difference <= limit:
        raise StageError(
            f"strip: the logits of the {student.model} that ships differ by {difference:.1e} from those of training; "
            f"the limit is {limit:.1e}, {FORM_LIMIT:g} times the largest logit above 1 ({largest:.3g})"
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
