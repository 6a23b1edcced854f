"""Activation statistics from real images, in constant memory: minimum and maximum, then a histogram of each activation.

Two passes go over the images, a batch at a time. Only the counts outlive a batch, so memory does not grow with the
number of images (onnxruntime's histogram calibrators keep every activation: 4.3 GB for 48 images). One collection
serves every calibrator.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from export.graph import surgery
from export.runtime import OUTPUT, SESSION_ERRORS, ExportError, Model, session_options

BINS = 2048
# Bytes of activations that are held at once.
BATCH_BYTES = 96 << 20
MAX_BATCH = 32
# Values counted at once; their indices stay in the processor's cache.
CHUNK = 1 << 18
# Part of the cache's key: raised when calibration counts otherwise.
VERSION = 1


@dataclass(frozen=True)
class Statistics:
    """What was seen of T activations.

    Attributes:
        names: of the tensors.
        low: float32 (T,), the smallest value.
        high: float32 (T,), the largest value.
        counts: int64 (T, BINS), histograms over [min(low, 0), max(high, 0)].
        zeros: int64 (T,), values that are exactly 0, which every quantisation represents exactly.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    zeros: np.ndarray


def collect(model: ModelProto, images: np.ndarray, runtime: Model, *, cache: Path | None = None) -> Statistics:
    """Return statistics of every float activation of a graph.

    Args:
        model: the float graph.
        images: uint8 (N, H, W, 3).
        runtime: turns images into the graph's input.
        cache: a folder. Its entries are keyed by the model's bytes, the images and what is done with them, so another
            student or other images never get an old range.

    Raises:
        ExportError: the graph cannot be run, or an activation is not finite.
    """
    stored = cache / f"{_key(model, images)}.npz" if cache is not None else None
    if stored is not None and (found := _load(stored)) is not None:
        return found
    made = _collect(model, images, runtime)
    if stored is not None:
        _save(stored, made)
    return made


def _collect(model: ModelProto, images: np.ndarray, runtime: Model) -> Statistics:
    names, batch = activations(model), _batch_size(model)
    session = _session(model, names)
    low, high = np.full(len(names), np.inf, np.float32), np.full(len(names), -np.inf, np.float32)
    for values in _batches(session, names, images, runtime, batch):
        for index, value in enumerate(values):
            low[index], high[index] = min(low[index], value.min()), max(high[index], value.max())
    for name, least, most in zip(names, low, high, strict=True):
        if not (np.isfinite(least) and np.isfinite(most)):
            raise ExportError(f"calibration: activation {name} is not finite on the calibration images")
    counts, zeros = np.zeros((len(names), BINS), np.int64), np.zeros(len(names), np.int64)
    grid = [histogram_range(float(least), float(most)) for least, most in zip(low, high, strict=True)]
    for values in _batches(session, names, images, runtime, batch):
        for index, value in enumerate(values):
            _count(value.ravel(), *grid[index], counts[index])
            zeros[index] += value.size - np.count_nonzero(value)
    return Statistics(names, low, high, counts, zeros)


def histogram_range(low: float, high: float) -> tuple[float, float]:
    """Return the range of a histogram, which always contains zero."""
    return min(low, 0.0), max(high, 0.0)


def _count(values: np.ndarray, low: float, high: float, counts: np.ndarray) -> None:
    """Add a histogram of float32 values (M,) to `counts`, in place."""
    scale = np.float32(BINS / (high - low)) if high > low else np.float32(0)
    for start in range(0, len(values), CHUNK):
        index = ((values[start : start + CHUNK] - np.float32(low)) * scale).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)  # the maximum itself belongs to the last bin
        counts += np.bincount(index, minlength=BINS)


def activations(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the float tensors that depend on the image, in the graph's order.

    What only a Clip or Relu reads is left out: one kernel computes both, and the range behind it counts (`with_fused`).
    """
    merged = fused(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    weights = {tensor.name for tensor in model.graph.initializer}
    names = dict.fromkeys(name for node in model.graph.node for name in (*node.input, *node.output))
    return tuple(
        name
        for name in names
        if name in known
        and name not in weights
        and name not in merged
        and known[name].type.tensor_type.elem_type == TensorProto.FLOAT
    )


def fused(model: ModelProto) -> dict[str, str]:
    """Return, for each tensor that only a Clip or Relu reads, the tensor behind it, whose range it gets."""
    readers = surgery.consumers(model.graph)
    nodes = (node for node in model.graph.node if node.op_type in ("Clip", "Relu"))
    return {node.input[0]: node.output[0] for node in nodes if len(readers[node.input[0]]) == 1}


def _batch_size(model: ModelProto) -> int:
    """Return how many images fit into BATCH_BYTES with their activations; 1 if shapes are not known."""
    known = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    sizes = [[int(dim.dim_value) for dim in known[name]][1:] for name in activations(model)]
    if any(0 in size for size in sizes):
        return 1
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(1, sum(4 * math.prod(size) for size in sizes))))


def _session(model: ModelProto, names: tuple[str, ...]) -> onnxruntime.InferenceSession:
    """Return a session of the graph as it is written, with every activation as an output."""
    copy = ModelProto()
    copy.CopyFrom(model)
    missing = [name for name in names if name != OUTPUT and name not in {value.name for value in copy.graph.input}]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in missing)
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    # An arena keeps what its largest batch needed, and the outputs live in it anyway.
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        raise ExportError(
            f"calibration: onnxruntime cannot run the prepared graph: {str(error).splitlines()[0]}"
        ) from error


def _batches(
    session: onnxruntime.InferenceSession, names: tuple[str, ...], images: np.ndarray, runtime: Model, batch: int
) -> Iterator[list[np.ndarray]]:
    inputs = {value.name for value in session.get_inputs()}
    fetched = [name for name in names if name not in inputs]
    for start in range(0, len(images), batch):
        feed = runtime.feed(np.ascontiguousarray(images[start : start + batch]))
        found = dict(zip(fetched, session.run(fetched, feed), strict=True))
        yield [feed[name] if name in inputs else found[name] for name in names]


def _key(model: ModelProto, images: np.ndarray) -> str:
    pixels = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    content = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    options = {"version": VERSION, "bins": BINS, "shape": list(images.shape), "onnxruntime": onnxruntime.__version__}
    return hashlib.sha256(json.dumps([content, pixels, options], sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> Statistics | None:
    """Return a stored collection, or None if there is none or it is damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return Statistics(
                tuple(stored["names"].tolist()), *(stored[name] for name in ("low", "high", "counts", "zeros"))
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, made: Statistics) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    np.savez_compressed(
        partial, names=np.array(made.names), low=made.low, high=made.high, counts=made.counts, zeros=made.zeros
    )
    os.replace(partial, path)


def with_fused(found: dict[str, tuple[float, float]], model: ModelProto) -> dict[str, tuple[float, float]]:
    """Return the ranges with those in front of a Clip or Relu filled in from behind it."""
    return {**found, **{before: found[behind] for before, behind in fused(model).items() if behind in found}}
