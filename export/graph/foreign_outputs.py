"""The outputs of another project's ONNX file: which of them gives a value for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from export.graph.surgery import producers, replace
from export.runtime import SESSION_ERRORS, ExportError, session_options

BATCH = 16
MAX_ANCESTORS = 10_000


@dataclass(frozen=True)
class Output:
    """An output (M, K) on the images.

    `cast`: it is not float32. `reshape`: it has more than two dimensions in the file, or one.
    """

    name: str
    values: NDArray[np.float32]
    layout: str
    cast: bool
    reshape: bool
    notes: tuple[str, ...]


def run(
    model: ModelProto, layout: str, pixels: NDArray[np.float32], names: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    """Return tensors of a file for images (M, 3, S, S), by name; a tensor that is not an array is left out.

    Raises one of onnxruntime's errors.
    """
    extended = ModelProto()
    extended.CopyFrom(model)
    # A new list: an output that is in it already keeps its type.
    known = {value.name: value for value in extended.graph.output}
    replace(extended.graph.output, [known.get(name) or ValueInfoProto(name=name) for name in names])
    session = onnxruntime.InferenceSession(
        extended.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    value = session.get_inputs()[0]
    fixed = value.shape[0] if isinstance(value.shape[0], int) else None
    step = fixed or BATCH
    images = np.ascontiguousarray(pixels if layout == "float_nchw" else pixels.transpose(0, 2, 3, 1))
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for start in range(0, len(images), step):
        part = images[start : start + step]
        short = (fixed or len(part)) - len(part)
        fed = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
        for name, found in zip(names, session.run(list(names), {value.name: fed}), strict=True):
            if isinstance(found, np.ndarray):
                rows = found[None] if len(fed) == 1 and found.shape[:1] != (1,) else found
                parts[name].append(rows[: len(part)])
    sides = {name: {one.shape[1:] for one in found} for name, found in parts.items()}
    return {name: np.concatenate(found) for name, found in parts.items() if found and len(sides[name]) == 1}


def choose_output(
    path: Path,
    model: ModelProto,
    layouts: Sequence[str],
    pixels: NDArray[np.float32],
    outputs: int | None,
    output: str | None,
) -> Output:
    """Return the output that has a value for each class.

    Args:
        path: The file, for messages.
        model: The file's content.
        layouts: Layouts that the input's shape allows; the first one that runs is taken.
        pixels: Images as the file takes them, (M, 3, S, S).
        outputs: The expected number of values; None: any.
        output: A tensor that the recipe names; None: the only one of the right shape.

    Raises:
        ExportError: No output fits, or the recipe must say which one is meant.
    """
    names = [value.name for value in model.graph.output]
    behind = _before_maps(model)
    asked = [_named(path, model, output, behind)] if output is not None else [behind.get(name, name) for name in names]
    layout, found = _first_run(path, model, layouts, pixels, list(dict.fromkeys(asked)))
    rows = {name: _classes(values) for name, values in found.items() if values.dtype.kind == "f"}
    fits = {name: count for name, count in rows.items() if count is not None and count > 1}
    fits = {name: count for name, count in fits.items() if count == outputs} or fits
    if not fits:
        raise ExportError(f"{path}: {_no_logits(model, found, names, output)}")
    name, notes = _only(path, model, list(fits))
    shape = found[name].shape
    if len(shape) != 2:
        notes.append(f"its output {name!r} is ({', '.join(['N', *map(str, shape[1:])])}), read as (N, {fits[name]})")
    others = [one for one in names if one != name]
    if others and not notes and output is None:
        notes.append(f"its output {name!r} is taken (of {', '.join(names)})")
    if output is not None:
        notes.append(f"{name!r} is taken as its output")
    values = found[name].reshape(len(pixels), fits[name]).astype(np.float32)
    in_file = [len(value.type.tensor_type.shape.dim) for value in model.graph.output if value.name == name]
    reshape = len(shape) != 2 or in_file == [1]
    return Output(name, values, layout, found[name].dtype != np.float32, reshape, tuple(notes))


def _first_run(
    path: Path, model: ModelProto, layouts: Sequence[str], pixels: NDArray[np.float32], names: list[str]
) -> tuple[str, dict[str, NDArray[np.generic]]]:
    """Run the file in the first layout that it takes."""
    for layout in layouts:
        try:
            return layout, run(model, layout, pixels, names)
        except SESSION_ERRORS as error:
            failed = error
    raise ExportError(
        f"{path}: onnxruntime {onnxruntime.__version__} cannot run this file: {str(failed).splitlines()[0]}"
    ) from failed


def _named(path: Path, model: ModelProto, output: str, behind: dict[str, str]) -> str:
    """Return the tensor that the recipe names: an output, or one inside the file."""
    known = [value.name for value in model.graph.output]
    if output in known or output in producers(model.graph):
        return behind.get(output, output)
    raise ExportError(f"{path}: has no tensor {output!r}; its outputs are {', '.join(known)}")


def _before_maps(model: ModelProto) -> dict[str, str]:
    """Return the tensor before each output that is a list of dictionaries, as scikit-learn's converters write it."""
    made = producers(model.graph)
    nodes = {value.name: made.get(value.name) for value in model.graph.output}
    return {name: node.input[0] for name, node in nodes.items() if node is not None and node.op_type == "ZipMap"}


def _classes(values: NDArray[np.generic]) -> int | None:
    """Return K of an array (N, K) with any number of sides 1; None for another."""
    longer = [side for side in values.shape[1:] if side != 1]
    return None if len(longer) > 1 else (longer[0] if longer else 1)


def _no_logits(model: ModelProto, found: dict[str, NDArray[np.generic]], names: list[str], output: str | None) -> str:
    """Say why no output has a value for each class, and what could be named instead."""
    shown = "; ".join(f"{name!r} is {values.dtype} {values.shape}" for name, values in found.items())
    whole = [name for name, values in found.items() if values.dtype.kind in "iu"]
    if whole and output is None:
        labels = whole[0]
        made = producers(model.graph)
        before = next((made[one] for one in (labels, *ancestors(model, labels, 3)) if one in made), None)
        while before is not None and before.op_type not in ("ArgMax", "TopK"):
            before = made.get(before.input[0]) if before.input else None
        named = f"; before it stands {before.input[0]!r}: output: {before.input[0]}" if before is not None else ""
        return (
            f"gives labels ({labels!r}), not a value for each class, so it cannot teach; export it without its "
            f"ArgMax{named}"
        )
    single = any(_classes(values) == 1 for values in found.values() if values.dtype.kind == "f")
    if single:
        return f"gives one value an image ({shown}), expected one for each class; export it with one output a class"
    return f"no output is float (N, K): {shown or ', '.join(names)}; name a tensor that is: output"


def _only(path: Path, model: ModelProto, fits: list[str]) -> tuple[str, list[str]]:
    """Return the only output that fits, or the one that is computed from all others."""
    if len(fits) == 1:
        return fits[0], []
    before = {name: set(ancestors(model, name, MAX_ANCESTORS)) for name in fits}
    last = [name for name in fits if all(other in before[name] for other in fits if other != name)]
    if len(last) == 1:
        rest = ", ".join(repr(name) for name in fits if name != last[0])
        return last[0], [f"its output {last[0]!r} is taken, which is computed from {rest} (output takes another)"]
    raise ExportError(
        f"{path}: has several outputs of this shape: {', '.join(fits)}; say which gives the logits: output: {fits[-1]}"
    )


def ancestors(model: ModelProto, name: str, nodes: int) -> list[str]:
    """Return the tensors that a tensor is computed from, the nearest first, through at most so many nodes."""
    made, waiting, found = producers(model.graph), [name], list[str]()
    seen = {name}
    while waiting and nodes:
        node = made.get(waiting.pop(0))
        if node is None:
            continue
        nodes -= 1
        for one in node.input:
            if one and one not in seen and one in made:
                seen.add(one)
                found.append(one)
                waiting.append(one)
    return found
