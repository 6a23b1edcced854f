"""An ONNX file of another project, written so that it has one output: logits (N, K).

Files give probabilities, several outputs, (N, K, 1, 1), or keep their weights in a second file. What is done is decided
by running the file on images, so that a Softmax is recognised however it is written.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.graph.foreign_model import checked_file, layouts_of, open_session
from export.graph.foreign_outputs import Output, ancestors, choose_output, run
from export.graph.onnx_file import opset_of
from export.graph.surgery import producers, prune, replace
from export.runtime import SESSION_ERRORS, ExportError, UnavailableError

SMALLEST_PROBABILITY = 1e-7  # about float32's precision: the logarithm of less is noise, or minus infinity
SUM_TOLERANCE = 5e-3  # of probabilities in half precision
SAME_TOLERANCE = 2e-3  # between the file's probabilities and those of the logits before them
SEARCHED_NODES = 16  # before the output, for the logits behind probabilities
COMPARED_IMAGES = 16


@dataclass(frozen=True)
class ForeignLogits:
    """What was done to a file.

    `notes`: sentences, empty if it was copied byte for byte. `finite`: which of the images have finite logits.
    """

    notes: tuple[str, ...]
    finite: NDArray[np.bool_]


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside an ONNX file that hold its weights, sorted; none if it is no ONNX file.

    Raises:
        UnavailableError: One of them is missing.
        ExportError: One of them is outside the file's folder.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf's own error, OSError: `write_logits` reports what is wrong
        return ()
    found = dict[str, None]()
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            found |= {entry.value: None for entry in tensor.external_data if entry.key == "location"}
    for name in found:
        inside = (path.parent / name).resolve().is_relative_to(path.parent.resolve())
        if not inside:
            raise ExportError(f"{path}: its weights are in {name}, outside its folder; save it as one file")
        if not (path.parent / name).is_file():
            raise UnavailableError(
                f"{path}: its weights are in {name}, which is not beside it; copy it to {path.parent}"
            )
    return tuple(path.parent / name for name in sorted(found))


def _tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    """Return every stored tensor of a graph and of the graphs in its nodes."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                found += _tensors(inner)
    return found


def write_logits(
    source: Path,
    target: Path,
    *,
    pixels: NDArray[np.float32],
    outputs: int | None,
    output: str | None = None,
) -> ForeignLogits:
    """Write a file that answers with logits (N, K); one that does so already is copied byte for byte.

    Args:
        source: The file.
        target: The file to write.
        pixels: Images as the file takes them, (M, 3, S, S).
        outputs: How many values it must answer an image; None: any number.
        output: The recipe's `output`, a tensor of the file; None: the only one of the right shape.

    Raises:
        UnavailableError: There is no such file.
        ExportError: The file does not fit.
    """
    checked_file(source)
    outside = external_files(source)
    if not outside:
        open_session(source)  # refuses what is no ONNX file
    model = _load(source)
    notes = [f"its weights are in {', '.join(file.name for file in outside)}, too"] if outside else []
    notes += _take_float32(source, model)
    layouts = layouts_of(source, model, pixels.shape[-1])
    chosen = choose_output(source, model, layouts, pixels, outputs, output)
    if layouts[0] != chosen.layout:
        notes.append("its input is (N, S, S, 3)")
        _set_shape(model, pixels.shape[-1])
    notes += chosen.notes
    steps, kind = _to_logits(source, model, chosen, pixels)
    notes += kind
    if not notes and not steps.needed:
        shutil.copyfile(source, target)
    else:
        _write(source, target, model, steps)
    return ForeignLogits(tuple(notes), np.asarray(np.isfinite(chosen.values).all(axis=1)))


def _load(path: Path) -> ModelProto:
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's, onnx's and the file system's errors share no base class
        raise ExportError(f"{path}: cannot be read with its weights ({str(error).splitlines()[0]})") from error


def _take_float32(path: Path, model: ModelProto) -> list[str]:
    """Let a file with an input of half precision take float32."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ExportError(f"{path}: expected one input, found {len(inputs)} ({names})")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT16:
        return []
    name, inner = inputs[0].name, f"{inputs[0].name}/as_is"
    for node in model.graph.node:
        node.input[:] = [inner if one == name else one for one in node.input]
    cast = helper.make_node("Cast", [name], [inner], to=kind.elem_type, name=f"{inner}/cast")
    replace(model.graph.node, [cast, *model.graph.node])
    kind.elem_type = TensorProto.FLOAT
    return ["its input has half precision"]


def _set_shape(model: ModelProto, size: int) -> None:
    """Write down the shape of an input that names none, with the channels last."""
    stored = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in stored)
    for dim, side in zip(value.type.tensor_type.shape.dim[1:], (size, size, 3), strict=True):
        dim.dim_value = side


@dataclass(frozen=True)
class _Steps:
    """How logits come from a tensor of the file: `log`: of probabilities; `centre`: less their mean."""

    tensor: str
    classes: int
    needed: bool
    cast: bool = False
    reshape: bool = False
    log: bool = False
    centre: bool = False


def _to_logits(path: Path, model: ModelProto, chosen: Output, pixels: NDArray[np.float32]) -> tuple[_Steps, list[str]]:
    """Return how logits come from the chosen output, and what that is called."""
    values = chosen.values
    kind = _kind(values)
    alone = [value.name for value in model.graph.output] == [chosen.name]
    plain = _Steps(
        chosen.name,
        values.shape[1],
        needed=not alone or chosen.cast or chosen.reshape,
        cast=chosen.cast,
        reshape=chosen.reshape,
    )
    if kind is None:
        return plain, []
    if kind == "sigmoid" and not _alone_as_together(model, chosen, pixels):
        raise ExportError(
            f"{path}: its output {chosen.name!r} for an image depends on the other images of the batch: a Softmax over "
            "the wrong axis; name the tensor before it: output"
        )
    before = _logits_before(model, chosen, pixels, kind)
    what = {"softmax": "probabilities", "log": "log-probabilities", "sigmoid": "a sigmoid for each class"}[kind]
    said = f"its output {chosen.name!r} is {what}"
    if before is not None:
        steps = _Steps(before.name, values.shape[1], needed=True, cast=before.cast, reshape=before.reshape)
        return steps, [f"{said}: the logits before it, {before.name!r}, are taken"]
    if kind == "sigmoid":
        return plain, [f"{said}, as it seems (0 to 1), and is taken as it is; name its logits if it has some: output"]
    steps = _Steps(
        plain.tensor, plain.classes, True, cast=plain.cast, reshape=plain.reshape, log=kind == "softmax", centre=True
    )
    how = f"the logarithm (of at least {SMALLEST_PROBABILITY:g}), less its mean over the classes, is"
    return steps, [
        f"{said}: {how if kind == 'softmax' else 'less their mean over the classes, they are'} taken as logits"
    ]


def _kind(values: NDArray[np.float32]) -> str | None:
    """Return what answers (M, K) on real images are: softmax, log (of it), sigmoid; None: logits."""
    if not len(values) or np.isnan(values).any() or np.isposinf(values).any():
        return None
    wide = values.astype(np.float64)
    between = wide.min() >= -1e-6 and wide.max() <= 1 + SUM_TOLERANCE
    if between and np.abs(wide.sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        return "softmax"
    if wide.max() <= SUM_TOLERANCE and np.abs(np.log(np.exp(wide).sum(axis=1))).max() <= SUM_TOLERANCE:
        return "log"
    return "sigmoid" if between and wide.std() > 0 else None


def _alone_as_together(model: ModelProto, chosen: Output, pixels: NDArray[np.float32]) -> bool:
    """Return whether an image gets the same answer alone as among others."""
    alone = run(model, chosen.layout, pixels[:1], [chosen.name])[chosen.name].reshape(-1)
    return bool(np.abs(alone.astype(np.float32) - chosen.values[0]).max() <= SAME_TOLERANCE)


def _logits_before(model: ModelProto, chosen: Output, pixels: NDArray[np.float32], kind: str) -> Output | None:
    """Find the tensor whose Softmax (or sigmoid) the output is, the farthest from the output; None if there is none.

    Images of less contrast are looked at, too: saturated answers are those of many tensors.
    """
    real = pixels[:COMPARED_IMAGES]
    looked = np.concatenate([real, 0.1 * real, 0.01 * real])
    names = ancestors(model, chosen.name, SEARCHED_NODES)
    try:
        found = run(model, chosen.layout, looked, [chosen.name, *names])
    except SESSION_ERRORS:  # not every tensor inside a file can be an output
        return None
    wanted = found[chosen.name].reshape(len(looked), -1).astype(np.float64)
    wanted = np.exp(wanted) if kind == "log" else wanted
    for name in reversed(names):
        values = found.get(name)
        if values is None or values.dtype.kind != "f" or values.size != wanted.size or len(values) != len(looked):
            continue
        rows = values.reshape(wanted.shape).astype(np.float64)
        if np.isfinite(rows).all() and np.abs(_answers(rows, kind) - wanted).max() <= SAME_TOLERANCE:
            logits = values.reshape(wanted.shape).astype(np.float32)
            return Output(name, logits, chosen.layout, values.dtype != np.float32, values.ndim != 2, ())
    return None


def _answers(rows: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    if kind == "sigmoid":
        result: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(rows, -500, 500)))
        return result
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    result = powers / powers.sum(axis=1, keepdims=True)
    return result


def _write(source: Path, target: Path, model: ModelProto, steps: _Steps) -> None:
    """Write the file with the logits as its only output, in one file."""
    graph, name = model.graph, steps.tensor
    taken = {*producers(graph), *(tensor.name for tensor in graph.initializer)}

    def add(operator: str, inputs: list[str], **attributes: Any) -> str:
        result = f"logits/{operator.lower()}"
        while result in taken:
            result += "_"
        taken.add(result)
        graph.node.append(helper.make_node(operator, inputs, [result], name=result, **attributes))
        return result

    def constant(label: str, value: NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"logits/{label}"))
        return f"logits/{label}"

    name = add("Cast", [name], to=TensorProto.FLOAT) if steps.cast else name
    if steps.reshape:
        name = add("Reshape", [name, constant("shape", np.array([-1, steps.classes], np.int64))])
    if steps.log:
        name = add("Log", [add("Max", [name, constant("smallest", np.array(SMALLEST_PROBABILITY, np.float32))])])
    if steps.centre:
        if opset_of(model) >= 18:
            mean = add("ReduceMean", [name, constant("axes", np.array([1], np.int64))], keepdims=1)
        else:
            mean = add("ReduceMean", [name], axes=[1], keepdims=1)
        name = add("Sub", [name, mean])
    replace(graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, steps.classes])])
    prune(graph)
    try:
        target.write_bytes(model.SerializeToString())
    except Exception as error:  # protobuf's own error, from 2 GiB on
        raise ExportError(f"{source}: is too large to be written as one file; export its logits alone") from error
