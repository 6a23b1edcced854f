"""Float-exact rewrites: the same function in operators that have integer kernels.

onnxruntime has no integer kernel for ReduceMean, HardSwish and HardSigmoid; between int8 layers each becomes an island
of float. Whether a rewrite is exact is judged in float64 (`export.graph.float64_reference`), because in float32 the
order of sums alone changes logits by more than the limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import float64_reference, onnx_file, surgery
from export.runtime import Contract, Model

# Largest difference of a rewritten file's logits, as a share of the largest |logit|.
PARITY_LIMIT = 1e-6
POOLS = "ReduceMean to GlobalAveragePool"
HARD = "HardSwish and HardSigmoid to Mul, Add, Clip"
_NOISE_IMAGES = 8
# Few are enough: the share of integer kernels does not depend on the ranges.
_CALIBRATION_IMAGES = 16


@dataclass(frozen=True)
class Rewrite:
    """One rewrite of a network's graph, and whether it was kept.

    Attributes:
        name: POOLS or HARD.
        nodes: how many nodes it replaces.
        kept: whether it is part of the files.
        reason: why, or why not.
        files: the files that have it: `float and int8` or `int8`.
        max_abs_diff: difference of logits in float64, with and without it.
        limit: what max_abs_diff may be, 1e-6 of the largest |logit|.
        images: how many images it was judged on.
        integer_share: share of integer kernels in the int8 file without it, in [0, 1]; None if not needed.
        rewritten_share: the same with it.
        float32_diff: difference of logits as onnxruntime runs the files; includes the rounding of float32 and decides
            nothing.
    """

    name: str
    nodes: int
    kept: bool
    reason: str
    files: str
    max_abs_diff: float
    limit: float
    images: int
    integer_share: float | None = None
    rewritten_share: float | None = None
    float32_diff: float | None = None


def pool_means(model: ModelProto) -> int:
    """Replace ReduceMean over height and width of a rank-4 tensor by GlobalAveragePool; return how many."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ranks = surgery.ranks_of(model)
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if not _averages_height_and_width(node, constants) or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1))
        count += 1
    surgery.replace(model.graph.node, nodes)
    return count


def _averages_height_and_width(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return False
    axes = sorted(int(axis) for axis in constants[node.input[1]].ravel())
    return axes in ([2, 3], [-2, -1])


def expand_hard_activations(model: ModelProto) -> int:
    """Replace HardSigmoid and HardSwish by Mul, Add and Clip; return how many.

    HardSigmoid(x) = Clip(alpha x + beta, 0, 1); HardSwish(x) = x Clip(x / 6 + 1/2, 0, 1).
    """
    nodes: list[NodeProto] = []
    constants: dict[tuple[float, int], str] = {}
    channels = _channels_of_lone_convolutions(model)
    count = 0
    for node in model.graph.node:
        if node.op_type not in ("HardSwish", "HardSigmoid"):
            nodes.append(node)
            continue
        slope, offset = _slope_and_offset(node)
        out = node.output[0]
        gate = out if node.op_type == "HardSigmoid" else f"{out}_gate"
        scale, low, high = (_constant(model, constants, value, 0) for value in (slope, 0.0, 1.0))
        # Behind a convolution that nothing else reads, product and sum move into its weights if the sum has its
        # channels.
        width = channels.get(node.input[0], 0) if node.op_type == "HardSigmoid" else 0
        shift = _constant(model, constants, offset, width)
        nodes.append(helper.make_node("Mul", [node.input[0], scale], [f"{out}_scaled"], name=f"{out}_scale"))
        nodes.append(helper.make_node("Add", [f"{out}_scaled", shift], [f"{out}_shifted"], name=f"{out}_shift"))
        nodes.append(helper.make_node("Clip", [f"{out}_shifted", low, high], [gate], name=f"{out}_clip"))
        if node.op_type == "HardSwish":
            nodes.append(helper.make_node("Mul", [node.input[0], gate], [out], name=f"{out}_product"))
        count += 1
    surgery.replace(model.graph.node, nodes)
    return count


def _slope_and_offset(node: NodeProto) -> tuple[float, float]:
    """Return alpha and beta. Source: the ONNX operators' definitions (HardSwish has no attributes)."""
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    found = {attribute.name: attribute.f for attribute in node.attribute}
    return found.get("alpha", 0.2), found.get("beta", 0.5)


def _channels_of_lone_convolutions(model: ModelProto) -> dict[str, int]:
    """Return the output channels of each convolution whose output is read once, by its output."""
    weights = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    readers = surgery.consumers(model.graph)
    lone = [node for node in model.graph.node if node.op_type == "Conv" and len(readers.get(node.output[0], [])) == 1]
    return {node.output[0]: weights[node.input[1]] for node in lone if node.input[1] in weights}


def _constant(model: ModelProto, constants: dict[tuple[float, int], str], value: float, channels: int) -> str:
    """Return the name of a float32 constant, a scalar or (1, channels, 1, 1); a new one is added to the weights."""
    key = (float(np.float32(value)), channels)
    if key not in constants:
        constants[key] = f"hard_{len(constants)}"
        array = np.full((1, channels, 1, 1) if channels else (), value, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, constants[key]))
    return constants[key]


def for_every_file(
    model: ModelProto, contract: Contract, images: np.ndarray | None
) -> tuple[ModelProto, tuple[Rewrite, ...]]:
    """Apply the rewrites that cost the float file nothing and that int8 needs.

    Args:
        model: the float graph; it is not changed.
        contract: what its file says of itself.
        images: uint8 (N, H, W, 3) that the rewrites are judged on; None: noise.

    Returns:
        The graph to go on with, and what was kept and refused.
    """
    return _try(model, contract, images, POOLS, pool_means, files="float and int8")


def for_integers(
    source: Path, target: Path, images: np.ndarray | None, share: Callable[[Path, np.ndarray], float]
) -> tuple[Rewrite, ...]:
    """Write the float file that int8 is made from, if a rewrite is worth keeping.

    It is a file of its own because three elementwise operators in float are slower than one HardSwish (measured: 0.80
    x); in int8 they are faster.

    Args:
        source: the float file that ships.
        target: the file to write; it is written only if a rewrite is kept.
        images: uint8 (N, H, W, 3) that the rewrites are judged on; None: noise.
        share: returns the share of integer kernels in the int8 form of a float file (`export.int8.integer_share`).

    Returns:
        What was kept and refused.

    Raises:
        ExportError: a graph cannot be evaluated.
    """
    model = onnx.load(str(source))
    contract = Model.load(source).contract
    rewritten, verdicts = _try(model, contract, images, HARD, expand_hard_activations, files="int8", share=share)
    if any(verdict.kept for verdict in verdicts):
        onnx_file.strip_and_describe(rewritten, contract.to_metadata(), made_by=contract.made_by)
        onnx_file.save(rewritten, target)
        onnx_file.check(target, opset=onnx_file.opset_of(model))
    return verdicts


def _try(
    model: ModelProto,
    contract: Contract,
    images: np.ndarray | None,
    name: str,
    rewrite: Callable[[ModelProto], int],
    *,
    files: str,
    share: Callable[[Path, np.ndarray], float] | None = None,
) -> tuple[ModelProto, tuple[Rewrite, ...]]:
    """Return the model to go on with, and the verdict; no verdict if the network has nothing to rewrite."""
    candidate = ModelProto()
    candidate.CopyFrom(model)
    nodes = rewrite(candidate)
    if nodes == 0:
        return model, ()
    images = images if images is not None and len(images) else noise_images(contract)
    judged = images[: float64_reference.MAX_IMAGES]
    wanted, got = (float64_reference.logits(one, contract, judged) for one in (model, candidate))
    difference, limit = float(np.abs(wanted - got).max()), PARITY_LIMIT * float(np.abs(wanted).max())
    equal = difference <= limit
    with tempfile.TemporaryDirectory() as folder:
        before, after = (
            _write(one, contract, Path(folder) / f"{part}.onnx")
            for part, one in (("before", model), ("after", candidate))
        )
        expected, found = (Model.load(path).run(images) for path in (before, after))
        rounded = float(np.abs(expected.astype(np.float64) - found).max())
        # A rewrite that every file needs has no share: onnxruntime has no other integer kernel for it.
        plain, better = (
            share(path, images[:_CALIBRATION_IMAGES]) if equal and share is not None else None
            for path in (before, after)
        )
    kept, reason = _judge(equal, plain, better)
    verdict = Rewrite(name, nodes, kept, reason, files, difference, limit, len(judged), plain, better, rounded)
    return (candidate if kept else model), (verdict,)


def _judge(equal: bool, before: float | None, after: float | None) -> tuple[bool, str]:
    if not equal:
        return False, "the float file would give other answers: the difference of the logits is above the limit"
    if before is None or after is None:
        return True, "required: the operator has no integer kernel"
    if after <= before:
        return False, "no more kernels of the int8 file would be integer kernels"
    return True, "more kernels of the int8 file are integer kernels"


def noise_images(contract: Contract) -> np.ndarray:
    """Return seeded noise, uint8 (8, H, W, 3), for use without real images."""
    shape = (_NOISE_IMAGES, contract.image_size, contract.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _write(model: ModelProto, contract: Contract, path: Path) -> Path:
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx_file.strip_and_describe(copy, contract.to_metadata(), made_by=contract.made_by)
    onnx_file.save(copy, path)
    return path
