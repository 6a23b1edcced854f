"""ONNX teachers of every form through the command line, on images whose colour is their class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.cli import main
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.training.teacher.signals import teacher_cache
from tests.support.cases import onnx_teachers
from tests.support.cases.onnx_teachers import build, node

COLOURS = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
# Logits of the mean colour, so that every image is classified correctly.
RIGHT = np.eye(3, dtype=np.float32) * 4
Ran = Callable[..., tuple[int, str]]


def images(count: int, seed: int, colours: np.ndarray = COLOURS) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(colours)
    noise = generator.normal(0, 12, (count, 32, 32, 3))
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def save_images(folder: Path, names: list[str], colours: np.ndarray = COLOURS) -> None:
    (train, train_labels), (test, test_labels) = images(360, 0, colours), images(60, 1, colours)
    np.savez(
        folder / "colours.npz",
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
        class_names=np.array(names),
    )


@pytest.fixture
def ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    """`compress COMMAND` with an ONNX teacher -> (exit code, everything printed)."""
    save_images(tmp_path, ["a", "b", "c"])

    def run(command: str, candidate: str, *more: str) -> tuple[int, str]:
        (tmp_path / "r.yaml").write_text(
            "data: {source: npz, root: colours.npz, image_size: 32, validation: 300}\n"
            f"teacher: {{candidates: [{{{candidate}}}]}}\n"
            "student: {model: resnet8}\ntrain: {epochs: 1}\ndistill: {method: dhkd, baseline: false}\n"
            "quantize: {scheme: none}\nvalidate: {repeats: 64, warmup: 2}\n"
        )
        place = [] if command == "check" else ["--artifacts", str(tmp_path / "a"), "--device", "cpu"]
        code = main.main([command, str(tmp_path / "r.yaml"), *place, *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


NORMALIZE = "normalize: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("plain", 0, "note: teacher plain.onnx: an ONNX file as it is"),
        ("softmax", 0, "an ONNX file: its output 'y' is probabilities: the logits before it, 'y0', are taken"),
        ("log_softmax", 0, "an ONNX file: its output 'y' is log-probabilities: the logits before it, 'y0'"),
        ("two_outputs", 0, "an ONNX file: its output 'y0' is taken, which is computed from 'v'"),
        ("n_k_1_1", 0, "an ONNX file: its output 'y' is (N, 3, 1, 1), read as (N, 3)"),
        ("zipmap", 0, "an ONNX file: its output 'y0' is taken (of label, probabilities)"),
        ("external", 0, "an ONNX file: its weights are in external.onnx.data, too"),
        ("keras_like", 0, "an ONNX file: its output 'y' is probabilities: the logits before it"),
        ("nan", 4, "its logits are not finite (NaN or infinite) for 300 of 300 validation images"),
    ],
)
@pytest.mark.slow
def test_every_form_teaches_or_is_refused(ran: Ran, tmp_path: Path, name: str, code: int, said: str):
    onnx_teachers.write(tmp_path)
    candidate = f"onnx: {name}.onnx, {NORMALIZE}"
    found, printed = ran("teachers", candidate)
    assert found == code and said in printed
    found, printed = ran("check", candidate)
    assert found == (2 if code else 0)
    assert ("not finite" in printed) is (name == "nan") and (
        name in ("plain", "nan") or said.split(": ", 1)[1] in printed
    )


@pytest.mark.slow
def test_a_softmax_teaches_what_its_logits_teach(ran: Ran, tmp_path: Path):
    onnx.save(build(weights=RIGHT), str(tmp_path / "plain.onnx"))
    onnx.save(build([node("Softmax", ["y0"], ["y"], axis=1)], weights=RIGHT), str(tmp_path / "softmax.onnx"))
    tops = []
    for name in ("plain", "softmax"):
        code, said = ran("run", f"onnx: {name}.onnx, {NORMALIZE}")
        assert code == 0, said
        run = (tmp_path / "a" / "runs" / "r" / "latest").resolve()
        report = json.loads((run / "report.json").read_text())
        tops.append([(row["top1"], row["agreement_with_teacher"]) for row in report["models"]])
        logits = np.load(run / "predictions.npz")["logits/teacher.onnx"]
        assert logits.min() < -1 < 2 < logits.max() and report["models"][0]["top1"] == 1.0
    assert tops[0] == tops[1]
    assert "the logits before it, 'y0', are taken" in report["teacher"]["origin"]


def test_weights_in_a_second_file_are_part_of_the_teacher(ran: Ran, tmp_path: Path):
    path = tmp_path / "t.onnx"
    onnx_teachers.save_apart(build(weights=RIGHT), path)
    candidate = f"onnx: t.onnx, {NORMALIZE}, expect_top1: 0.99"
    assert ran("teachers", candidate)[0] == 0
    code, said = ran("teachers", candidate)
    assert code == 0 and "reused" in said and "its weights are in t.onnx.data, too" in said
    data = tmp_path / "t.onnx.data"
    data.write_bytes(data.read_bytes().replace(np.float32(4).tobytes(), np.float32(-4).tobytes()))
    code, said = ran("teachers", candidate)
    assert code == 4 and "expect_top1 is 0.9900, but validation gives 0.0000" in said
    data.unlink()
    for command in ("check", "teachers"):
        code, said = ran(command, candidate)
        assert code == 3 and "its weights are in t.onnx.data, which is not beside it; copy it to" in said


def test_the_recipe_names_an_output(ran: Ran, tmp_path: Path):
    model = build([node("Neg", ["y0"], ["y1"]), node("Abs", ["y1"], ["y2"])], weights=RIGHT)
    onnx.save(model, str(tmp_path / "t.onnx"))
    code, said = ran("teachers", f"onnx: t.onnx, {NORMALIZE}, output: y0")
    assert code == 0 and "'y0' is taken as its output" in said and "100.00" in said
    code, said = ran("check", f"onnx: t.onnx, {NORMALIZE}, output: logits")
    assert code == 2 and "has no tensor 'logits'; its outputs are y2" in said
    assert "r.yaml:2:" in said and "Traceback" not in said
    code, said = ran("check", "model: resnet8, output: y0")
    assert code == 2 and "names a tensor of an ONNX file" in said


def colour_at(mean: tuple[float, ...], std: tuple[float, ...], bgr: bool) -> np.ndarray:
    """The mean colours of the classes as a network sees them, (3, 3)."""
    seen = (COLOURS / 255 - np.array(mean)) / np.array(std)
    return seen[:, ::-1] if bgr else seen


def nearest(centres: np.ndarray) -> onnx.ModelProto:
    """A classifier by the nearest centre; away from all centres it names the first class."""
    scale = float(((centres[:, None] - centres[None]) ** 2).sum(-1)[~np.eye(3, dtype=bool)].min()) ** 0.5
    far = scale / 2
    weights = (2 * centres).astype(np.float32)
    bias = (-(centres**2).sum(1)).astype(np.float32)
    tail = [
        node("Add", ["y0", "bias"], ["scores"]),  # minus the squared distance, but for the square of the colour
        node("Mul", ["v", "v"], ["vv"]),
        node("ReduceSum", ["vv", "axis"], ["square"], keepdims=1),
        node("Sub", ["scores", "square"], ["minus"]),
        node("ReduceMax", ["minus"], ["best"], axes=[1], keepdims=1),
        node("Less", ["best", "far"], ["away"]),
        node("Where", ["away", "first", "minus"], ["y"]),
    ]
    stored = {
        "bias": bias,
        "axis": np.array([1]),
        "far": np.array(-(far**2), np.float32),
        "first": np.array([[9, 0, 0]], np.float32),
    }
    return build(tail, weights=weights, constants=stored)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)


@pytest.mark.parametrize(
    ("mean", "std", "bgr", "name"),
    [
        (*IMAGENET, False, "ImageNet's mean and deviation (torchvision, timm, Keras `torch`)"),
        ((0.5,) * 3, (0.5,) * 3, False, "-1 to 1 (timm's 0.5, Keras `tf`)"),
        ((0.0,) * 3, (1.0,) * 3, False, "0 to 1 (ultralytics)"),
        ((0.0,) * 3, (1 / 255,) * 3, False, "0 to 255"),
        ((0.0,) * 3, (1 / 255,) * 3, True, "0 to 255, BGR"),
        (*CAFFE, True, "0 to 255 less ImageNet's mean, BGR (Keras `caffe`)"),
    ],
)
@pytest.mark.slow
def test_a_teacher_at_chance_is_told_its_convention_with_lines_that_work(
    ran: Ran, tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool, name: str
):
    centres = colour_at(mean, std, bgr)
    onnx.save(nearest(centres), str(tmp_path / "t.onnx"))
    wrong = "normalize: {mean: [0.9, 0.1, 0.3], std: [0.03, 0.02, 0.03]}"
    wrong = "normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}" if (mean, std) == CAFFE else wrong
    code, said = ran("teachers", f"onnx: t.onnx, {wrong}")
    assert code == 0 and f"commonest class (33.33 %): with pixels of {name} top-1 is 1.0000" in said
    failed, why = ran("teachers", f"onnx: t.onnx, {wrong}, expect_top1: 0.9")
    assert failed == 4 and f"with pixels of {name} top-1 is 1.0000" in why
    lines = said.split("write into the candidate: ")[1].splitlines()[0]
    code, said = ran("teachers", f"onnx: t.onnx, {lines}, expect_top1: 0.99")
    assert code == 0, said


def test_classes_in_natural_order_are_found(ran: Ran, tmp_path: Path):
    generator = np.random.default_rng(3)
    names = [f"c{number}" for number in range(1, 13)]
    colours = generator.permutation(np.array([(r, g, b) for r in (40, 215) for g in (40, 130, 215) for b in (40, 215)]))
    listed = sorted(names)  # as folders are read: c1, c10, c11, c12, c2, ...
    save_images(tmp_path, listed, colours)
    seen = np.array([(colours[listed.index(name)] / 255 - 0.5) / 0.25 for name in names])
    model = build(
        [node("Add", ["y0", "bias"], ["y"])],
        weights=(2 * seen).astype(np.float32),
        constants={"bias": (-(seen**2).sum(1)).astype(np.float32)},
    )
    onnx.save(model, str(tmp_path / "t.onnx"))
    code, said = ran("teachers", f"onnx: t.onnx, {NORMALIZE}")
    assert code == 0 and "and its classes in natural order top-1 is" in said
    lines = said.split("write into the candidate: ")[1].splitlines()[0]
    assert "classes: [c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12]" in lines
    code, said = ran("teachers", f"onnx: t.onnx, {lines}, expect_top1: 0.5")
    assert code == 0, said


def test_a_teacher_that_no_convention_helps_is_warned_of(ran: Ran, tmp_path: Path):
    onnx.save(
        build([node("Mul", ["y0", "nothing"], ["y"])], constants={"nothing": np.array(0, np.float32)}),
        str(tmp_path / "t.onnx"),
    )
    code, said = ran("teachers", f"onnx: t.onnx, {NORMALIZE}")
    assert code == 0 and "commonest class (33.33 %): no known convention of input and class order fits" in said


def test_a_training_image_without_finite_logits_ends_the_training_by_name(tmp_path: Path):
    model = build(
        [node("Sub", ["y0", "low"], ["a"]), node("Sqrt", ["a"], ["y"])],
        weights=RIGHT,
        constants={"low": np.array(-1, np.float32)},
    )
    onnx.save(model, str(tmp_path / "t.onnx"))
    file = File.of(tmp_path / "t.onnx")
    network = Network("t.onnx", None, 3, 32, Normalization((0.5,) * 3, (0.25,) * 3), black_box=True)
    data = TrainingData(file, file, ("a", "b", "c"), 32, "crop_flip", 8, 0)
    cache = teacher_cache(
        Trained(network, file, 0.5, 1, 1, 1, 1.0), data, 4, device="cpu", cache=None, warn=pytest.fail
    )
    bright = torch.full((4, 32, 32, 3), 200, dtype=torch.uint8)
    assert torch.isfinite(cache.compute_logits(bright)).all()
    bright[1] = 0
    with pytest.raises(StageError, match="teacher t.onnx: its logits are not finite .* for 1 of 4 views of training"):
        cache.compute_logits(bright)
