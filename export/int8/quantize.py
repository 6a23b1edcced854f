"""Static int8 in the QDQ format, with settings that suit compact networks; one file per instruction set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from export.graph import layers, onnx_file, surgery
from export.graph.executed import FLOAT_LAYERS_METADATA, Audit, audit
from export.graph.quiet import quiet
from export.int8 import bias_correction, calibrate, kernel_layout, qdq, range_choice
from export.int8.range_choice import MIN_PERCENTILE
from export.int8.records import PreparedGraph, QdqGraphs, QuantizedFile, QuantizeSettings
from export.runtime import METADATA_PREFIX, TARGETS, Contract, ExportError, Model

__all__ = [
    "Audit",
    "PreparedGraph",
    "QdqGraphs",
    "QuantizeSettings",
    "QuantizedFile",
    "audit",
    "check",
    "emit",
    "insert_qdq",
    "prepare",
    "preprocessed",
    "quantize",
    "with_weights",
]


def quantize(
    source: Path,
    target: Path,
    images: np.ndarray,
    *,
    isa: str,
    per_channel: bool = True,
    calibrate: str = "minmax",
    percentile: float = MIN_PERCENTILE,
    float_layers: tuple[str, ...] = (),
    bias_correction: bool = False,
    cache: Path | None = None,
) -> QuantizedFile:
    """Write the int8 form of a float file.

    x86-vnni: uint8 activations, int8 weights. x86-avx2: the same with weights of 7 bits. arm64: int8 activations and
    weights. The last layer answers in float32.

    Args:
        source: the float file.
        target: the int8 file to write.
        images: real images uint8 (N, H, W, 3) that set the ranges.
        isa: the instruction set, one of TARGETS.
        per_channel: see QuantizeSettings, as for the next four.
        calibrate: minmax, percentile or entropy.
        percentile: of `calibrate: percentile` only.
        float_layers: node names, `first` or `last`.
        bias_correction: whether biases are corrected for the shift of the mean.
        cache: a folder for the statistics.

    Raises:
        ExportError: a setting is refused, or the file cannot be quantised.
    """
    settings = QuantizeSettings(isa, per_channel, calibrate, percentile, tuple(float_layers), bias_correction)
    check(settings)
    return emit(prepare(source, images, cache=cache), target, settings)


def check(settings: QuantizeSettings) -> None:
    """Raise ExportError for settings that are unknown or known to ruin networks."""
    if settings.isa not in TARGETS:
        raise ExportError(f"no int8 settings for {settings.isa!r}; known are {', '.join(TARGETS)}")
    range_choice.check(settings.calibrate, settings.percentile)
    if settings.reduce_range and not settings.per_channel:
        raise ExportError(
            f"{settings.isa} needs per-channel weights: with its reduced range, one scale a tensor ruins compact "
            "networks"
        )


def preprocessed(source: Path) -> onnx.ModelProto:
    """Return the graph that is quantised: the file with onnxruntime's float optimisations and shapes.

    Some layers have other names than in `source`.
    """
    from onnxruntime.quantization import quant_pre_process
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        # The symbolic pass imports torch, and batches need no symbols.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model: onnx.ModelProto = load_model_with_shape_infer(prepared)
        return model


def prepare(source: Path, images: np.ndarray, *, cache: Path | None = None) -> PreparedGraph:
    """Do everything that does not depend on the settings.

    Args:
        source: the float file.
        images: calibration images, uint8 (N, H, W, 3), at least one.
        cache: a folder for the statistics.

    Raises:
        ExportError: there are no images, or the file cannot be read or run.
    """
    runtime = Model.load(source)
    if len(images) == 0:
        raise ExportError("calibration needs at least one image")
    runtime.check(images)
    opset = onnx_file.opset_of(onnx.load(str(source)))
    model = preprocessed(source)
    steps = kernel_layout.exact_steps(model, runtime.contract, images)
    statistics = calibrate.collect(model, images, runtime, cache=cache)
    return PreparedGraph(model, runtime, images, statistics, opset, steps)


def insert_qdq(
    prepared: PreparedGraph,
    settings: QuantizeSettings,
    ranges: dict[str, tuple[float, float]] | None = None,
    *,
    for_kernels: bool = False,
) -> QdqGraphs:
    """Put Q/DQ pairs into the float graph.

    Args:
        prepared: the float graph and its statistics.
        settings: how to quantise it.
        ranges: learned ranges, which replace the calibrated ones.
        for_kernels: lay the graph out for the target's kernels. The answers are the same; the weights hold zeros that
            must stay zero.

    Raises:
        ExportError: a setting is refused, or a layer is not known.
    """
    check(settings)
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    kept = layers.resolve(model, settings.float_layers)
    alike = _lay_out(model, prepared.layout, settings, kept) if for_kernels else {}
    if len(kept) == len(layers.layers(model)):
        raise ExportError("float_layers names every layer of the network; set scheme: none to ship the float file")
    exclude = (*layers.keep_in_float(model, kept), *qdq.nodes_before_first_layer(model))
    found = {
        **range_choice.choose_ranges(prepared.statistics, settings.calibrate, settings.percentile),
        **(ranges or {}),
    }
    found |= {name: found[other] for name, other in alike.items()}
    quantized = _with_pairs(model, found, settings, exclude)
    if settings.bias_correction:
        better = bias_correction.corrected(model, quantized, prepared.images, prepared.runtime)
        quantized = _with_pairs(better, found, settings, exclude)
    surgery.absorb_scalar_products(quantized)
    qdq.keep_logits_in_float(quantized)
    levels = 64 if settings.reduce_range else 127
    return QdqGraphs(model, quantized, calibrate.with_fused(found, model), calibrate.fused(model), levels, kept)


def _with_pairs(
    model: onnx.ModelProto, ranges: dict[str, tuple[float, float]], settings: QuantizeSettings, exclude: tuple[str, ...]
) -> onnx.ModelProto:
    return qdq.insert_pairs(
        model,
        ranges,
        per_channel=settings.per_channel,
        reduce_range=settings.reduce_range,
        activations=settings.activations,
        exclude=exclude,
    )


def with_weights(prepared: PreparedGraph, weights: Mapping[str, np.ndarray]) -> PreparedGraph:
    """Return the same graph and statistics with other weights, by the initializers' names. Raises ExportError."""
    return replace(prepared, model=layers.with_weights(prepared.model, weights))


def emit(
    prepared: PreparedGraph,
    target: Path,
    settings: QuantizeSettings,
    ranges: dict[str, tuple[float, float]] | None = None,
) -> QuantizedFile:
    """Write one int8 file, and check that the layers to be kept in float run in float.

    Args:
        prepared: the float graph and its statistics.
        target: the file to write.
        settings: how to quantise it.
        ranges: learned ranges, which replace the calibrated ones.

    Raises:
        ExportError: a setting is refused, or onnxruntime quantises a float layer again.
    """
    made = insert_qdq(prepared, settings, ranges, for_kernels=True)
    quantized, kept = made.quantized, made.kept
    surgery.normalise_by_rows(quantized)
    _finish(quantized, target, prepared.runtime.contract, settings.isa, prepared.opset, kept)
    saved = onnx_file.check(target, opset=prepared.opset)
    if kept:
        _prove_float(target)
    return QuantizedFile(
        isa=settings.isa,
        activation_type=settings.activations,
        weight_type="int8",
        reduce_range=settings.reduce_range,
        per_channel=settings.per_channel,
        calibration_images=len(prepared.images),
        bytes=target.stat().st_size,
        nodes=onnx_file.op_counts(saved),
        float_layers=kept,
    )


def _lay_out(
    model: onnx.ModelProto, steps: tuple[str, ...], settings: QuantizeSettings, kept: tuple[str, ...]
) -> dict[str, str]:
    """Lay the graph out for the target's kernels; return its new tensors with the known ones of equal values.

    This was measured on x86 only, so other targets keep the plain layout. A stem that stays in float keeps its three
    channels, which float kernels prefer.
    """
    if not settings.isa.startswith("x86"):
        return {}
    if layers.layers(model)[0].name in kept:
        steps = tuple(step for step in steps if step != kernel_layout.STEM_IN_FOURS)
    return kernel_layout.apply(model, steps)[0]


def _prove_float(target: Path) -> None:
    """Remove the file and raise ExportError if the session quantises a layer again that the file has in float."""
    again = audit(target).requantised
    if again:
        target.unlink()
        pronoun = "it" if len(again) == 1 else "them"
        raise ExportError(
            f"{target.name}: {', '.join(again)} should stay in float, but onnxruntime quantises {pronoun} again when "
            f"it loads the file; leave {pronoun} out of float_layers"
        )


def _finish(
    model: onnx.ModelProto, target: Path, contract: Contract, isa: str, opset: int, kept: tuple[str, ...]
) -> None:
    if onnx_file.opset_of(model) != opset:
        raise ExportError(f"{target.name}: quantisation changed opset {opset} to {onnx_file.opset_of(model)}")
    metadata = {**contract.to_metadata(), METADATA_PREFIX + "target": json.dumps(isa)}
    if kept:
        metadata[FLOAT_LAYERS_METADATA] = json.dumps(kept)
    onnx_file.strip_and_describe(model, metadata, made_by=contract.made_by)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx_file.save(model, target)
