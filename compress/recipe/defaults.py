"""Defaults that follow from other keys: epochs and learning rate from the start, image size and views from the data.

Loads no torch.
"""

from __future__ import annotations

from compress.models import catalog
from compress.recipe.schema import (
    Candidate,
    Quantize,
    Recipe,
    ResolvedCandidate,
    ResolvedQat,
    ResolvedSchedule,
    ResolvedTrain,
    Schedule,
    Train,
)

STUDENT_EPOCHS = 240  # as in the papers
CANDIDATE_EPOCHS = 60
PRETRAINED_EPOCHS = 20
FINE_TUNING_RATE, MOBILE_RATE, SCRATCH_RATE = 0.001, 0.01, 0.05
FINE_TUNING_SCALE = (0.35, 1.0)
ADAMW_FINE_TUNING_RATE, ADAMW_RATE = 0.0001, 0.001


def resolve(recipe: Recipe) -> Recipe:
    """Fill in the defaults that follow from other keys.

    What depends on the data or the machine stays null or auto. `train` and `quantize` become `ResolvedTrain` and
    (with scheme qat) `ResolvedQat`, unless `student.choose` has networks of different kinds to pick from.
    """
    data = recipe.data.model_copy(
        update={"image_size": recipe.data.side, "augment": recipe.data.views, "crop_scale": _crop_scale(recipe)}
    )
    candidates = tuple(_resolved_candidate(one, recipe.train.threads) for one in recipe.teacher.candidates)
    starts = {(catalog.info(one.model).mobile, one.weights != "none") for one in recipe.student.networks}
    train, quantize = recipe.train, recipe.quantize
    if len(starts) == 1:
        train = student_train(recipe)
        quantize = _resolved_quantize(quantize, train)
    else:
        metric = None if train.metric == "top1" else train.metric  # the teacher is chosen before the student is
        train = train.model_copy(update={"seed": recipe.seed if train.seed is None else train.seed, "metric": metric})
    teacher = recipe.teacher.model_copy(update={"candidates": candidates})
    return recipe.model_copy(update={"data": data, "teacher": teacher, "train": train, "quantize": quantize})


def _crop_scale(recipe: Recipe) -> tuple[float, float] | None:
    """Return the parts of an image that views show; None: those of the papers, which are no key's part.

    A short fine-tuning sees few views, and small ones hardly look like the images that pretrained features know.
    """
    data, networks = recipe.data, recipe.student.networks
    if data.crop_scale is not None or data.views != "resized_crop":
        return data.crop_scale
    pretrained = bool(networks) and all(one.weights != "none" for one in networks)
    epochs = recipe.train.epochs or default_epochs(pretrained=True)
    return FINE_TUNING_SCALE if pretrained and epochs <= PRETRAINED_EPOCHS else None


def student_train(recipe: Recipe) -> ResolvedTrain:
    """Return the student's training settings with the defaults of its (first) network filled in."""
    student = recipe.student.networks[0]
    return resolved_train(
        recipe.train,
        mobile=catalog.info(student.model).mobile,
        pretrained=student.weights != "none",
        seed=recipe.seed,
    )


def resolved_train(
    train: Train | None, *, mobile: bool, pretrained: bool, seed: int, scratch_epochs: int = STUDENT_EPOCHS
) -> ResolvedTrain:
    """Fill in all of `train` but `views` and `threads`.

    Args:
        train: the section as the recipe has it; None: all defaults.
        mobile: whether the network is a MobileNet or ShuffleNet, which start at a lower learning rate.
        pretrained: whether the weights are pretrained, which need fewer epochs and a lower rate.
        seed: the seed where the section names none.
        scratch_epochs: epochs from random weights.
    """
    train = train or Train()
    epochs = train.epochs or default_epochs(pretrained=pretrained, scratch_epochs=scratch_epochs)
    rate = FINE_TUNING_RATE if pretrained else MOBILE_RATE if mobile else SCRATCH_RATE
    if train.optimizer == "adamw":
        rate = ADAMW_FINE_TUNING_RATE if pretrained else ADAMW_RATE
    values = dict(train) | {
        "epochs": epochs,
        "lr": rate if train.lr is None else train.lr,
        "seed": seed if train.seed is None else train.seed,
        "schedule": _resolved_schedule(train.schedule, epochs, pretrained=pretrained),
        "batch_norm": _resolved_batch_norm(train.batch_norm, pretrained=pretrained),
        "probe": (train.probe is not False) if pretrained else None,
        "metric": None if train.metric == "top1" else train.metric,
        "sampling": None if train.sampling == "all" else train.sampling,
        "class_weights": None if train.class_weights == "none" else train.class_weights,
    }
    return ResolvedTrain.model_construct(**values)


def default_epochs(*, pretrained: bool, scratch_epochs: int = STUDENT_EPOCHS) -> int:
    """Return how many epochs a training has where its section names none."""
    return PRETRAINED_EPOCHS if pretrained else scratch_epochs


def _resolved_batch_norm(asked: str | None, *, pretrained: bool) -> str | None:
    """Return whose statistics BatchNorm ships with; None: running ones, from scratch, where they are no key's part.

    A last layer fitted to the features in evaluation mode does not fit those of training mode, so the first steps of a
    training by batch statistics undo it; few steps do not make up for that (benchmarks/results/few_photos.json).
    """
    if asked in (None, "auto"):
        return "frozen" if pretrained else None
    return None if asked == "running" and not pretrained else asked


def _resolved_schedule(schedule: Schedule, epochs: int, *, pretrained: bool) -> ResolvedSchedule:
    warmup = schedule.warmup_epochs
    if warmup is None:
        warmup = min(1.0, epochs / 4) if pretrained else 0.0
    return ResolvedSchedule.model_construct(**(dict(schedule) | {"warmup_epochs": warmup}))


def _resolved_candidate(candidate: Candidate, threads: int | None) -> ResolvedCandidate:
    """Resolve a candidate; its `train` stays null where the checkpoint is used as it is. `threads`: the student's."""
    pretrained = candidate.weights != "none"
    train = None
    if candidate.onnx is None and not (pretrained and candidate.train is None):
        mobile = catalog.info(candidate.model).mobile
        train = resolved_train(
            candidate.train, mobile=mobile, pretrained=pretrained, seed=0, scratch_epochs=CANDIDATE_EPOCHS
        )
        train = train.model_copy(update={"threads": threads if train.threads is None else train.threads})
    return ResolvedCandidate.model_construct(**(dict(candidate) | {"train": train}))


def _resolved_quantize(quantize: Quantize, train: ResolvedTrain) -> Quantize:
    """Give scheme qat a tenth of the training's epochs and of its learning rate, unless the recipe names them."""
    if quantize.scheme != "qat":
        return quantize
    epochs = max(2, round(train.epochs / 10)) if quantize.epochs is None else quantize.epochs
    lr = train.lr / 10 if quantize.lr is None else quantize.lr
    return ResolvedQat.model_construct(**(dict(quantize) | {"epochs": epochs, "lr": lr}))
