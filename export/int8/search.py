"""Search over int8 forms of a float file, ranked without labels by how far their answers are from the float file's.

The rank is the mean KL divergence of the softmax on a few images that set no range. On 32 of them its order agrees with
that of the full top-1 (Spearman 0.91, 24 variants of EfficientNet-Lite0), better than the top-1 on the same images
(0.64).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.int8 import range_choice
from export.int8.quantize import PreparedGraph, QuantizeSettings, emit
from export.runtime import ExportError, Model, isa, runs_on

RANKING_IMAGES = 32
SURVIVORS = 3
# Ratio of bytes up to which two files count as equally large.
SAME_SIZE = 1.01
FLOAT_LAYER_CHOICES: tuple[tuple[str, ...], ...] = ((), ("first",), ("last",), ("first", "last"))
# Combinations that are known to be bad, as measured on EfficientNet-Lite0 (per-channel minmax: 76.80 %, float: 77.94
# %).
PRUNED = (
    ("percentile 99.9", "cuts off real activations: measured 66.97 % where minmax gives 76.80 %"),
    (
        "one weight scale a tensor",
        "starves channels of compact networks: measured 70.17 % where one a channel gives 76.80 %",
    ),
    ("reduced range with one weight scale a tensor", "measured 48.80 %, with one scale a channel 76.69 %"),
    (
        "only Conv, Gemm and MatMul quantised",
        "the range before a ReLU6 is quantised instead of [0, 6]: measured 64.91 %",
    ),
)


@dataclass(frozen=True)
class Trial:
    """One variant.

    Attributes:
        name: the settings in words.
        kl: divergence from the float file in nats; None if the variant was not made.
        agreement: share of predictions equal to the float file's, in [0, 1].
        bytes: of the file.
        kept: whether it survives.
        reason: why it survives, does not, or was not made.
        seconds: that it took.
        settings: of the variant.
        path: of its file.
    """

    name: str
    kl: float | None
    agreement: float | None
    bytes: int | None
    kept: bool
    reason: str
    seconds: float = 0.0
    settings: QuantizeSettings | None = None
    path: Path | None = None


def run(
    prepared: PreparedGraph, folder: Path, base: QuantizeSettings, images: np.ndarray, report: Callable[[str], None]
) -> tuple[Trial, ...]:
    """Make and rank every variant; one collection of statistics serves all.

    Args:
        prepared: the float graph and its statistics.
        folder: where the files go.
        base: names the target.
        images: uint8 (N, H, W, 3), unlabelled, that set no range.
        report: receives a line about each variant.

    Returns:
        The trials; `kept` marks at most SURVIVORS, the best first.

    Raises:
        ExportError: no variant can be made.
    """
    expected = prepared.runtime.run(images)
    trials: list[Trial] = []

    def attempt(settings: QuantizeSettings) -> None:
        trials.append(_attempt(prepared, folder / f"{len(trials)}.onnx", settings, images, expected, trials))
        report(format_trial(trials[-1]))

    report(f"search: KL to the float file on {len(images)} images, lower is better")
    for float_layers in FLOAT_LAYER_CHOICES:
        for method in range_choice.CALIBRATORS:
            attempt(replace(base, per_channel=True, calibrate=method, float_layers=float_layers, bias_correction=False))
    for settings in _worth_correcting(trials):
        attempt(replace(settings, bias_correction=True))
    if not any(trial.path for trial in trials):
        raise ExportError(f"search: no variant could be made: {trials[0].reason}")
    pruned = [Trial(name, None, None, None, False, f"not tried: {why}") for name, why in PRUNED]
    return (*select(trials), *pruned)


def _attempt(
    prepared: PreparedGraph,
    path: Path,
    settings: QuantizeSettings,
    images: np.ndarray,
    expected: np.ndarray,
    before: Sequence[Trial],
) -> Trial:
    name, begin = variant_name(settings), time.monotonic()
    twin = _same_ranges(prepared, settings, before)
    if twin is not None:
        return Trial(name, None, None, None, False, f"not made: the same ranges as {twin}")
    try:
        made = emit(prepared, path, settings)
        found = logits(path, settings.isa, images)
    except ExportError as error:
        return Trial(name, None, None, None, False, f"not made: {error}")
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    return Trial(
        name, divergence(expected, found), agreement, made.bytes, False, "", time.monotonic() - begin, settings, path
    )


def variant_name(settings: QuantizeSettings) -> str:
    """Return the settings in words: `minmax, first and last in float, bias corrected`."""
    method = f"percentile {settings.percentile:g}" if settings.calibrate == "percentile" else settings.calibrate
    floats = f"{' and '.join(settings.float_layers)} in float" if settings.float_layers else ""
    return ", ".join(part for part in (method, floats, "bias corrected" if settings.bias_correction else "") if part)


def _same_ranges(prepared: PreparedGraph, settings: QuantizeSettings, before: Sequence[Trial]) -> str | None:
    """Return the trial that would give the same file, because another calibrator chose the same ranges."""
    own = range_choice.choose_ranges(prepared.statistics, settings.calibrate, settings.percentile)
    for trial in before:
        other = trial.settings
        if other is None or (other.float_layers, other.bias_correction) != (
            settings.float_layers,
            settings.bias_correction,
        ):
            continue
        if range_choice.choose_ranges(prepared.statistics, other.calibrate, other.percentile) == own:
            return trial.name
    return None


def _worth_correcting(trials: Sequence[Trial]) -> list[QuantizeSettings]:
    """Return the best variant overall and the best without float layers.

    Bias correction costs the most time, so only these get it; it changes no size.
    """
    made = sorted(
        (trial for trial in trials if trial.kl is not None and trial.settings is not None),
        key=lambda trial: trial.kl or 0.0,
    )
    best = made[:1] + [trial for trial in made if trial.settings and not trial.settings.float_layers][:1]
    return list(dict.fromkeys(trial.settings for trial in best if trial.settings))


def logits(path: Path, target: str | None, images: np.ndarray) -> np.ndarray:
    """Return logits float32 (N, K).

    A file for another instruction set is computed as it is written, because this machine's kernels may saturate.
    """
    return Model.load(path, as_written=not runs_on(target, isa())).run(images)


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the mean over images of KL(softmax(expected) || softmax(found)) in nats, for logits (N, K)."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def select(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials with `kept` and `reason` filled in.

    Kept are the two closest to float and the smallest on the Pareto front of divergence and size. If the front is
    shorter, the next closest to float fill it up to SURVIVORS, so that labels have something to choose from.
    """
    made = sorted((trial for trial in trials if trial.kl is not None), key=lambda trial: (trial.kl, trial.bytes))
    front = [trial for trial in made if not any(_dominates(other, trial) for other in made)]
    survivors = list(front) if len(front) <= SURVIVORS else [*front[: SURVIVORS - 1], front[-1]]
    runners = [trial for trial in made if trial not in front][: SURVIVORS - len(survivors)]
    kept = [replace(trial, kept=True, reason="survives: nothing smaller is as close to float") for trial in survivors]
    kept += [
        replace(trial, kept=True, reason="survives as a runner-up: the next closest to float") for trial in runners
    ]
    survivors += runners
    rest = [
        trial if trial.kl is None else replace(trial, reason=_why_not(trial, made, front))
        for trial in [*made, *trials]
        if trial not in survivors
    ]
    return (*kept, *dict.fromkeys(rest))


def _why_not(trial: Trial, made: Sequence[Trial], front: Sequence[Trial]) -> str:
    if trial in front:
        return f"on the front, but not among the {SURVIVORS} that are certified"
    better = next(other for other in made if _dominates(other, trial))
    return f"{better.name} is closer to float and not larger"


def _dominates(other: Trial, trial: Trial) -> bool:
    """Return whether `other` is at least as close to float and as small, and better in one; see SAME_SIZE."""
    if other.kl is None or trial.kl is None or other.bytes is None or trial.bytes is None:
        return False
    no_larger, smaller = other.bytes <= SAME_SIZE * trial.bytes, SAME_SIZE * other.bytes < trial.bytes
    return other.kl <= trial.kl and no_larger and (other.kl < trial.kl or smaller)


def format_trial(trial: Trial) -> str:
    """Return one row of the live table."""
    if trial.kl is None:
        return f"  {trial.name:<48} {trial.reason}"
    agreement = f"agrees {100 * (trial.agreement or 0):5.1f} %"
    return f"  {trial.name:<48} KL {trial.kl:.5f}  {agreement}  {trial.bytes:>11,} bytes  {trial.seconds:4.1f} s"
