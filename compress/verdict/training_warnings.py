"""What a training's own checks say about it, beside the accuracy that it reached."""

from __future__ import annotations

from compress.core.records.training_checks import TrainingChecks
from compress.core.records.warnings import RunWarning
from compress.verdict.intervals import drop_from_counts

# Points between training mode and evaluation mode from which on a warning is worth reading, where they are significant.
MIN_GAP = 2.0


def of_training(name: str, checks: TrainingChecks | None) -> list[RunWarning]:
    """Return the warnings about a training. `checks` None: it was not trained here, or by an older version.

    Args:
        name: what was trained, as messages begin.
        checks: what its end was held against.
    """
    if checks is None:
        return []
    found = (_below_probe(name, checks), _mode_gap(name, checks))
    return [RunWarning(text, affects_verdict=True) for text in found if text]


def floor(name: str, checks: TrainingChecks | None) -> list[str]:
    """Return a sentence on the accuracy beside that of a last layer alone, where one was fitted."""
    if checks is None or checks.probe_top1 is None:
        return []
    reached, alone = f"{100 * checks.right / checks.images:.1f} %", f"{100 * checks.probe_top1:.1f} %"
    images = f"{checks.images:,} validation images"
    return [f"{name}: {reached} of {images}; a last layer alone, on the pretrained features, reaches {alone}"]


def _below_probe(name: str, checks: TrainingChecks) -> str | None:
    """Describe a network that fine-tuning made worse than the last layer that it started from."""
    if checks.probe_top1 is None or checks.probe_right is None or checks.right >= checks.probe_right:
        return None
    return (
        f"{name}: ends at {100 * checks.right / checks.images:.1f} % of the {checks.images:,} validation images, below "
        f"the {100 * checks.probe_top1:.1f} % that a last layer alone reaches on the pretrained features: fine-tuning "
        "lost accuracy; lower train.lr, train for more epochs, or set train.keep: best, which then ships the better one"
    )


def _mode_gap(name: str, checks: TrainingChecks) -> str | None:
    """Describe a network that is more accurate with the statistics of each batch, and name the cause."""
    if checks.lost is None or checks.gained is None:
        return None
    drop = drop_from_counts(checks.lost, checks.gained, checks.images)
    if drop.low <= 0 or drop.drop_points < MIN_GAP:
        return None
    shipped, by_batch = checks.right, checks.right + checks.lost - checks.gained
    return (
        f"{name}: {100 * by_batch / checks.images:.1f} % of the validation images are classified correctly as in "
        f"training, with BatchNorm's statistics of each batch, but {100 * shipped / checks.images:.1f} % with the "
        f"statistics that ship ({drop.drop_points:.1f} points [{drop.low:.1f}, {drop.high:.1f}]): {_cause(checks)}"
    )


def _cause(checks: TrainingChecks) -> str:
    if checks.batch_norm == "frozen":
        return (
            "those of the pretrained weights were kept (batch_norm: frozen) and do not fit these images; "
            "set train.batch_norm: recomputed"
        )
    if checks.batch_norm == "recomputed":
        return (
            "they were recomputed from training views, so validation images differ from training images; compare how "
            "the two were taken, or choose views that are closer to whole images (data.augment)"
        )
    if checks.momentum is None:
        return "the running averages do not fit the weights; set train.batch_norm: recomputed"
    moved = 1 - (1 - checks.momentum) ** checks.steps
    lag = (
        f"after {checks.steps:,} steps with a momentum of {checks.momentum:g} they consist to "
        f"{100 * (1 - moved):.0f} % of what training started from"
        if moved < 0.95
        else "the weights changed faster than the running averages follow"
    )
    return f"{lag}; set train.batch_norm: recomputed"
