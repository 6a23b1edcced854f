"""The records of quantisation: settings, the prepared float graph, its QDQ form, and the written file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from export.int8.calibrate import Statistics
from export.int8.range_choice import MIN_PERCENTILE
from export.runtime import Model


@dataclass(frozen=True)
class QuantizeSettings:
    """How a float file becomes int8.

    Attributes:
        isa: the instruction set, one of TARGETS.
        per_channel: whether weights have one scale a channel.
        calibrate: minmax, percentile or entropy.
        percentile: of `calibrate: percentile` only.
        float_layers: node names, `first` or `last`.
        bias_correction: whether biases are corrected for the shift of the mean.
    """

    isa: str
    per_channel: bool = True
    calibrate: str = "minmax"
    percentile: float = MIN_PERCENTILE
    float_layers: tuple[str, ...] = ()
    bias_correction: bool = False

    @property
    def activations(self) -> str:
        """Return the type of the activations: x86 kernels need uint8, ARM kernels int8."""
        return "int8" if self.isa == "arm64" else "uint8"

    @property
    def reduce_range(self) -> bool:
        """Return whether weights have 7 bits: vpmaddubsw adds pairs of products with saturation."""
        return self.isa == "x86-avx2"


@dataclass(frozen=True)
class QuantizedFile:
    """What was written.

    `nodes` counts the file's nodes by operator; `float_layers` are the names of the layers seen to run in float.
    """

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
    """A float file ready to be quantised in several ways.

    Attributes:
        model: its graph, with shapes.
        runtime: the float file itself.
        images: the calibration images, uint8 (N, H, W, 3).
        statistics: of its activations on these images.
        opset: of the file.
        layout: steps of `export.int8.kernel_layout` that change no answer.
    """

    model: onnx.ModelProto
    runtime: Model
    images: np.ndarray
    statistics: Statistics
    opset: int
    layout: tuple[str, ...]


@dataclass(frozen=True)
class QdqGraphs:
    """The two graphs behind an int8 file, before its pixels are normalised by rows.

    Attributes:
        model: the float graph.
        quantized: its QDQ form.
        ranges: what the quantiser was given.
        sharing: tensors that take another tensor's range.
        levels: the largest integer of a weight.
        kept: the layers that stay in float.
    """

    model: onnx.ModelProto
    quantized: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    sharing: dict[str, str]
    levels: int
    kept: tuple[str, ...]
