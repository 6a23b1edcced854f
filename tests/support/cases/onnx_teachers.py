"""ONNX files as people have them: a linear classifier of the mean colour, with three classes, in many forms.

Each form was met in public. `write` makes all of them; `build` makes another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

CLASSES, SIZE = 3, 32
WEIGHTS = np.random.default_rng(0).normal(size=(CLASSES, 3)).astype(np.float32)
F32 = TensorProto.FLOAT
node = helper.make_node


def value(name: str, shape: Sequence[object] = ("N", CLASSES), kind: int = F32) -> ValueInfoProto:
    """Return the description of an input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def build(
    tail: Sequence[NodeProto] = (),
    outputs: Sequence[ValueInfoProto] | None = None,
    *,
    weights: NDArray[np.float32] = WEIGHTS,
    constants: dict[str, NDArray[np.generic]] | None = None,
    shape: Sequence[object] = ("N", 3, SIZE, SIZE),
    last: bool = False,
    kind: int = F32,
    opset: int = 17,
    domains: Sequence[onnx.OperatorSetIdProto] = (),
) -> ModelProto:
    """Return a file that computes the vector `v` and the logits `y0` of its input, and then `tail`.

    Args:
        tail: Nodes behind `y0`.
        outputs: None: the last node's.
        weights: (K, 3).
        constants: Stored tensors that `tail` reads.
        shape: Of the input.
        last: Whether the channels come last in the input, as Keras has them.
        kind: The type of the numbers.
        opset: Of the file.
        domains: Further operator sets.
    """
    source = "input_1" if last else "x"
    stored = {"w": weights.astype(helper.tensor_dtype_to_np_dtype(kind)), **(constants or {})}
    nodes = [node("Transpose", ["input_1"], ["x"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        node("GlobalAveragePool", ["x"], ["g"]),
        node("Flatten", ["g"], ["v"]),
        node("Gemm", ["v", "w"], ["y0"], transB=1),
        *tail,
    ]
    answers = list(outputs or [value(nodes[-1].output[0], ("N", len(weights)), kind)])
    graph = helper.make_graph(
        nodes,
        "teacher",
        [value(source, shape, kind)],
        answers,
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=8)


def zipmap() -> ModelProto:
    """Return a file with labels and a list of dictionaries, as scikit-learn's converters write it."""
    maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(F32, []))
    return build(
        [
            node("ArgMax", ["y0"], ["label"], axis=1, keepdims=0),
            node("ZipMap", ["y0"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ],
        [
            value("label", ("N",), TensorProto.INT64),
            helper.make_value_info("probabilities", helper.make_sequence_type_proto(maps)),
        ],
        domains=[helper.make_opsetid("ai.onnx.ml", 1)],
    )


FORMS: dict[str, Callable[[], ModelProto]] = {
    "plain": build,
    "softmax": lambda: build([node("Softmax", ["y0"], ["y"], axis=1)]),
    "log_softmax": lambda: build([node("LogSoftmax", ["y0"], ["y"], axis=1)]),
    "two_outputs": lambda: build(outputs=[value("v", ("N", 3)), value("y0")]),
    "n_k_1_1": lambda: build(
        [node("Unsqueeze", ["y0", "axes"], ["y"])],
        [value("y", ("N", CLASSES, 1, 1))],
        constants={"axes": np.array([2, 3])},
    ),
    "zipmap": zipmap,
    "nan": lambda: build(
        [node("Sub", ["y0", "big"], ["a"]), node("Sqrt", ["a"], ["y"])],
        constants={"big": np.array(1e9, np.float32)},
    ),
    "external": lambda: build(shape=(1, 3, SIZE, SIZE)),
    "keras_like": lambda: build(
        [node("Softmax", ["y0"], ["y"], axis=1)], shape=("N", SIZE, SIZE, 3), last=True, opset=13
    ),
}


def save_apart(model: ModelProto, path: Path) -> None:
    """Write a file whose weights are in a second file beside it."""
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def write(folder: Path) -> None:
    """Write every form into a folder."""
    for name, form in FORMS.items():
        path = folder / f"{name}.onnx"
        save_apart(form(), path) if name == "external" else onnx.save(form(), str(path))
