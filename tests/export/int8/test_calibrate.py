"""Calibration: statistics, ranges, constant memory, and a cache that is keyed by model and images."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.int8 import calibrate, quantize, range_choice
from export.int8.calibrate import BINS, collect, with_fused
from export.int8.range_choice import LEVELS, choose_ranges, entropy_range, percentile_range
from export.runtime import Contract, ExportError, Model

SIZE = 8


def _tiny(path: Path, seed: int = 0) -> Model:
    """Pixels to float, a convolution, Relu, mean, a product: with a contract, so that it can be loaded."""
    random = np.random.default_rng(seed)
    weights = {
        "w": random.normal(0, 0.02, (4, 3, 3, 3)),
        "b": random.normal(0, 0.1, 4),
        "v": random.normal(0, 1, (4, 2)),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["bytes"], "t", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["bytes"], ["pixels"], "c", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "w", "b"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "v"], ["logits"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    contract = Contract(("a", "b"), SIZE, (0.5,) * 3, (0.5,) * 3, "uint8_nhwc", "compress 1")
    helper.set_model_props(model, contract.to_metadata())
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return Model.load(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Model]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    runtime = _tiny(path)
    return onnx.load(str(path)), runtime


def _images(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _direct(model: onnx.ModelProto, images: np.ndarray, name: str) -> np.ndarray:
    """An activation of all images at once."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"image": images})[0]


def test_statistics_do_not_depend_on_the_batch_size(tiny) -> None:
    model, runtime = tiny
    images = _images(77)  # an incomplete last batch

    found = collect(model, images, runtime)

    assert set(found.names) == {"pixels", "relu", "pool", "flat", "logits"}  # conv is computed by the kernel of relu
    for name in ("relu", "logits"):
        value, index = _direct(model, images, name), found.names.index(name)
        assert (found.low[index], found.high[index]) == pytest.approx((value.min(), value.max()), rel=1e-6)
        low, high = min(value.min(), 0), max(value.max(), 0)
        expected = np.histogram(value.astype(np.float64), BINS, (low, high))[0]
        assert found.counts[index].sum() == value.size
        assert (
            np.abs(np.cumsum(found.counts[index]) - np.cumsum(expected)).max() <= 3
        )  # values on an edge may fall to either side
        assert found.zeros[index] == (value == 0).sum()
    assert choose_ranges(found, "minmax")["relu"] == pytest.approx(
        (0.0, _direct(model, images, "relu").max()), rel=1e-6
    )


def test_a_tensor_before_relu_gets_the_range_behind_it(tiny) -> None:
    model, runtime = tiny
    found = with_fused(choose_ranges(collect(model, _images(8), runtime), "minmax"), model)

    assert found["conv"] == found["relu"]


def test_percentile_is_the_quantile_of_the_values() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400_000)
    low, high = values.min(), values.max()
    counts = np.histogram(values, BINS, (low, high))[0]

    found = percentile_range(counts, low, high, 99.99)

    assert found == pytest.approx(np.quantile(values, (0.00005, 0.99995)), abs=(high - low) / BINS)


def _reference_divergence(counts: list[float], start: int, stop: int) -> float:
    """The formula, bin by bin, in plain loops."""
    inside = counts[start:stop]
    p = list(inside)
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    q = [0.0] * len(p)
    for level in range(LEVELS):
        members = [i for i in range(len(p)) if i * LEVELS // len(p) == level]
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = sum(inside[j] for j in members) / len(filled)
    p = [value / sum(p) for value in p]
    filled = [i for i in range(len(p)) if p[i] > 0]
    q = [value / sum(q) + range_choice.EPSILON for value in q]
    rest = sum(q[i] for i in filled)
    return sum(p[i] * math.log(p[i] / (q[i] / rest)) for i in filled)


@pytest.mark.parametrize(("low", "tail"), [(0.0, 40.0), (-3.0, 40.0), (-3.0, 4.0)])
def test_entropy_range_follows_the_formula(low: float, tail: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_choice, "ENTROPY_CANDIDATES", 8)  # the loops are slow
    values = np.clip(np.random.default_rng(0).normal(0, 1, 300_000), low, None)
    values = np.append(values, [tail, tail - 1])
    counts = np.histogram(values, BINS, (low, tail))[0]
    zeros = int((values == 0).sum())
    plain = [float(count) for count in counts]
    plain[int(-low / (tail - low) * BINS)] -= zeros
    inner = [
        (value - low) / (tail - low) * BINS
        for value in percentile_range(counts, low, tail, range_choice.MIN_PERCENTILE)
    ]
    tried = [(math.floor(step / 8 * inner[0]), math.ceil(BINS + step / 8 * (inner[1] - BINS))) for step in range(9)]

    start, stop = min(tried, key=lambda bins: _reference_divergence(plain, *bins))
    found = entropy_range(counts, low, tail, zeros)

    edges = np.linspace(low, tail, BINS + 1)
    assert found == pytest.approx((edges[start], edges[stop]))
    if tail == 40.0:
        assert found[1] < 10  # two stray values do not take the levels of all others


def test_entropy_range_never_cuts_more_than_the_percentile_bound() -> None:
    """A constant background is a spike beside the values that matter; the bare divergence would cut 1 % of them off."""
    random = np.random.default_rng(0)
    values = np.concatenate([np.full(500_000, 0.3), random.uniform(0, 1, 490_000), random.uniform(1, 8, 10_000)])
    low, high = entropy_range(np.histogram(values, BINS, (0, 8))[0], 0.0, 8.0, 0)

    assert low == 0 and high > 7.9


def test_entropy_range_of_few_values_is_their_whole_range() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[[0, 3, 100, BINS - 1]] = 20

    assert entropy_range(counts, -1.0, 3.0, 0) == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("method", "percentile", "words"),
    [
        ("percentile", 99.9, "66.97 %"),
        ("percentile", 100.0, "below 100"),
        ("mean", 99.99, "use minmax, entropy, percentile"),
    ],
)
def test_calibrators_that_ruin_networks_are_refused(method: str, percentile: float, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        range_choice.check(method, percentile)


def test_activations_that_are_not_finite_are_named(tiny, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny[0])
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weights.CopyFrom(numpy_helper.from_array(np.full((4, 3, 3, 3), 3e38, np.float32), "w"))

    with pytest.raises(ExportError, match="activation relu is not finite"):
        collect(model, _images(2), tiny[1])


def test_the_cache_key_depends_on_model_and_images(tiny, tmp_path: Path) -> None:
    model, runtime = tiny
    first = collect(model, _images(4), runtime, cache=tmp_path)
    retrained = onnx.ModelProto()
    retrained.CopyFrom(model)
    weights = next(tensor for tensor in retrained.graph.initializer if tensor.name == "w")
    weights.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weights), "w"))

    assert len(list(tmp_path.iterdir())) == 1
    again = collect(model, _images(4), runtime, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and (again.counts == first.counts).all() and again.names == first.names
    other = collect(retrained, _images(4), runtime, cache=tmp_path)  # the same names, as after every retraining
    assert other.high[first.names.index("relu")] > 1.5 * first.high[first.names.index("relu")]
    collect(model, _images(4, seed=2), runtime, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cached_collection_is_read_and_a_damaged_one_made_again(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runtime = tiny
    first = collect(model, _images(4), runtime, cache=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "_collect", lambda *_: pytest.fail("not read from the cache"))
        collect(model, _images(4), runtime, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])

    assert (collect(model, _images(4), runtime, cache=tmp_path).counts == first.counts).all()


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from export.int8 import quantize
from export.runtime import Model
source, count = Path(sys.argv[1]), int(sys.argv[2])
one = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
images = np.lib.stride_tricks.as_strided(one, (count, 16, 16, 3), (0, 48, 3, 1))
quantize.prepare(source, images[:2])  # what libraries allocate once
Path("/proc/self/clear_refs").write_text("5")
read = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
before = read("VmRSS")
quantize.prepare(source, images)
print(read("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_calibration_memory_does_not_grow_with_the_number_of_images(fp32: Path) -> None:
    """All activations of 2,048 images would take far more than those of 32."""
    root = Path(quantize.__file__).parents[2]

    def peak_kib(count: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(fp32), str(count)]
        return int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)

    activations = collect_bytes(fp32)
    few, many = peak_kib(32), peak_kib(2048)

    assert activations * (2048 - 32) > 40 << 20  # or the test could not fail
    assert many - few < 12 << 10, f"{few} KiB for 32 images, {many} KiB for 2,048"


def collect_bytes(source: Path) -> int:
    """Return the bytes of the activations of one image."""
    model = quantize.prepare(source, np.zeros((1, 16, 16, 3), np.uint8)).model
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in model.graph.value_info
    }
    return sum(4 * math.prod(shapes[name]) for name in calibrate.activations(model) if name in shapes)
