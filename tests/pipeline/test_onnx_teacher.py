"""A teacher that is another project's ONNX file: checked, used, measured, and copied byte for byte into the run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.cli import main
from compress.core.console import Console
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, StreamingSource, Trained, TrainingData
from compress.core.store import Context
from compress.data.augment import views
from compress.data.sources import fashion
from compress.models.input_adapter import InputAdapter
from compress.pipeline.plan import candidates, limits
from compress.pipeline.plan.stages import export_untrained
from compress.recipe import loader
from compress.recipe.schema import Export
from compress.training import build, forward_batch
from compress.training.evaluation import predict
from compress.training.teacher.signals import teacher_cache
from export.graph.foreign_model import fixed_image_size, inspect
from export.runtime import Contract, ExportError, Model, resize_matrix, write_sidecar

ROOT = Path(__file__).parents[2]
FLAGSHIP = str(ROOT / "recipes" / "mobilenet.yaml")
ORDER = [3, 9, 0, 1, 2, 4, 5, 6, 7, 8, 10]  # of the file's outputs: its eleventh, number 10, is no class of ours


def scorer(weights: np.ndarray, *, size: int | str = 32, batch: int | str = "N", last: bool = False) -> onnx.ModelProto:
    """A linear classifier (K, 3) on the mean colour, behind a convolution: (N, 3, S, S) or (N, S, S, 3) -> (N, K)."""
    shape = [batch, size, size, 3] if last else [batch, 3, size, size]
    nodes = [helper.make_node("Transpose", ["pixels"], ["channels_first"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", ["channels_first" if last else "pixels", "identity"], ["kept"]),
        helper.make_node("GlobalAveragePool", ["kept"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node("Gemm", ["vector", "weights"], ["scores"], transB=1),
    ]
    stored = {"identity": np.eye(3, dtype=np.float32)[:, :, None, None], "weights": weights.astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "scorer",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, len(weights)])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def write(model: onnx.ModelProto) -> Path:
        onnx.save(model, str(tmp_path / "teacher.onnx"))
        return tmp_path / "teacher.onnx"

    return write


def test_a_file_is_described(save):
    found = inspect(save(scorer(np.ones((4, 3)))), image_size=32, outputs=4)

    assert (found.layout, found.outputs, found.opset, found.nodes) == ("float_nchw", 4, 17, 4)
    assert (found.params, found.macs) == (9 + 12, 9 * 32 * 32 + 12)
    assert inspect(save(scorer(np.ones((4, 3)), last=True)), image_size=32, outputs=None).layout == "float_nhwc"


def another_input(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize(
    ("model", "outputs", "said"),
    [
        (
            scorer(np.ones((4, 3)), size=16),
            4,
            r"its input is \(\?, 3, 16, 16\), expected \(N, 3, 32, 32\) .*; leave image_size out, the file has its own",
        ),
        (
            scorer(np.ones((4, 3))),
            5,
            "gives 4 values an image, but 5 classes are expected; it cannot teach a class that it does not know",
        ),
        (
            scorer(np.ones((4, 3))),
            3,
            "gives 4 values an image, but 3 classes are expected; name them in their order in `classes`",
        ),
        (another_input(scorer(np.ones((4, 3)))), 4, r"found 2 and 1 \(pixels, scale, scores\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(save, model: onnx.ModelProto, outputs: int, said: str):
    with pytest.raises(ExportError, match=said):
        inspect(save(model), image_size=32, outputs=outputs)


def test_weights_in_another_file_and_no_onnx_are_refused(tmp_path: Path):
    onnx.save(
        scorer(np.ones((4, 3))),
        str(tmp_path / "t.onnx"),
        save_as_external_data=True,
        location="t.bin",
        size_threshold=0,
    )
    with pytest.raises(ExportError, match="keeps its weights in other files"):
        inspect(tmp_path / "t.onnx", image_size=32, outputs=4)
    (tmp_path / "t.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot load this file"):
        inspect(tmp_path / "t.onnx", image_size=32, outputs=4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", ["N", 3])
def test_a_contract_beside_the_file_makes_it_answer_like_any_other(save, last: bool, batch: int | str):
    weights = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    path = save(scorer(weights, last=last, batch=batch))
    contract = Contract(
        ("a", "b"),
        32,
        (0.1, 0.2, 0.3),
        (0.5, 0.6, 0.7),
        "float_nhwc" if last else "float_nchw",
        "x",
        channels="bgr",
        order=(2, 0),
    )
    write_sidecar(path, contract)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)

    model = Model.load(path)

    mean = ((images / 255 - contract.mean) / contract.std).mean((1, 2))[:, ::-1]
    assert model.contract == contract
    np.testing.assert_allclose(model.run(images), (mean @ weights.T)[:, [2, 0]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "last", "side"), [(48, False, 48), (20, True, 20), ("S", False, None)])
def test_a_files_own_size_is_read_from_it(save, size: int | str, last: bool, side: int | None):
    assert fixed_image_size(save(scorer(np.ones((4, 3)), size=size, last=last))) == side


def test_what_is_no_file_of_pictures_has_no_size(tmp_path: Path):
    (tmp_path / "t.onnx").write_bytes(b"nothing")
    assert fixed_image_size(tmp_path / "t.onnx") is None and fixed_image_size(tmp_path / "absent.onnx") is None


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [48, 20])
def test_a_file_of_another_size_teaches_and_answers_alike_on_resized_pictures(save, size: int, last: bool):
    kernel = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    model = scorer(kernel, size=size, last=last)
    model.graph.node[-3].CopyFrom(
        helper.make_node("MaxPool", ["kept"], ["pooled"], kernel_shape=[size, size])
    )  # the largest value shows how it was resized
    path = save(model)
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    write_sidecar(
        path,
        Contract(("a", "b"), 32, (0.5,) * 3, (0.25,) * 3, "float_nhwc" if last else "float_nchw", "x", own_size=size),
    )

    record = Network("t.onnx", None, 2, 32, Normalization((0.5,) * 3, (0.25,) * 3), own_size=size, black_box=True)
    teaches = build.load_network(record, File.of(path), "cpu")(
        views.to_float(torch.from_numpy(images), (0.5,) * 3, (0.25,) * 3)
    )
    answers = Model.load(path).run(images)

    assert Model.load(path).contract.own_size == size
    np.testing.assert_allclose(answers, teaches.numpy(), rtol=1e-4, atol=1e-4)
    pixels = torch.from_numpy(((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)).float()
    resized = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=size < 32)
    np.testing.assert_allclose(answers, resized.amax((2, 3)).numpy() @ kernel.T, rtol=1e-3, atol=1e-3)


def test_steps_are_recorded_only_where_an_onnx_teacher_answers_ahead_of_them(save, tmp_path):
    file = File.of(save(scorer(np.ones((4, 3)))))
    teacher = Trained(
        Network("t.onnx", None, 4, 32, Normalization((0.5,) * 3, (0.25,) * 3), black_box=True), file, 0.5, 1, 1, 1, 1.0
    )
    data = TrainingData(file, file, tuple("abcd"), 32, "crop_flip", 8, 0)
    for streamed, recordable in ((None, True), (StreamingSource(tmp_path, file, None, 1), False)):
        cache = teacher_cache(teacher, replace(data, streamed=streamed), 10, device="cpu", cache=None, warn=pytest.fail)
        assert cache.recordable is recordable


def test_a_card_keeps_the_order_of_its_answers_and_asks_it_as_the_cpu_is_asked(save, monkeypatch):
    file = File.of(save(scorer(np.ones((4, 3)))))
    record = Network(
        "t.onnx", None, 3, 32, Normalization((0.5,) * 3, (0.25,) * 3), black_box=True, order=(2, 0, 1), outputs=4
    )
    (order,) = build.load_network(record, file, "meta").buffers()
    assert order.device.type == "meta"  # no card is needed to see where it lies
    asked = rows_asked_for(monkeypatch)
    images = torch.zeros(300, 32, 32, 3, dtype=torch.uint8)
    predict(build.load_network(record, file, "cpu"), images, 32, record.normalization)
    assert asked == [("cpu", 32)]


def test_a_network_that_enlarges_pictures_gets_as_few_at_once_as_large_ones(monkeypatch):
    asked, sides = rows_asked_for(monkeypatch), []
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
    for size, side in ((64, 64), (16, 32), (None, 32)):
        model = InputAdapter(network, size=size, bgr=False, order=None)
        predict(model, torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 32, Normalization((0.5,) * 3, (0.25,) * 3))
        assert sides.pop() == (size or 32) and asked.pop() == ("cpu", side)


def rows_asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where and of which side rows are asked for, as they are."""
    asked: list[tuple[str, int]] = []
    real = forward_batch.rows_at_once
    monkeypatch.setattr(
        forward_batch,
        "rows_at_once",
        lambda place, side: asked.append((torch.device(place).type, side)) or real(place, side),
    )
    return asked


def test_the_page_resizes_as_the_device_does(tmp_path: Path):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    (tmp_path / "verify.mjs").write_text(
        (ROOT / "export" / "bundle" / "page" / "verify.js").read_text()
    )  # in a browser it is a module by its tag
    for own in (13, 5):
        call = f"m.resized({json.dumps(x.ravel().tolist())}, 2, 8, {own})"
        script = f"import('{tmp_path}/verify.mjs').then(m => console.log(JSON.stringify([...{call}])))"
        done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
        rows = resize_matrix(8, own)
        wanted = np.einsum("yi,xj,nijc->nyxc", rows, rows, x)
        np.testing.assert_allclose(np.reshape(json.loads(done.stdout), wanted.shape), wanted, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_its_own_size_is_checked_and_judged(save, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = save(scorer(np.random.default_rng(0).normal(size=(10, 3)), size=48))
    assert main.main(["check", FLAGSHIP, *sets(f"{{onnx: {path}}}")]) == 0
    assert "10 classes, float_nchw, 48x48, to which each view of 32x32 is resized" in capsys.readouterr().out
    assert main.main(["check", FLAGSHIP, *sets(f"{{onnx: {path}, image_size: 40}}")]) == 2
    assert "its input is (?, 3, 48, 48), expected (N, 3, 40, 40)" in capsys.readouterr().err
    assert (
        main.main(["teachers", FLAGSHIP, *sets(f"{{onnx: {path}}}"), "--artifacts", str(tmp_path), "--device", "cpu"])
        == 0
    )


def test_wrong_classes_of_one_candidate_are_said_before_another_is_trained(
    save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = save(scorer(np.ones((11, 3))))
    common = ["--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main(["check", FLAGSHIP, *sets(f"{{onnx: {path}}}")]) == 2
    assert "gives 11 values an image, but 10 classes are expected; name them" in capsys.readouterr().err
    others = "classes: [Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot, a, b]"
    for candidate, said in (
        (f"{{onnx: {path}}}", "gives 11 values"),
        (f"{{onnx: {path}, {others}}}", "it has no 'T-shirt/top'; the data's classes are"),
    ):
        assert (
            main.main(["teachers", FLAGSHIP, *sets(f"{{model: resnet8, train: {{epochs: 9}}}}, {candidate}"), *common])
            == 2
        )
        out, err = capsys.readouterr()
        assert said in err and len(err.splitlines()) == 1 and "teacher resnet8" not in out


def test_a_plan_judges_no_limit_against_an_onnx_teacher_that_is_not_here(tmp_path: Path):
    with_file = loader.load(Path(FLAGSHIP), ["teacher.candidates=[{onnx: x.onnx}, {model: resnet8}]"]).recipe

    assert set(limits.JUDGED) - set(limits.judged(with_file, tmp_path)) == {"min_speedup", "min_compression"}
    assert limits.judged(loader.load(Path(FLAGSHIP)).recipe, tmp_path) == limits.JUDGED


def test_a_plan_takes_the_file_as_it_is(save, tmp_path: Path):
    path = save(scorer(np.random.default_rng(0).normal(size=(10, 3)), size=48))
    settings = loader.load(Path(FLAGSHIP), [f"teacher.candidates=[{{onnx: {path}, channels: bgr}}]"]).recipe
    (one,) = candidates.teachers(
        settings, tmp_path, candidates.InputSpec(10, 32, Normalization((0.5,) * 3, (0.25,) * 3))
    )
    context = Context(tmp_path, "cpu", Console(silent=True), tmp_path)
    drafted = export_untrained(
        Export(),
        context=context,
        network=one.network,
        target=None,
        per_channel=True,
        float_layers=(),
        pictures=None,
        versions={},
        file=File.of(path),
    )
    assert one.name == "teacher.onnx at 48 pixels" and limits.judged(settings, tmp_path) == limits.JUDGED
    assert drafted.fp32.path.read_bytes() == path.read_bytes() and drafted.params == 39 and drafted.contract is not None
    assert Model.load(drafted.fp32.path).run(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 10)


def sets(candidate: str, **more: object) -> list[str]:
    keys = {
        "data.limit_train": 300,
        "data.limit_test": 200,
        "data.validation": 100,
        "teacher.candidates": f"[{candidate}]",
        "distill.baseline": False,
        "student.model": "resnet8",
        "student.width": "null",
        "train.epochs": 1,
        "validate.repeats": 64,
        "validate.warmup": 2,
        "require": "{max_top1_drop: 100}",
        **more,
    }
    return [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our embedded teacher, exported as others would: blue first, float input, another order, one output more."""
    from compress.models import build, checkpoints

    network = build("resnet8x4", classes=10)
    checkpoints.load_state(
        network, checkpoints.read_state(checkpoints.embedded_teacher("resnet8x4")), source="embedded"
    )

    class Foreign(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.network(x.flip(1))
            return torch.cat([logits, logits[:, :1] * 0 + 99], 1)[:, torch.tensor(ORDER)]

    path = tmp_path_factory.mktemp("foreign") / "theirs.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11's exporter warns of its own code
        torch.onnx.export(
            Foreign().eval(),
            (torch.zeros(2, 3, 32, 32),),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes={"x": {0: torch.export.Dim("N")}},
            input_names=["x"],
            output_names=["y"],
        )
    nameless = onnx.load(str(path))
    for node in nameless.graph.node:  # other exporters name no nodes
        node.name = ""
    onnx.save(nameless, str(path))
    return path


def theirs(path: Path) -> str:
    names = [*fashion.CLASSES, "none of these"]
    listed = ", ".join(json.dumps(names[index]) for index in ORDER)
    constants = "{mean: [0.286, 0.286, 0.286], std: [0.353, 0.353, 0.353]}"
    return f"{{onnx: {path}, channels: bgr, expect_top1: 0.85, classes: [{listed}], normalize: {constants}}}"


@pytest.mark.slow
def test_the_whole_workflow_with_an_onnx_teacher(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["run", FLAGSHIP, *sets(theirs(trained)), "--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main(arguments) in (0, 6), capsys.readouterr().err
    run = (tmp_path / "runs" / "mobilenet" / "latest").resolve()
    report = json.loads((run / "report.json").read_text())

    assert (run / "teacher.onnx").read_bytes() == trained.read_bytes()
    teacher = report["models"][0]
    assert (teacher["file"], teacher["max_abs_diff_from_torch"]) == ("teacher.onnx", None)
    assert (
        teacher["top1"] > 0.8
        and report["teacher"]["model"] == "theirs.onnx"
        and report["teacher"]["origin"] == "an ONNX file as it is"
    )
    assert report["teacher"]["top1_validation"] > 0.8 and report["teacher"]["macs"] == 177_071_104 - 90 * 256
    moved = tmp_path / "moved"
    shutil.copytree(run / "bundle", moved)  # on the device: numpy and onnxruntime alone
    done = subprocess.run(
        [sys.executable, "-m", "export.verify", ".", "--no-latency"], cwd=moved, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_features_are_refused_by_name_and_a_wrong_input_stops_the_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    common = ["--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main(["check", FLAGSHIP, *sets(theirs(trained), **{"distill.method": "at"})]) == 2
    assert "theirs.onnx" in capsys.readouterr().err
    upright = theirs(trained).replace("channels: bgr, ", "")
    assert main.main(["check", FLAGSHIP, *sets(upright)]) == 0
    assert "theirs.onnx: " in capsys.readouterr().out
    assert (
        main.main(
            ["teachers", FLAGSHIP, *sets(theirs(trained).replace("0.286, 0.286, 0.286", "0.9, 0.9, 0.9")), *common]
        )
        == 4
    )
    assert "teacher theirs.onnx: expect_top1 is 0.8500" in capsys.readouterr().err
