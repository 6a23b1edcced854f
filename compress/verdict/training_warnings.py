"""What a training's own checks say about it, beside the accuracy that it reached."""

from __future__ import annotations

from compress.core.records.training import TrainingChecks
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
    gap = _mode_gap(name, checks)
    return [RunWarning(gap, affects_verdict=True)] if gap else []


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
