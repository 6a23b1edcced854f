"""Activation ranges from real pictures, in flat memory: minimum and maximum first, then a histogram of each activation.

Two passes over the pictures, a batch at a time: nothing outlives its batch but the counts, so memory does not grow with their number
(onnxruntime's histogram calibrators keep every activation: 4.3 GB were measured for 48 pictures). One collection serves every calibrator.
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

CALIBRATORS = ("minmax", "entropy", "percentile")
LEAST_PERCENTILE = 99.99
BINS = 2048
LEVELS = 256  # of an 8-bit activation
BATCH_BYTES = 96 << 20  # activations held at once
LARGEST_BATCH = 32
CHUNK = 1 << 18  # values counted at once: their indices stay in the processor's cache
LEAST_VALUES = (
    8 * BINS
)  # below it a histogram has no shape to speak of, and the entropy calibrator keeps the whole range
CANDIDATES = 64  # ranges that the entropy calibrator tries beside the whole one
EPSILON = 1e-6  # share that an empty level is given, so that the divergence stays finite
VERSION = 1  # of the numbers; part of the cache's key


@dataclass(frozen=True)
class Statistics:
    """What the pictures did to T activations. `low`, `high` float32 (T,): seen; `counts` int64 (T, BINS) over [min(low, 0), max(high, 0)].

    `zeros` int64 (T,): values that are exactly 0, which every quantisation represents exactly.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    zeros: np.ndarray


def check(calibrate: str, percentile: float) -> None:
    """Raise ExportError for a calibrator that is not known or known to ruin networks."""
    if calibrate not in CALIBRATORS:
        raise ExportError(f"calibration {calibrate!r} is not known; use {', '.join(CALIBRATORS)}")
    if calibrate == "percentile" and not LEAST_PERCENTILE <= percentile < 100:
        raise ExportError(
            f"percentile {percentile:g} is refused: it must be at least {LEAST_PERCENTILE:g} and below 100, because it cuts off real activations "
            "(measured on EfficientNet-Lite0: 99.9 gives 66.97 % where 99.99 gives 76.91 % and minmax 76.80 %)"
        )


def collect(model: ModelProto, images: np.ndarray, runtime: Model, *, cache: Path | None = None) -> Statistics:
    """Statistics of every float activation of `model` on uint8 (N, H, W, 3); `runtime` turns pictures into the model's input.

    `cache`: a folder; its entries are keyed by the model's bytes, the pictures and what is done with them, so no other student and no
    other pictures can meet an old range. Raises ExportError.
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
    wrong = next(
        (
            name
            for name, least, most in zip(names, low, high, strict=True)
            if not (np.isfinite(least) and np.isfinite(most))
        ),
        None,
    )
    if wrong is not None:
        raise ExportError(f"calibration: activation {wrong} is not finite on the calibration pictures")
    counts, zeros = np.zeros((len(names), BINS), np.int64), np.zeros(len(names), np.int64)
    grid = [_grid(float(least), float(most)) for least, most in zip(low, high, strict=True)]
    for values in _batches(session, names, images, runtime, batch):
        for index, value in enumerate(values):
            _count(value.ravel(), *grid[index], counts[index])
            zeros[index] += value.size - np.count_nonzero(value)
    return Statistics(names, low, high, counts, zeros)


def _grid(low: float, high: float) -> tuple[float, float]:
    """The range of a histogram: always with zero in it."""
    return min(low, 0.0), max(high, 0.0)


def _count(values: np.ndarray, low: float, high: float, counts: np.ndarray) -> None:
    """Add a histogram of float32 values (M,) to `counts`, in place."""
    scale = np.float32(BINS / (high - low)) if high > low else np.float32(0)
    for start in range(0, len(values), CHUNK):
        index = ((values[start : start + CHUNK] - np.float32(low)) * scale).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)  # the maximum itself belongs to the last bin
        counts += np.bincount(index, minlength=BINS)


def activations(model: ModelProto) -> tuple[str, ...]:
    """Names of the float tensors that pictures pass through, in the graph's order.

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
    """Tensors that only a Clip or Relu reads -> the tensor behind it, whose range they are given."""
    readers = surgery.consumers(model.graph)
    nodes = (node for node in model.graph.node if node.op_type in ("Clip", "Relu"))
    return {node.input[0]: node.output[0] for node in nodes if len(readers[node.input[0]]) == 1}


def _batch_size(model: ModelProto) -> int:
    """Pictures a batch so that their activations stay within BATCH_BYTES; one where shapes are not known."""
    known = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    sizes = [[dim.dim_value for dim in known[name]][1:] for name in activations(model)]
    if any(0 in size for size in sizes):
        return 1
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // max(1, sum(4 * math.prod(size) for size in sizes))))


def _session(model: ModelProto, names: tuple[str, ...]) -> onnxruntime.InferenceSession:
    """The graph as it is written, every activation an output."""
    shown = ModelProto()
    shown.CopyFrom(model)
    missing = [name for name in names if name != OUTPUT and name not in {value.name for value in shown.graph.input}]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in missing)
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = (
        False  # an arena keeps what its largest batch needed, and outputs are handed out of it anyway
    )
    try:
        return onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
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


def ranges(
    statistics: Statistics, calibrate: str, percentile: float = LEAST_PERCENTILE
) -> dict[str, tuple[float, float]]:
    """(low, high) of each activation, low <= 0 <= high.

    minmax: what was seen. percentile: from the (1 - p) / 2 quantile to the (1 + p) / 2 one. entropy: see `entropy_range`.
    """
    check(calibrate, percentile)
    found = {}
    for index, name in enumerate(statistics.names):
        low, high = _grid(float(statistics.low[index]), float(statistics.high[index]))
        counts = statistics.counts[index]
        if calibrate == "percentile":
            low, high = percentile_range(counts, low, high, percentile)
        elif calibrate == "entropy":
            low, high = entropy_range(counts, low, high, int(statistics.zeros[index]))
        found[name] = (min(low, 0.0), max(high, 0.0))
    return found


def percentile_range(counts: np.ndarray, low: float, high: float, percentile: float) -> tuple[float, float]:
    """The two quantiles of a histogram (BINS,) over [low, high] that leave out (100 - percentile) / 2 per cent on each side."""
    share = (1 - percentile / 100) / 2
    below = np.concatenate([[0], np.cumsum(counts)])
    edges = np.linspace(low, high, len(counts) + 1)
    at = np.interp([share * below[-1], (1 - share) * below[-1]], below, edges)
    return float(at[0]), float(at[1])


def entropy_range(counts: np.ndarray, low: float, high: float, zeros: int) -> tuple[float, float]:
    """Of the ranges between [low, high] and its LEAST_PERCENTILE quantiles, the one whose quantised histogram diverges least, KL(P || Q).

    P: the bins inside, what lies outside added to the outermost bins. Q: the bins inside, merged into LEVELS levels, each level's share
    spread evenly over those of its bins that P fills. Exact zeros are left out: they cost nothing. A sparse histogram (LEAST_VALUES)
    keeps its range. Source: Migacz 2017, "8-bit inference with TensorRT"; there symmetric and without the bound at the quantiles, which
    is ours: spikes (a black background behind a stem) make the bare divergence prefer ranges that cut off real activations.
    """
    bins, edges = len(counts), np.linspace(low, high, len(counts) + 1)
    inner = np.interp(percentile_range(counts, low, high, LEAST_PERCENTILE), edges, np.arange(bins + 1))
    counts = counts.astype(np.float64)
    zero = min(int(-low / (high - low) * bins), bins - 1) if high > low else 0
    counts[zero] = max(counts[zero] - zeros, 0)
    if counts.sum() < LEAST_VALUES:
        return low, high
    best, chosen = math.inf, (0, bins)
    for step in range(CANDIDATES + 1):
        share = step / CANDIDATES
        start, stop = math.floor(share * inner[0]), math.ceil(bins + share * (inner[1] - bins))
        divergence = _divergence(counts, start, stop)
        if divergence < best:  # of equal ones the widest
            best, chosen = divergence, (start, stop)
    return float(edges[chosen[0]]), float(edges[chosen[1]])


def _divergence(counts: np.ndarray, start: int, stop: int) -> float:
    """KL(P || Q) in nats of quantising counts[start:stop]."""
    inside = counts[start:stop]
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    filled = p > 0
    level = np.arange(len(inside)) * LEVELS // len(inside)
    share = np.bincount(level, inside, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    q = share[level][filled]
    p, q = p[filled] / p.sum(), q / max(q.sum(), 1.0)
    q = (q + EPSILON) / (q + EPSILON).sum()
    return float((p * np.log(p / q)).sum())


def _key(model: ModelProto, images: np.ndarray) -> str:
    pictures = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    content = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    options = {"version": VERSION, "bins": BINS, "shape": list(images.shape), "onnxruntime": onnxruntime.__version__}
    return hashlib.sha256(json.dumps([content, pictures, options], sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> Statistics | None:
    """A stored collection; None where there is none or it is damaged, and then it is made again."""
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
    """The ranges, those of tensors in front of a Clip or Relu filled in from behind it."""
    return {**found, **{before: found[behind] for before, behind in fused(model).items() if behind in found}}
