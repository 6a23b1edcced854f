"""Static int8 in the QDQ format, with the settings that keep compact networks alive, one file per instruction set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from export.graph import layers, surgery
from export.graph.executed import FLOAT_LAYERS, Audit, audit
from export.graph.quiet import quiet
from export.int8 import bias_correction as bias
from export.int8 import calibrate as calibration
from export.int8 import kernel_layout
from export.int8.calibrate import Statistics
from export.runtime import METADATA_PREFIX, OUTPUT, TARGETS, Contract, ExportError, Model

__all__ = ["Audit", "PreparedGraph", "QuantizedFile", "QuantizeSettings", "audit", "emit", "prepare", "quantize"]


@dataclass(frozen=True)
class QuantizeSettings:
    """How a float file becomes int8. `float_layers`: node names, `first`, `last`."""

    isa: str
    per_channel: bool = True
    calibrate: str = "minmax"
    percentile: float = calibration.LEAST_PERCENTILE  # of `calibrate: percentile` only
    float_layers: tuple[str, ...] = ()
    bias_correction: bool = False

    @property
    def activations(self) -> str:
        """Type of the activations: x86 kernels want uint8, ARM kernels int8."""
        return "int8" if self.isa == "arm64" else "uint8"

    @property
    def reduce_range(self) -> bool:
        """Weights of 7 bits: vpmaddubsw adds pairs of products with saturation."""
        return self.isa == "x86-avx2"


@dataclass(frozen=True)
class QuantizedFile:
    """What was written. `nodes` counts the file's nodes by operator; `float_layers` are the names of the layers seen to run in float."""

    isa: str
    activation_type: str
    weight_type: str
    reduce_range: bool
    per_channel: bool
    calibration_images: int
    bytes: int
    nodes: dict[str, int]
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedGraph:
    """A float file ready to be quantised in several ways: its graph with shapes, and one collection of statistics."""

    model: onnx.ModelProto
    runtime: Model
    images: np.ndarray
    statistics: Statistics
    opset: int
    layout: tuple[str, ...]  # steps of `export.int8.kernel_layout` that change no answer


def quantize(
    source: Path,
    target: Path,
    images: np.ndarray,
    *,
    isa: str,
    per_channel: bool = True,
    calibrate: str = "minmax",
    percentile: float = calibration.LEAST_PERCENTILE,
    float_layers: tuple[str, ...] = (),
    bias_correction: bool = False,
    cache: Path | None = None,
) -> QuantizedFile:
    """Write the int8 form of the float file `source`, its ranges set by real pictures, uint8 (N, H, W, 3).

    x86-vnni: uint8 activations, int8 weights. x86-avx2: the same with weights of 7 bits. arm64: int8 activations and weights. The last
    layer answers in float32. `cache`: a folder for the statistics. Raises ExportError.
    """
    settings = QuantizeSettings(isa, per_channel, calibrate, percentile, tuple(float_layers), bias_correction)
    check(settings)
    return emit(prepare(source, images, cache=cache), target, settings)


def check(settings: QuantizeSettings) -> None:
    """Raise ExportError for settings that are not known or known to ruin networks."""
    if settings.isa not in TARGETS:
        raise ExportError(f"no int8 settings for {settings.isa!r}; known are {', '.join(TARGETS)}")
    calibration.check(settings.calibrate, settings.percentile)
    if settings.reduce_range and not settings.per_channel:
        raise ExportError(
            f"{settings.isa} needs per-channel weights: with its reduced range, one scale a tensor ruins compact networks"
        )


def preprocessed(source: Path) -> onnx.ModelProto:
    """The graph that is quantised: onnxruntime's float optimisations and shapes. Some layers have other names than in `source`."""
    from onnxruntime.quantization import quant_pre_process
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(
            str(source), str(prepared), skip_symbolic_shape=True
        )  # the symbolic pass imports torch; batches need no symbols
        return load_model_with_shape_infer(prepared)


def prepare(source: Path, images: np.ndarray, *, cache: Path | None = None) -> PreparedGraph:
    """Everything that does not depend on the settings. Raises ExportError."""
    runtime = Model.load(source)
    if len(images) == 0:
        raise ExportError("calibration needs at least one picture")
    runtime.check(images)
    opset = surgery.opset_of(onnx.load(str(source)))
    model = preprocessed(source)
    steps = kernel_layout.exact_steps(model, runtime.contract, images)
    return PreparedGraph(model, runtime, images, calibration.collect(model, images, runtime, cache=cache), opset, steps)


@dataclass(frozen=True)
class QdqGraphs:
    """The two graphs behind an int8 file, before its pixels are normalised by rows: `model` float, `quantized` its QDQ form.

    `ranges`: what the quantiser was given; `sharing`: tensors that take another's range; `levels`: the largest integer of a weight;
    `kept`: the layers that stay in float.
    """

    model: onnx.ModelProto
    quantized: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    sharing: dict[str, str]
    levels: int
    kept: tuple[str, ...]


def insert_qdq(
    prepared: PreparedGraph,
    settings: QuantizeSettings,
    ranges: dict[str, tuple[float, float]] | None = None,
    *,
    for_kernels: bool = False,
) -> QdqGraphs:
    """Put Q/DQ pairs into the float graph. `ranges` replaces those of the calibration where they were learned.

    `for_kernels`: in the layout that the target's kernels want, with the same answers; its weights hold zeros that must stay zero.
    Raises ExportError.
    """
    check(settings)
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    kept = layers.resolve(model, settings.float_layers)
    alike = _lay_out(model, prepared.layout, settings, kept) if for_kernels else {}
    if len(kept) == len(layers.layers(model)):
        raise ExportError("float_layers names every layer of the network; set scheme: none to ship the float file")
    exclude = (*layers.keep_in_float(model, kept), *_before_first_layer(model))
    found = {**calibration.ranges(prepared.statistics, settings.calibrate, settings.percentile), **(ranges or {})}
    found |= {name: found[other] for name, other in alike.items()}
    quantized = _with_qdq(model, found, settings, exclude)
    if settings.bias_correction:
        quantized = _with_qdq(
            bias.corrected(model, quantized, prepared.images, prepared.runtime), found, settings, exclude
        )
    surgery.absorb_scalar_products(quantized)
    _float_logits(quantized)
    levels = 64 if settings.reduce_range else 127
    return QdqGraphs(model, quantized, calibration.with_fused(found, model), calibration.fused(model), levels, kept)


def with_weights(prepared: PreparedGraph, weights: Mapping[str, np.ndarray]) -> PreparedGraph:
    """The same graph and statistics with other weights, by the initializers' names. Raises ExportError."""
    return replace(prepared, model=layers.with_weights(prepared.model, weights))


def emit(
    prepared: PreparedGraph,
    target: Path,
    settings: QuantizeSettings,
    ranges: dict[str, tuple[float, float]] | None = None,
) -> QuantizedFile:
    """Write one int8 file, and prove that what was to stay in float runs in float. `ranges`: see `insert_qdq`. Raises ExportError."""
    made = insert_qdq(prepared, settings, ranges, for_kernels=True)
    quantized, kept = made.quantized, made.kept
    surgery.normalise_by_rows(quantized)
    _finish(quantized, target, prepared.runtime.contract, settings.isa, prepared.opset, kept)
    saved = surgery.check(target, opset=prepared.opset)
    if kept:
        _prove_float(target)
    size, nodes = target.stat().st_size, surgery.op_counts(saved)
    return QuantizedFile(
        settings.isa,
        settings.activations,
        "int8",
        settings.reduce_range,
        settings.per_channel,
        len(prepared.images),
        size,
        nodes,
        kept,
    )


def _lay_out(
    model: onnx.ModelProto, steps: tuple[str, ...], settings: QuantizeSettings, kept: tuple[str, ...]
) -> dict[str, str]:
    """Lay the graph out as the target's kernels want it; returns its new tensors with the known ones of equal values.

    Measured on x86 only, so others keep the plain one; a stem that stays in float keeps its three channels, which float kernels like better.
    """
    if not settings.isa.startswith("x86"):
        return {}
    stem = layers.layers(model)[0].name
    return kernel_layout.apply(model, tuple(step for step in steps if step != kernel_layout.FOURS or stem not in kept))[
        0
    ]


def _with_qdq(
    model: onnx.ModelProto, ranges: dict[str, tuple[float, float]], settings: QuantizeSettings, exclude: tuple[str, ...]
) -> onnx.ModelProto:
    """onnxruntime's quantiser, given our ranges."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    own = onnx.ModelProto()
    own.CopyFrom(model)
    numbers = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in calibration.with_fused(ranges, own).items()
    }
    with quiet():
        quantizer = QDQQuantizer(
            own,
            settings.per_channel,
            settings.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if settings.activations == "int8" else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, numbers),
            [],
            list(exclude),
            # Every type that it knows: naming a few leaves Clip out, and the range before a ReLU6 (seen up to 373) is quantised
            # instead of [0, 6].
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _prove_float(target: Path) -> None:
    """Raise ExportError, and remove the file, where the session quantises a layer again that the file has in float."""
    again = audit(target).requantised
    if again:
        target.unlink()
        raise ExportError(
            f"{target.name}: {', '.join(again)} should stay in float, but onnxruntime quantises "
            f"{'it' if len(again) == 1 else 'them'} again when it loads the file; leave {'it' if len(again) == 1 else 'them'} out of float_layers"
        )


def _before_first_layer(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that only prepare pixels: they read nothing that a layer with weights has touched."""
    touched: set[str] = set()
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") or touched.intersection(node.input):
            touched.update(node.output)
        else:
            names.append(node.name)
    return names


def _float_logits(model: onnx.ModelProto) -> None:
    """Remove the Q/DQ pair behind the last layer: 256 levels of logits would only add ties; the integer kernel can answer in float32."""
    behind = surgery.producers(model.graph)
    dequantize = behind[OUTPUT]
    if dequantize.op_type != "DequantizeLinear":
        return
    quantize_node = behind.get(dequantize.input[0])
    last = (
        behind.get(quantize_node.input[0])
        if quantize_node is not None and quantize_node.op_type == "QuantizeLinear"
        else None
    )
    if last is None or quantize_node is None or len(surgery.consumers(model.graph)[last.output[0]]) != 1:
        return
    last.output[0] = OUTPUT
    model.graph.node.remove(quantize_node)
    model.graph.node.remove(dequantize)


def _finish(
    model: onnx.ModelProto, target: Path, contract: Contract, isa: str, opset: int, kept: tuple[str, ...]
) -> None:
    if surgery.opset_of(model) != opset:
        raise ExportError(f"{target.name}: quantisation changed opset {opset} to {surgery.opset_of(model)}")
    metadata = {
        **contract.to_metadata(),
        METADATA_PREFIX + "target": json.dumps(isa),
        **({FLOAT_LAYERS: json.dumps(kept)} if kept else {}),
    }
    surgery.clean(model, metadata, made_by=contract.made_by)
    target.parent.mkdir(parents=True, exist_ok=True)
    surgery.save(model, target)
