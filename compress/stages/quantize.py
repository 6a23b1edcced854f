"""An int8 file for one target, calibrated on training images as evaluation sees them; `search` tries several ways."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import export.int8.quantize
import export.int8.search
from compress.core.console import Console
from compress.core.errors import MissingError, StageError, UsageError
from compress.core.records.base import File
from compress.core.records.deployment import Exported, Quantized, Tuned
from compress.core.records.training import CalibrationData
from compress.core.store import Context, Stage
from compress.data import calibration_arrays, calibration_index, centre_crop, training_arrays
from compress.data.splits import shuffled
from compress.recipe.schema import Device, Quantize
from compress.verdict import intervals
from export.int8.quantize import PreparedGraph, QuantizeSettings
from export.int8.search import RANKING_IMAGES, Trial
from export.runtime import TARGETS, ExportError, isa, runs_on
from export.targets import DeviceFailed, Unreachable, dispatch, parse

RANKING_STREAM = 2  # of the random numbers that draw the search's images; calibration has another


def resolve_target(target: str, device: Device) -> str:
    """Turn `auto` into the device's instruction set; a remote device is asked.

    Raises:
        UsageError: int8 has no rule for the instruction set.
        MissingError: The device is out of reach.
    """
    if target != "auto":
        return target
    try:
        found = dispatch.isa(parse(device.target)) if device.distant else isa()
    except (Unreachable, DeviceFailed) as error:
        raise MissingError(
            f"quantize.target: auto is the instruction set of {device.name}, which gave no answer ({error}); to go on "
            "without asking it, name its instruction set: --set quantize.target=arm64 (or x86-vnni, x86-avx2)"
        ) from error
    if found not in TARGETS:
        where = device.name if device.distant else "this machine"
        raise UsageError(
            f"quantize.target: there is no int8 rule for {where} ({found}); "
            "name one of x86-vnni, x86-avx2, arm64, or set scheme: none"
        )
    return found


def resolve_targets(config: Quantize, device: Device) -> tuple[str, ...]:
    """Return the targets of the int8 files, each once, the device's first.

    The device's is `auto` if that is listed, else the first that a known device runs. Raises as `resolve_target`.
    """
    listed = sorted(config.targets, key=lambda target: target != "auto")
    found = list(dict.fromkeys(resolve_target(target, device) for target in listed))
    if "auto" not in listed and not device.distant:
        found.sort(key=lambda target: not runs_on(target, isa()))
    return tuple(found)


def run_quantize(
    config: Quantize,
    *,
    context: Context,
    model: Exported,
    data: CalibrationData,
    target: str,
    versions: dict[str, str],
    tuned: Tuned | None = None,
) -> Quantized:
    """Write a QDQ int8 file; activation and weight types follow from the target.

    Args:
        config: The recipe's `quantize` section.
        context: Of the stage.
        model: The float ONNX file.
        data: The training data and the number of calibration images.
        target: The processor family.
        versions: Versions of torch, onnx and onnxruntime; part of the key only.
        tuned: Weights and ranges from the tune stage, with `scheme: qat`.
    """
    images, _ = calibration_arrays(data)
    source, path = (model.int8_source or model.file).path, context.work / "model.int8.onnx"
    cache = context.cache / "calibration"
    try:
        if config.search:
            found = _search(source, path, images, data, target, cache, context.console)
            settings, trials, sentence = found.settings, found.trials, found.sentence
        else:
            settings = QuantizeSettings(
                target,
                config.per_channel,
                config.calibrate,
                config.percentile,
                config.float_layers,
                config.bias_correction,
            )
            trials, sentence = (), None
            options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
            if tuned is None:
                made = export.int8.quantize.quantize(source, path, images, **options, cache=cache)
            else:
                made = _emit_tuned(export.int8.quantize.prepare(source, images, cache=cache), tuned, path, settings)
            settings = dataclasses.replace(settings, float_layers=made.float_layers)
    except ExportError as error:
        raise StageError(f"quantize: {error}") from error
    return Quantized(
        file=File.of(path),
        target=target,
        activation_type=settings.activations,
        weight_type="int8",
        calibration_images=len(images),
        calibrate=settings.calibrate,
        scheme="static" if tuned is None else "qat",
        float_layers=settings.float_layers,
        bias_correction=settings.bias_correction,
        trials=trials,
        search=sentence,
    )


def _emit_tuned(
    prepared: PreparedGraph, tuned: Tuned, path: Path, settings: QuantizeSettings
) -> export.int8.quantize.QuantizedFile:
    """Write the file with the weights and ranges that tuning left."""
    ranges = {name: (low, high) for name, (low, high) in json.loads(tuned.ranges.path.read_text()).items()}
    graph = export.int8.quantize.with_weights(prepared, load_file(tuned.weights.path))
    return export.int8.quantize.emit(graph, path, settings, ranges)


@dataclass(frozen=True)
class _Choice:
    settings: QuantizeSettings
    trials: tuple[dict[str, Any], ...]
    sentence: str


def _search(
    source: Path, path: Path, images: np.ndarray, data: CalibrationData, target: str, cache: Path, console: Console
) -> _Choice:
    """Try the variants and write the best one to `path`."""
    ranking = _ranking_images(data)
    prepared = export.int8.quantize.prepare(source, images, cache=cache)
    with tempfile.TemporaryDirectory() as folder:
        trials = export.int8.search.run(prepared, Path(folder), QuantizeSettings(target), ranking, console.line)
        validation, labels = _validation(data)
        right = prepared.runtime.run(validation).argmax(axis=1) == labels
        survivors = [trial for trial in trials if trial.kept]
        made = sum(trial.kl is not None for trial in trials)
        console.line(f"search: {len(survivors)} of {made} certified on {len(labels):,} validation images")
        answers = [
            export.int8.search.logits(_path(trial), target, validation).argmax(axis=1) == labels for trial in survivors
        ]
        winner = choose(answers)
        drops = [intervals.paired_drop(right, answer) for answer in answers]
        chosen = survivors[winner]
        shutil.copyfile(_path(chosen), path)
    sentence = _sentence(chosen, drops[winner])
    console.line(f"search: {sentence}")
    rows = [{**_row(trial), **_certified(drop, trial is chosen)} for trial, drop in zip(survivors, drops, strict=True)]
    assert chosen.settings is not None
    return _Choice(chosen.settings, (*rows, *(_row(trial) for trial in trials if not trial.kept)), sentence)


def choose(answers: list[np.ndarray]) -> int:
    """Return the index of the first variant that is not significantly worse than the most accurate one.

    A variant is worse if the 95 % interval of its paired drop against the most accurate one lies above 0. So the labels
    overrule the order by KL divergence only beyond chance.

    Args:
        answers: For each variant, by rising KL divergence: whether each validation image is right, bool (V,).
    """
    best = max(answers, key=lambda answer: int(answer.sum()))
    return next(
        number
        for number, answer in enumerate(answers)
        if answer is best or intervals.paired_drop(best, answer).low <= 0
    )


def _ranking_images(data: CalibrationData) -> np.ndarray:
    """Return training images that calibration does not use, uint8 (32, S, S, 3).

    Raises UsageError if there are too few.
    """
    images, labels, train_index, _ = training_arrays(data.training)
    left = np.setdiff1d(train_index, calibration_index(labels, train_index, data.count, data.training.split_seed))
    if len(left) < RANKING_IMAGES:
        raise UsageError(
            f"quantize.search needs {RANKING_IMAGES} training images that calibration does not use, "
            f"but {len(left)} are left; set data.calibration to {max(len(train_index) - RANKING_IMAGES, 1)} or less"
        )
    chosen = left[shuffled(len(left), data.training.split_seed, RANKING_STREAM)[:RANKING_IMAGES]]
    return centre_crop(images[np.sort(chosen)], data.training.image_size)


def _validation(data: CalibrationData) -> tuple[np.ndarray, np.ndarray]:
    images, labels, _, index = training_arrays(data.training)
    return centre_crop(images[index], data.training.image_size), labels[index]


def _path(trial: Trial) -> Path:
    assert trial.path is not None  # kept trials were made
    return trial.path


def _row(trial: Trial) -> dict[str, Any]:
    """Return report.json's row of a trial."""
    return {name: getattr(trial, name) for name in ("name", "kl", "agreement", "bytes", "kept", "reason")} | {
        "chosen": False
    }


def _certified(drop: intervals.PairedDrop, chosen: bool) -> dict[str, Any]:
    numbers = {
        "drop_points": drop.drop_points,
        "drop_ci95": [drop.low, drop.high],
        "mcnemar_p": drop.p,
        "images": drop.n,
    }
    return {
        **numbers,
        "chosen": chosen,
        **({"reason": "chosen: the closest to float that the labels do not contradict"} if chosen else {}),
    }


def _sentence(trial: Trial, drop: intervals.PairedDrop) -> str:
    points = f"{drop.drop_points:.2f} [{drop.low:.2f}, {drop.high:.2f}] points"
    against = f"against the float student on {drop.n:,} validation images"
    return f"{trial.name}: KL {trial.kl:.5f}, drop {points} {against}"


QUANTIZE = Stage("quantize", 3, run_quantize, Quantized)
