"""A file's graph as a torch module that can be trained: the float graph, or its int8 form with fake quantisation.

Where the quantiser puts a QuantizeLinear / DequantizeLinear pair, the module rounds within a learned range. Weights and
biases are rounded as the quantiser will round them. Both forms hold the same float weights under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from export.graph import layers, surgery
from export.int8.qat.fake_quant import (
    quantize_activation,
    quantize_bias,
    quantize_weight,
    scale_and_zero_point,
    weight_scale,
)
from export.int8.qat.operators import Value, attributes_of, constant, operator
from export.int8.quantize import QdqGraphs
from export.runtime import OUTPUT, ExportError

# Suffixes of the quantiser.
QUANTIZED_SUFFIX, SCALE_SUFFIX = "_quantized", "_scale"

Run = Callable[[Sequence[Value]], Tensor | Sequence[Tensor]]


class Range(nn.Module):
    """The learned range of an activation: [low, high] on the integers `least` to `most`.

    Each end is the calibrated one times e^parameter, so an end at zero stays there, and weight decay pulls towards
    calibration.
    """

    calibrated: Tensor

    def __init__(self, ends: tuple[float, float], least: int, most: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(2))
        self.register_buffer("calibrated", torch.tensor(ends, dtype=torch.float32), persistent=False)
        self.least, self.most = least, most

    def ends(self) -> Tensor:
        """Return (low, high), float32 (2,)."""
        return self.calibrated * torch.exp(self.change)

    def scale(self) -> Tensor:
        """Return the step between two levels, without gradient."""
        low, high = self.ends().detach()
        return scale_and_zero_point(low, high, self.least, self.most)[0]

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.ends()
        return quantize_activation(x, low, high, self.least, self.most)


@dataclass(frozen=True)
class _Step:
    """One node; `dead` are tensors that nobody reads behind it."""

    run: Run
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...]


class Simulation(nn.Module):
    """A graph as a module: normalised pixels float32 (N, 3, H, W) to logits (N, K)."""

    def __init__(
        self, model: ModelProto, pairs: QdqGraphs | None = None, *, shown: Mapping[str, str] | None = None
    ) -> None:
        """Build the module.

        Args:
            model: the float graph, whose weights become the parameters.
            pairs: its int8 form; None: the float network.
            shown: {"pooled": tensor} makes the module `taps.pooled`, through which that tensor passes as its readers
                see it.

        Raises:
            ExportError: an operator cannot be trained, or a tensor is not in the graph.
        """
        super().__init__()
        self._pairs = pairs
        chosen = (model if pairs is None else pairs.quantized).graph
        tensors = layers.stored(model)
        names = dict.fromkeys(name for node in layers.layers(model) for name in node.input[1:] if name in tensors)
        self.weights = nn.ParameterList(_parameter(numpy_helper.to_array(tensors[name])) for name in names)
        self._weights = dict(zip(names, range(len(names)), strict=True))
        self._constants: dict[str, str] = {}
        self._shapes: dict[str, Tensor] = {}
        self._indices = {node.input[1] for node in chosen.node if node.op_type == "Gather"}
        for tensor in chosen.initializer:
            if tensor.name not in self._weights:
                self._keep(tensor.name, numpy_helper.to_array(tensor))
        self.ranges = nn.ModuleList()
        # By tensor.
        self._ranges: dict[str, Range] = {}
        # By output of a QuantizeLinear: its range, and the scale in the file.
        self._quantizers: dict[str, tuple[Range, float]] = {}
        # By output of a DequantizeLinear of an activation: its range, and a factor on its scale.
        self._dequantizers: dict[str, tuple[Range, float]] = {}
        # By output of a DequantizeLinear of a weight: its name and the axis of its channels.
        self._rounded: dict[str, tuple[str, int | None]] = {}
        self._layer_of = {
            name: (node.input[0], node.input[1])
            for node in chosen.node
            for name in node.input[2:3]
            if node.op_type in layers.LAYERS
        }
        self.entry = surgery.normalised_pixels(chosen)
        self._steps = self._plan(chosen)
        self.taps = nn.ModuleDict({name: nn.Identity() for name in shown or {}})
        self._taps_of: dict[str, list[str]] = {}
        for tap, tensor in (shown or {}).items():
            self._taps_of.setdefault(self._as_read(chosen, tap, tensor), []).append(tap)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tensors(pixels, (OUTPUT,))[OUTPUT]

    def tensors(self, pixels: Tensor, kept: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the graph's tensors by name: those in `kept`, or all of them (None)."""
        values: dict[str, Tensor] = {self.entry: pixels}
        for step in self._steps:
            found = step.run([self._value(name, values) for name in step.inputs])
            for name, value in zip(step.outputs, (found,) if isinstance(found, Tensor) else found, strict=True):
                for tap in self._taps_of.get(name, ()):
                    value = self.taps[tap](value)
                values[name] = value
            if kept is not None:
                for name in step.dead:
                    values.pop(name, None)
        return values if kept is None else {name: values[name] for name in kept}

    def learned_ranges(self) -> dict[str, tuple[float, float]]:
        """Return (low, high) of each quantised tensor, as float32 has them."""
        ends = {name: one.ends().tolist() for name, one in self._ranges.items()}
        return {name: (low, high) for name, (low, high) in ends.items()}

    def learned_weights(self) -> dict[str, np.ndarray]:
        """Return the layers' weights and biases, float32, by the name of the initializer."""
        return {name: self.weights[place].detach().cpu().contiguous().numpy() for name, place in self._weights.items()}

    def _keep(self, name: str, array: np.ndarray) -> None:
        # Python reads shapes and axes, so they stay on the CPU.
        if array.dtype == np.int64 and name not in self._indices:
            self._shapes[name] = constant(array)
            return
        self._constants[name] = f"constant{len(self._constants)}"
        self.register_buffer(self._constants[name], constant(array), persistent=False)

    def _constant(self, name: str) -> Tensor:
        if name in self._shapes:
            return self._shapes[name]
        found: Tensor = getattr(self, self._constants[name])
        return found

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Value:
        if not name:
            return None
        if name in values:
            return values[name]
        return self.weights[self._weights[name]] if name in self._weights else self._constant(name)

    def _plan(self, chosen: GraphProto) -> list[_Step]:
        """Return the nodes behind the normalised pixels and those that read stored integers, in order."""
        known, nodes = {self.entry}, []
        for node in chosen.node:
            if known.intersection(node.input) or node.op_type == "DequantizeLinear":
                known.update(node.output)
                nodes.append(node)
        last = {name: place for place, node in enumerate(nodes) for name in node.input}
        steps = []
        for place, node in enumerate(nodes):
            # The module computes a pair's scales itself.
            inputs = node.input[:1] if node.op_type in ("QuantizeLinear", "DequantizeLinear") else node.input
            dead = tuple(name for name in set(inputs) if last[name] == place)
            steps.append(_Step(self._runner(node), tuple(inputs), tuple(node.output), dead))
        return steps

    def _runner(self, node: NodeProto) -> Run:
        if node.op_type == "QuantizeLinear":
            return self._quantizer(node)
        if node.op_type == "DequantizeLinear":
            return self._dequantizer(node)
        compute, attributes = operator(node), attributes_of(node)
        return lambda inputs: compute(attributes, inputs)

    def _quantizer(self, node: NodeProto) -> Run:
        """Return a function that rounds to the levels of a learned range; it returns the level's float value."""
        assert self._pairs is not None
        tensor = node.input[1].removesuffix(SCALE_SUFFIX)
        owner = self._pairs.sharing.get(tensor, tensor)
        if owner not in self._ranges:
            limits = torch.iinfo(self._constant(node.input[2]).dtype)
            self._ranges[owner] = Range(self._pairs.ranges[owner], limits.min, limits.max)
            self.ranges.append(self._ranges[owner])
        found = self._ranges[owner]
        self._quantizers[node.output[0]] = found, float(self._constant(node.input[1]))
        return lambda inputs: found(inputs[0])

    def _dequantizer(self, node: NodeProto) -> Run:
        """Return what a DequantizeLinear computes.

        Behind a quantiser only a product is left to do; a layer's float weight or bias is rounded; other integers are
        constants.
        """
        source, output, scale = node.input[0], node.output[0], self._constant(node.input[1])
        name = source.removesuffix(QUANTIZED_SUFFIX)
        if source in self._quantizers:
            found, own = self._quantizers[source]
            factor = float(scale) / own  # not 1: a product with a scalar was taken out of the graph
            self._dequantizers[output] = found, factor
            return lambda inputs: (
                inputs[0] if factor == 1 else inputs[0] * factor  # type: ignore[operator,return-value]
            )
        if name in self._weights and self._constant(source).dtype == torch.int8:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            self._rounded[output] = name, axis if scale.ndim else None
            return lambda inputs: self._weight(output)
        if name in self._weights:
            return lambda inputs: self._bias(name, *self._layer_of[output])
        self._keep(output, ((self._constant(source).float() - self._constant(node.input[2]).float()) * scale).numpy())
        return lambda inputs: self._constant(output)

    def _weight_scale(self, output: str) -> Tensor:
        assert self._pairs is not None
        name, axis = self._rounded[output]
        return weight_scale(self.weights[self._weights[name]], self._pairs.levels, axis)

    def _weight(self, output: str) -> Tensor:
        assert self._pairs is not None
        return quantize_weight(
            self.weights[self._weights[self._rounded[output][0]]], self._weight_scale(output), self._pairs.levels
        )

    def _bias(self, name: str, x: str, weight: str) -> Tensor:
        """Round a bias to multiples of the scale of what it is added to: its layer's input's times its weight's."""
        found, factor = self._dequantizers[x]
        return quantize_bias(self.weights[self._weights[name]], found.scale() * factor * self._weight_scale(weight))

    def _as_read(self, chosen: GraphProto, tap: str, tensor: str) -> str:
        """Return the name of a tensor behind its quantiser, if it has one."""
        if tensor not in {name for step in self._steps for name in step.outputs}:
            raise ExportError(f"tap {tap!r}: the int8 graph has no tensor {tensor}: it was merged with its neighbour")
        readers = surgery.consumers(chosen)
        halves = [node.output[0] for node in readers.get(tensor, ()) if node.op_type == "QuantizeLinear"]
        behind = [
            node.output[0] for half in halves for node in readers.get(half, ()) if node.op_type == "DequantizeLinear"
        ]
        return behind[0] if behind else tensor


def _parameter(array: np.ndarray) -> nn.Parameter:
    value = constant(array.astype(np.float32))
    return nn.Parameter(value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value)
