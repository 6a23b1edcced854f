"""ONNX files of other projects become files with logits (N, K), whatever they answer with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from export.graph.foreign_logits import external_files, write_logits
from export.graph.foreign_model import inspect
from export.runtime import ExportError, UnavailableError
from tests.support.cases import onnx_teachers
from tests.support.cases.onnx_teachers import CLASSES, F32, SIZE, WEIGHTS, build, node, value

PIXELS = np.random.default_rng(1).normal(size=(20, 3, SIZE, SIZE)).astype(np.float32) * 3
LOGITS = PIXELS.mean((2, 3)) @ WEIGHTS.T
CENTRED = LOGITS - LOGITS.mean(1, keepdims=True)


def read(model: ModelProto | Path, tmp_path: Path, **asked: object) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """(logits of the written file, what was said, whether it is the same file)."""
    path = model if isinstance(model, Path) else tmp_path / "theirs.onnx"
    if isinstance(model, ModelProto):
        onnx.save(model, str(path))
    target = tmp_path / "written.onnx"
    found = write_logits(path, target, pixels=PIXELS, **{"outputs": CLASSES, "output": None, **asked})
    layout = inspect(target, image_size=SIZE, outputs=CLASSES).layout
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    images = PIXELS if layout == "float_nchw" else PIXELS.transpose(0, 2, 3, 1)
    one, fixed = session.get_inputs()[0].name, session.get_inputs()[0].shape[0] == 1
    parts = [images[n : n + 1] for n in range(len(images))] if fixed else [images]
    logits = np.concatenate([session.run(None, {one: np.ascontiguousarray(part)})[0] for part in parts])
    return logits, found.notes, target.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", ""),
        ("softmax", "its output 'y' is probabilities: the logits before it, 'y0', are taken"),
        ("log_softmax", "its output 'y' is log-probabilities: the logits before it, 'y0', are taken"),
        ("two_outputs", "its output 'y0' is taken, which is computed from 'v' (output takes another)"),
        ("n_k_1_1", "its output 'y' is (N, 3, 1, 1), read as (N, 3)"),
        ("zipmap", "its output 'y0' is taken (of label, probabilities)"),
        ("external", "its weights are in external.onnx.data, too"),
        ("keras_like", "its output 'y' is probabilities: the logits before it, 'y0', are taken"),
    ],
)
def test_every_form_gives_its_logits_and_says_how(tmp_path: Path, name: str, said: str):
    onnx_teachers.write(tmp_path)
    logits, notes, same = read(tmp_path / f"{name}.onnx", tmp_path)
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-4, atol=1e-4)
    assert "; ".join(notes) == said and same is (name == "plain")


def test_logits_that_are_not_finite_are_counted(tmp_path: Path):
    onnx.save(onnx_teachers.FORMS["nan"](), str(tmp_path / "x.onnx"))
    found = write_logits(tmp_path / "x.onnx", tmp_path / "y.onnx", pixels=PIXELS, outputs=CLASSES)
    assert not found.finite.any() and len(found.finite) == 20


# Files of the same kinds that are in no list.

HIDDEN = [
    node("ReduceMax", ["y0"], ["top"], axes=[1], keepdims=1),
    node("Sub", ["y0", "top"], ["shifted"]),
    node("Exp", ["shifted"], ["e"]),
    node("ReduceSum", ["e", "one"], ["s"], keepdims=1),
    node("Div", ["e", "s"], ["p"]),
]
ONE = {"one": np.array([1])}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (build(HIDDEN, constants=ONE), "'p' is probabilities: the logits before it, 'y0', are taken"),
        (
            build(
                [
                    node("Softmax", ["y0"], ["p"], axis=-1),
                    node("Identity", ["p"], ["i"]),
                    node("Reshape", ["i", "to"], ["y"]),
                ],
                constants={"to": np.array([-1, CLASSES])},
            ),
            "'y' is probabilities: the logits before it, 'y0', are taken",
        ),
        (
            build([node("Softmax", ["y0"], ["p"], axis=1), node("Log", ["p"], ["y"])]),
            "'y' is log-probabilities: the logits before it, 'y0', are taken",
        ),
        (
            build(
                [node("Unsqueeze", ["y0", "axes"], ["u"]), node("Softmax", ["u"], ["y"], axis=1)],
                [value("y", ("N", CLASSES, 1, 1))],
                constants={"axes": np.array([2, 3])},
            ),
            "'y' is probabilities: the logits before it, 'y0', are taken",
        ),
        (
            build([node("Softmax", ["y0"], ["p"], axis=1)], [value("y0"), value("p")]),
            "'p' is probabilities: the logits before it, 'y0', are taken",
        ),
        (
            build([node("Sigmoid", ["y0"], ["y"])]),
            "'y' is a sigmoid for each class: the logits before it, 'y0', are taken",
        ),
    ],
    ids=["exp-sum-div", "then-reshape", "log", "four-axes", "logits-beside", "sigmoid"],
)
def test_logits_behind_any_softmax_are_found(tmp_path: Path, model: ModelProto, said: str):
    logits, notes, _ = read(model, tmp_path)
    shift = logits - LOGITS
    np.testing.assert_allclose(shift, shift[:, :1].repeat(CLASSES, 1), atol=1e-3)  # the same up to a constant
    assert said in notes[-1]


def test_probabilities_with_no_logits_behind_them_become_centred_logarithms(tmp_path: Path):
    both = [
        node("Softmax", ["y0"], ["a"], axis=1),
        node("Mul", ["y0", "three"], ["t"]),
        node("Softmax", ["t"], ["b"], axis=1),
        node("Mean", ["a", "b"], ["y"]),
    ]
    for opset in (13, 17, 18, 21):
        model = build(both, constants={"three": np.array(3, np.float32)}, opset=opset)
        logits, notes, _ = read(model, tmp_path)
        powers = [np.exp(LOGITS * factor) for factor in (1, 3)]
        mean = sum(one / one.sum(1, keepdims=True) for one in powers) / 2
        wanted = np.log(np.maximum(mean, 1e-7))
        np.testing.assert_allclose(logits, wanted - wanted.mean(1, keepdims=True), rtol=1e-3, atol=1e-3)
        assert "the logarithm (of at least 1e-07), less its mean over the classes, is taken as logits" in notes[0]


def test_saturated_probabilities_stay_finite(tmp_path: Path):
    model = build(
        [
            node("Mul", ["y0", "much"], ["m"]),
            node("Softmax", ["m"], ["a"], axis=1),
            node("Max", ["a", "a"], ["y"]),
        ],
        constants={"much": np.array(1e6, np.float32)},
    )
    logits, notes, _ = read(model, tmp_path)
    assert np.isfinite(logits).all() and (logits.argmax(1) == LOGITS.argmax(1)).all() and "probabilities" in notes[0]


def test_logits_that_happen_to_be_small_are_no_probabilities(tmp_path: Path):
    model = build([node("Mul", ["y0", "little"], ["y"])], constants={"little": np.array(0.01, np.float32)})
    logits, notes, same = read(model, tmp_path)
    assert same and notes == ()
    np.testing.assert_allclose(logits, LOGITS * 0.01, rtol=1e-4, atol=1e-6)


def test_half_precision_is_taken(tmp_path: Path):
    model = build([node("Softmax", ["y0"], ["y"], axis=1)], kind=TensorProto.FLOAT16)
    logits, notes, _ = read(model, tmp_path)
    np.testing.assert_allclose(logits, LOGITS, rtol=2e-2, atol=2e-2)
    assert "precision" in notes[0] and "probabilities" in notes[1]


def test_the_layout_of_an_input_without_a_shape_is_tried(tmp_path: Path):
    model = build(shape=("N", "h", "w", "c"), last=True)
    # A sum over the channels of the wrong axis would have another length.
    logits, notes, _ = read(model, tmp_path)
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-4, atol=1e-4)
    assert notes[0] == "its input is (N, S, S, 3)"
    logits, notes, same = read(build(shape=("N", "c", "h", "w")), tmp_path)
    assert same and notes == ()


def test_a_fixed_batch_stays(tmp_path: Path):
    model = build([node("Softmax", ["y0"], ["y"], axis=1)], [value("y", (1, CLASSES))], shape=(1, 3, SIZE, SIZE))
    np.testing.assert_allclose(read(model, tmp_path)[0], LOGITS, rtol=1e-4, atol=1e-4)
    squeezed = build(
        [node("Squeeze", ["y0", "axes"], ["y"])],
        [value("y", (CLASSES,))],
        shape=(1, 3, SIZE, SIZE),
        constants={"axes": np.array([0])},
    )
    np.testing.assert_allclose(read(squeezed, tmp_path)[0], LOGITS, rtol=1e-4, atol=1e-4)


def test_an_output_of_another_length_is_no_choice(tmp_path: Path):
    more = {"wide": np.ones((3, 7), np.float32)}
    model = build(
        [node("MatMul", ["v", "wide"], ["embedding"])], [value("embedding", ("N", 7)), value("y0")], constants=more
    )
    logits, notes, _ = read(model, tmp_path)
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-4, atol=1e-4)
    assert notes == ("its output 'y0' is taken (of embedding, y0)",)


def test_two_heads_are_asked_about_and_the_recipe_chooses(tmp_path: Path):
    model = build(
        [node("Gemm", ["v", "w"], ["aux"], transB=1), node("Neg", ["aux"], ["main"])],
        [value("y0"), value("main")],
    )
    with pytest.raises(
        ExportError, match="several outputs of this shape: y0, main; say which gives the logits: output: main"
    ):
        read(model, tmp_path)
    np.testing.assert_allclose(read(model, tmp_path, output="main")[0], -LOGITS, rtol=1e-4, atol=1e-4)
    logits, notes, _ = read(model, tmp_path, output="aux")  # a tensor inside the file
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-4, atol=1e-4)
    assert notes == ("'aux' is taken as its output",)
    with pytest.raises(ExportError, match="has no tensor 'mian'; its outputs are y0, main"):
        read(model, tmp_path, output="mian")


def test_labels_alone_are_refused_with_what_stands_before_them(tmp_path: Path):
    model = build([node("ArgMax", ["y0"], ["label"], axis=1, keepdims=0)], [value("label", ("N",), TensorProto.INT64)])
    with pytest.raises(ExportError, match="gives labels .'label'., not a value for each class") as error:
        read(model, tmp_path)
    assert str(error.value).endswith("before it stands 'y0': output: y0")
    np.testing.assert_allclose(read(model, tmp_path, output="y0")[0], LOGITS, rtol=1e-4, atol=1e-4)


def test_one_value_an_image_and_a_softmax_over_the_batch_are_refused(tmp_path: Path):
    one = build([node("ReduceSum", ["y0", "one"], ["y"], keepdims=1)], [value("y", ("N", 1))], constants=ONE)
    with pytest.raises(ExportError, match="gives one value an image .*expected one for each class"):
        read(one, tmp_path)
    across = build([node("Softmax", ["y0"], ["y"], axis=0)])
    with pytest.raises(ExportError, match="depends on the other images of the batch: a Softmax over the wrong axis"):
        read(across, tmp_path)


def test_two_inputs_and_no_onnx_are_refused(tmp_path: Path):
    model = build()
    model.graph.input.append(helper.make_tensor_value_info("scale", F32, [1]))
    with pytest.raises(ExportError, match=r"expected one input, found 2 \(x, scale\)"):
        read(model, tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot load this file"):
        write_logits(tmp_path / "x.onnx", tmp_path / "y.onnx", pixels=PIXELS, outputs=CLASSES)
    with pytest.raises(UnavailableError, match="no such file"):
        write_logits(tmp_path / "z.onnx", tmp_path / "y.onnx", pixels=PIXELS, outputs=CLASSES)


def test_weights_in_a_second_file_are_listed_and_missed(tmp_path: Path):
    path = tmp_path / "big.onnx"
    onnx_teachers.save_apart(build(), path)
    assert external_files(path) == (tmp_path / "big.onnx.data",)
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(UnavailableError) as error:
        external_files(path)
    assert (
        str(error.value) == f"{path}: its weights are in big.onnx.data, which is not beside it; copy it to {tmp_path}"
    )


def test_weights_outside_the_folder_are_not_read(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "big.onnx"
    onnx_teachers.save_apart(build(), path)
    (path.parent / "big.onnx.data").rename(tmp_path / "secret")
    path.write_bytes(path.read_bytes().replace(b"big.onnx.data", b"./././../secret"[-13:]))
    with pytest.raises(ExportError):
        external_files(path)
