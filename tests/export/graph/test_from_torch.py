"""Export: one clean file that computes what the network computes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.graph import from_torch, onnx_file, rewrites
from export.int8.quantize import quantize
from export.runtime import SESSION_ERRORS, Contract, ExportError, Model


def _ops(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def test_exported_file_has_the_promised_properties(fp32: Path, contract: Contract) -> None:
    model = onnx.load(str(fp32))

    assert [path.name for path in fp32.parent.glob("small.fp32*")] == ["small.fp32.onnx"]
    assert onnx_file.opset_of(model) == 18 and model.ir_version == 8  # loads from onnxruntime 1.14 on
    assert (model.producer_name, model.producer_version) == ("compress", "9.8.7")
    value = model.graph.input[0]
    assert value.name == "image" and value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", 16, 16, 3]
    assert Model.load(fp32).contract == contract
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_exported_graph_has_no_superfluous_nodes_or_metadata(fp32: Path) -> None:
    ops = _ops(fp32)

    assert ops["Conv"] == 3 and ops["BatchNormalization"] == 0 and ops["ReduceMean"] == 0
    assert ops["GlobalAveragePool"] == 1 and ops["Flatten"] == 1  # x.mean([2, 3])
    assert ops["Transpose"] == ops["Cast"] == 1 and ops["Gather"] == 0


def test_onnx_and_torch_agree_on_images(network: nn.Module, fp32: Path, images: np.ndarray) -> None:
    found = from_torch.parity(network, fp32, images)

    assert found.images == 256 and found.agreement == 1.0
    assert 0 < found.mean_abs_diff <= found.max_abs_diff < 1e-4


def test_parity_detects_a_different_network(network: nn.Module, fp32: Path, images: np.ndarray) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.classifier.bias[0] += 0.5

    assert from_torch.parity(other, fp32, images).max_abs_diff > 0.49


def test_float_input_leaves_normalisation_to_the_application(
    network: nn.Module, contract: Contract, fp32: Path, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "float.onnx"

    from_torch.to_onnx(network, path, dataclasses.replace(contract, layout="float_nchw"))

    assert onnx.load(str(path)).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not {"Cast", "Transpose"} & set(_ops(path))
    np.testing.assert_allclose(Model.load(path).run(images), Model.load(fp32).run(images), atol=1e-4)


def test_export_does_not_change_the_callers_network(network: nn.Module, contract: Contract, tmp_path: Path) -> None:
    model = copy.deepcopy(network).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    from_torch.to_onnx(model, tmp_path / "a.onnx", contract)

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training
    assert model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


_AGAIN = """
import sys, torch
from pathlib import Path
from torch import nn
from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize
from export.runtime import Contract
import numpy as np
torch.manual_seed(3)
net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8),
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
folder = Path(sys.argv[1])
to_onnx(net, folder / "f.onnx", Contract(("a", "b"), 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "uint8_nhwc", "compress 1"))
images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
quantize(folder / "f.onnx", folder / "q.onnx", images, isa="x86-vnni")
"""


def test_exporting_twice_gives_equal_bytes(network: nn.Module, contract: Contract, fp32: Path, tmp_path: Path) -> None:
    from_torch.to_onnx(network, tmp_path / "again.onnx", contract)

    assert (tmp_path / "again.onnx").read_bytes() == fp32.read_bytes()


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["", str(here)])
    exec(_AGAIN, {})

    # Another folder and another hash seed: nothing of them may reach the files.
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", _AGAIN, str(there)], capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    assert sorted(path.name for path in there.iterdir()) == ["f.onnx", "q.onnx"]
    for name in ("f.onnx", "q.onnx"):
        assert (
            hashlib.sha256((here / name).read_bytes()).digest() == hashlib.sha256((there / name).read_bytes()).digest()
        )


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3]) if x.sum() > 0 else x.amax([2, 3])


def test_networks_that_cannot_be_exported_are_refused(network: nn.Module, contract: Contract, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"

    with pytest.raises(ExportError, match="training mode"):
        from_torch.to_onnx(copy.deepcopy(network).train(), path, contract)
    with pytest.raises(ExportError, match="cannot convert Branching"):
        from_torch.to_onnx(Branching().eval(), path, contract)
    with pytest.raises(ExportError, match=r"answers \(4,\) for 3 classes"):
        from_torch.to_onnx(network, path, dataclasses.replace(contract, classes=("a", "b", "c")))
    assert not path.exists()


def _altered(source: Path, target: Path, change) -> Path:
    model = onnx.load(str(source))
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def _batch_norm_behind_conv(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    channels = next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == conv.input[1])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(channels, np.float32), "ones"))
    norm = onnx.helper.make_node(
        "BatchNormalization", ["inner", "ones", "ones", "ones", "ones"], [conv.output[0]], name="norm"
    )
    conv.output[0] = "inner"
    model.graph.node.insert(list(model.graph.node).index(conv) + 1, norm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 20), "has opset 20, opset 18 was asked for"),
        (lambda model: setattr(model, "ir_version", 11), "IR version 11 is above 10"),
        (lambda model: setattr(model.graph.node[0], "doc_string", f"{Path.cwd()}/net.py"), "path of the build machine"),
        (
            lambda model: setattr(model.graph.node[0], "doc_string", "File /srv/code/net.py, line 3"),
            "path of the build machine",
        ),
        (lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOp"), "not a valid ONNX file"),
        (lambda model: setattr(model.graph.output[0], "name", "scores"), "instead of 'image' and 'logits'"),
        (lambda model: setattr(model.graph.initializer[0], "data_location", 1), "outside the file"),
        (_batch_norm_behind_conv, "BatchNormalization norm stands directly behind a convolution"),
    ],
)
def test_check_refuses_a_file_with_a_broken_property(fp32: Path, tmp_path: Path, change, words: str) -> None:
    path = _altered(fp32, tmp_path / "altered.onnx", change)

    with pytest.raises(ExportError, match=words):
        onnx_file.check(path, opset=18)


@pytest.mark.parametrize(
    ("opset", "ir_version", "min_runtime", "loads"),
    [
        (18, 8, "1.14", True),
        (18, 9, "1.14", False),
        (19, 9, "1.16.3", True),
        (21, 10, "1.17", False),
        (21, 10, "1.19", True),
        (22, 10, "1.19", False),
        (23, 10, "1.23", True),
    ],
)
def test_check_runtime_knows_the_limits_of_older_onnxruntimes(
    fp32: Path, tmp_path: Path, opset: int, ir_version: int, min_runtime: str, loads: bool
) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version, model.ir_version = opset, ir_version

    path = _altered(fp32, tmp_path / "altered.onnx", change)

    if loads:
        from_torch.check_runtime(path, min_runtime)
    else:
        with pytest.raises(ExportError, match=f"cannot be loaded by onnxruntime {min_runtime}"):
            from_torch.check_runtime(path, min_runtime)


@pytest.mark.parametrize(("version", "words"), [("1.9", "older than 1.14"), ("new", "is not a version")])
def test_check_runtime_refuses_unknown_versions(fp32: Path, version: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        from_torch.check_runtime(fp32, version)


def test_pool_rewrites_are_judged_and_reported(
    network: nn.Module, contract: Contract, images: np.ndarray, tmp_path: Path
) -> None:
    exported = from_torch.to_onnx(network, tmp_path / "a.onnx", contract, images=images[:20])

    (verdict,) = exported.rewrites
    assert (verdict.name, verdict.nodes, verdict.kept, verdict.images) == (
        "ReduceMean to GlobalAveragePool",
        1,
        True,
        4,
    )
    assert (
        verdict.max_abs_diff <= verdict.limit
        and verdict.integer_share is None
        and verdict.reason.startswith("required")
    )


def test_a_pool_rewrite_that_changes_answers_is_refused(
    network: nn.Module, contract: Contract, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrites, "PARITY_LIMIT", -1.0)

    exported = from_torch.to_onnx(network, tmp_path / "a.onnx", contract, images=images[:20])

    assert [verdict.kept for verdict in exported.rewrites] == [False] and "give other answers" in exported.rewrites[
        0
    ].reason
    assert _ops(tmp_path / "a.onnx")["ReduceMean"] == 1


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_fixed_batch_file_gives_the_answers_of_the_dynamic_one(
    kind: str, request: pytest.FixtureRequest, images: np.ndarray, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)

    difference = from_torch.fixed_batch(source, tmp_path / "one.onnx")

    model = onnx.load(str(tmp_path / "one.onnx"))
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_value == 1
    dynamic, fixed = Model.load(source), Model.load(tmp_path / "one.onnx")
    assert fixed.contract == dynamic.contract and fixed.target == dynamic.target
    expected = dynamic.run(images[:20])
    assert difference <= 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(
        fixed.run(images[:20]), expected, atol=2e-6 * np.abs(expected).max()
    )  # `run` feeds one by one
    with pytest.raises(SESSION_ERRORS, match="(?i)invalid dimensions"):
        fixed.session.run(None, fixed.feed(images[:2]))


def test_a_fixed_batch_file_with_other_answers_is_refused(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrites, "PARITY_LIMIT", -1.0)

    with pytest.raises(
        ExportError, match="one.onnx: with a fixed batch the logits differ from those of small.fp32.onnx"
    ):
        from_torch.fixed_batch(fp32, tmp_path / "one.onnx")

    assert not (tmp_path / "one.onnx").exists()


def test_preprocessing_is_stored_in_the_file(
    network: nn.Module, contract: Contract, fp32: Path, calibration: np.ndarray, tmp_path: Path
) -> None:
    steps = {"version": 1, "steps": [{"step": "resize", "short_side": 18}]}
    told = dataclasses.replace(contract, preprocessing=steps)
    from_torch.to_onnx(network, tmp_path / "a.onnx", told)
    quantize(tmp_path / "a.onnx", tmp_path / "q.onnx", calibration, isa="x86-vnni")

    stored = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "a.onnx")).metadata_props}

    assert json.loads(stored["compress.preprocessing"]) == steps
    assert Model.load(tmp_path / "a.onnx").contract == Model.load(tmp_path / "q.onnx").contract == told
    assert Model.load(fp32).contract.preprocessing is None  # a file without it still loads
    assert "compress.preprocessing" not in {entry.key for entry in onnx.load(str(fp32)).metadata_props}
