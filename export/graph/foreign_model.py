"""An ONNX file of another project: its input, its output and its size, checked before anything relies on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from export.graph.layers import layers
from export.graph.onnx_file import opset_of
from export.runtime import SESSION_ERRORS, ExportError, UnavailableError, session_options


@dataclass(frozen=True)
class ForeignModel:
    """What is known of a foreign file.

    `layout` is float_nchw or float_nhwc; `macs` is None if the file's shapes cannot be inferred.
    """

    layout: str
    outputs: int
    opset: int
    ir_version: int
    nodes: int
    params: int
    macs: int | None


def fixed_image_size(path: Path) -> int | None:
    """Return the side in pixels of the images that the file takes.

    None if it takes any size, or if it is no such file (`inspect` reports why).
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, DecodeError):
        return None
    stored = {tensor.name for tensor in graph.initializer}
    for value in (value for value in graph.input if value.name not in stored):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for height, width, channels in ((2, 3, 1), (1, 2, 3)):
            if len(shape) == 4 and shape[channels] == 3 and shape[height] == shape[width] > 0:
                side: int = shape[height]
                return side
    return None


def inspect(path: Path, *, image_size: int, outputs: int | None) -> ForeignModel:
    """Check that a file has one float input for images, one output (N, outputs), and no second file.

    Args:
        path: the .onnx file.
        image_size: side in pixels of the images that it must take.
        outputs: how many values it must answer an image; None: any number.

    Raises:
        UnavailableError: there is no such file.
        ExportError: the file does not fit.
    """
    checked_file(path)
    session = open_session(path)  # refuses what is no ONNX file
    model = onnx.load(str(path), load_external_data=False)
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ExportError(
            f"{path}: keeps its weights in other files ({outside[0]} ...); save it as one file: "
            "onnx.save(onnx.load(PATH), ONE_FILE)"
        )
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = [value.name for value in (*inputs, *model.graph.output)]
        raise ExportError(
            f"{path}: expected one input and one output, found {len(inputs)} and {len(model.graph.output)} "
            f"({', '.join(names)})"
        )
    layout = _layout(path, inputs[0], image_size)
    found = _answers(path, session, layout, image_size)
    if outputs is not None and found != outputs:
        fix = "it cannot teach a class that it does not know"
        if found > outputs:
            fix = "name them in their order in `classes`"
        raise ExportError(f"{path}: gives {found} values an image, but {outputs} classes are expected; {fix}")
    params = sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )
    return ForeignModel(
        layout=layout,
        outputs=found,
        opset=opset_of(model),
        ir_version=model.ir_version,
        nodes=len(model.graph.node),
        params=params,
        macs=_macs(model, inputs[0].name, layout, image_size),
    )


def _layout(path: Path, value: onnx.ValueInfoProto, size: int) -> str:
    """Return which of the two layouts the input's shape fits."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ExportError(
            f"{path}: its input {value.name!r} is {kind}, expected float (N, 3, {size}, {size}) or "
            f"(N, {size}, {size}, 3)"
        )
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    for layout, wanted in (("float_nchw", (3, size, size)), ("float_nhwc", (size, size, 3))):
        if len(shape) == 4 and all(have in (None, want) for have, want in zip(shape[1:], wanted, strict=True)):
            return layout
    found = ", ".join("?" if side is None else str(side) for side in shape)
    square = len(shape) == 4 and (shape[2] == shape[3] if shape[1] == 3 else shape[1] == shape[2] and shape[3] == 3)
    hint = "; leave image_size out, the file has its own" if square else ""
    raise ExportError(
        f"{path}: its input is ({found}), expected (N, 3, {size}, {size}) or (N, {size}, {size}, 3){hint}"
    )


def checked_file(path: Path) -> None:
    """Raise UnavailableError if there is no such file."""
    if not path.is_file():
        raise UnavailableError(f"{path}: no such file")


def layouts_of(path: Path, model: onnx.ModelProto, size: int) -> tuple[str, ...]:
    """Return the layouts that the shape of a file's input allows, for images of this side.

    Raises ExportError if there is none.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in stored)
    shape = value.type.tensor_type.shape.dim
    if len(shape) == 4 and not any(dim.HasField("dim_value") for dim in shape[1:]):
        return "float_nchw", "float_nhwc"
    return (_layout(path, value, size),)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a file in onnxruntime. Raises ExportError with onnxruntime's reason."""
    try:
        return onnxruntime.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        raise ExportError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot load this file: {str(error).splitlines()[0]}"
        ) from error


def _answers(path: Path, session: onnxruntime.InferenceSession, layout: str, size: int) -> int:
    """Return how many values one image gives, by running it."""
    try:
        value = session.get_inputs()[0]
        count = value.shape[0] if isinstance(value.shape[0], int) else 1
        shape = (count, 3, size, size) if layout == "float_nchw" else (count, size, size, 3)
        (answer,) = session.run(None, {value.name: np.zeros(shape, np.float32)})
    except SESSION_ERRORS as error:
        raise ExportError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot run this file: {str(error).splitlines()[0]}"
        ) from error
    if answer.ndim != 2 or len(answer) != count or answer.dtype != np.float32:
        raise ExportError(f"{path}: its output is {answer.dtype} {answer.shape}, expected float logits (N, K)")
    return int(answer.shape[1])


def _macs(model: onnx.ModelProto, name: str, layout: str, size: int) -> int | None:
    """Return the multiply-accumulates of one image: convolutions and matrix products with stored weights."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    shape = (1, 3, size, size) if layout == "float_nchw" else (1, size, size, 3)
    for value in fixed.graph.input:
        if value.name == name:
            for dim, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = side
    inferred = onnx.shape_inference.infer_shapes(fixed).graph
    sides = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in model.graph.initializer}
    total = 0
    for node in layers(model):
        out, weight = sides.get(node.output[0]), weights[node.input[1]]
        if not out or 0 in out:
            return None
        if node.op_type == "Conv":
            total += int(np.prod(out)) * int(np.prod(weight[1:]))
        elif node.op_type == "ConvTranspose":
            return None
        else:
            total += int(np.prod(out)) * int(np.prod(weight)) // out[-1]
    return total
