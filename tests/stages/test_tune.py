"""Training as int8 computes: the same method goes on, and the file that comes out is what was trained."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from compress.core.errors import Interrupted, StageError
from compress.core.records.base import File
from compress.data import training_arrays
from compress.recipe.schema import Distill, ResolvedQat
from compress.stages import data, distill, quantize, strip, tune
from compress.training import build
from export.runtime import Model

pytestmark = pytest.mark.slow

QAT = ResolvedQat(scheme="qat", epochs=2, lr=0.01)


@pytest.fixture(scope="module")
def given(exported, stripped, distilled, trained_teacher, prepared, data_config, versions, dhkd, train):
    return {
        "method": dhkd,
        "trained": distilled,
        "stripped": stripped,
        "model": exported,
        "teacher": trained_teacher,
        "data": data.calibration(prepared, data_config),
        "train": train,
        "target": "x86-avx2",
        "versions": versions,
    }


@pytest.fixture(scope="module")
def tuned(context, given):
    return tune.run_tune(QAT, context=context("tune"), **given)


@pytest.fixture(scope="module")
def tuned_file(context, given, tuned):
    told = {name: given[name] for name in ("model", "data", "target", "versions")}
    return quantize.run_quantize(QAT, context=context("quantize"), tuned=tuned, **told)


def test_the_record_says_what_was_trained(tuned, stripped):
    assert (tuned.epochs, tuned.lr, tuned.target, tuned.top1_float) == (
        2,
        0.01,
        "x86-avx2",
        stripped.trained.top1_validation,
    )
    assert tuned.agreement >= 39 / 40 and tuned.mean_abs_diff < 0.05  # one picture of forty may lie between two classes
    assert (
        len(tuned.history.path.read_text().splitlines()) == 3
        and not (tuned.history.path.parent / "check.onnx").exists()
    )
    assert 0 <= tuned.top1_static <= 1 and 0 <= tuned.top1_validation <= 1


def test_the_file_holds_the_trained_weights_and_ranges(tuned, tuned_file, exported, given):
    assert tuned_file.scheme == "qat" and Model.load(tuned_file.file.path).target == "x86-avx2"
    weights, floats = (
        load_file(tuned.weights.path),
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(exported.file.path)).graph.initializer},
    )
    changed = [
        name for name, value in weights.items() if name in floats and not np.array_equal(value.numpy(), floats[name])
    ]
    assert len(changed) == len(weights)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(tuned_file.file.path)).graph.initializer}
    ranges = json.loads(tuned.ranges.path.read_text())
    for name, (low, high) in ranges.items():
        if f"{name}_scale" in stored:
            assert float(stored[f"{name}_scale"]) == float(np.float32((np.float64(high) - np.float64(low)) / 255)), name
    assert sum(f"{name}_scale" in stored for name in ranges) >= len(ranges) - 1  # the logits stay float


def test_the_file_is_as_accurate_as_training_said(tuned, tuned_file, given):
    images, labels, _, index = training_arrays(given["data"].training)
    side = given["data"].training.image_size
    edge = (images.shape[1] - side) // 2
    pictures = np.ascontiguousarray(images[index, edge : edge + side, edge : edge + side])
    top1 = (Model.load(tuned_file.file.path).run(pictures).argmax(1) == labels[index]).mean()
    assert top1 == pytest.approx(tuned.top1_validation, abs=1.5 / len(index))


def test_the_method_goes_on_where_distillation_ended(context, given, monkeypatch):
    seen = {}

    def spy(student, method, pictures, **options):
        seen.update(
            {name: value.clone() for name, value in method.state_dict().items()},
            before=options["epochs_before"],
            taps=options["taps"],
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "fit", spy)
    with pytest.raises(KeyboardInterrupt):
        tune.run_tune(QAT, context=context("spy"), **given)
    left = {
        name.removeprefix("method."): value
        for name, value in load_file(given["trained"].combined.path).items()
        if name.startswith("method.")
    }
    assert left and all(torch.equal(seen[name], value) for name, value in left.items())
    assert seen["before"] == given["trained"].epochs and seen["taps"] == {"pooled": "taps.pooled:out"}


def test_an_interrupted_tuning_ends_with_the_same_bits(context, given, tuned, monkeypatch):
    where, fit = context("parts"), tune.fit

    def stopped(*arguments, progress, **options):
        def stop(row):
            raise KeyboardInterrupt

        progress.epoch = stop
        return fit(*arguments, progress=progress, **options)

    with monkeypatch.context() as part:
        part.setattr(tune, "fit", stopped)
        with pytest.raises(Interrupted, match="interrupted in epoch 2 of 2, checkpoint kept"):
            tune.run_tune(QAT, context=where, **given)
    assert (where.work / "checkpoint.pt").is_file()

    again = tune.run_tune(QAT, context=where, **given)

    assert (again.weights.sha256, again.ranges.sha256) == (tuned.weights.sha256, tuned.ranges.sha256)


def test_a_baseline_is_tuned_by_plain_training(context, given, network, training, train):
    plain = Distill(method=("none",))
    trained = distill.run_distill(
        plain,
        context=context("plain"),
        student=network,
        start="none",
        weights=None,
        teacher=None,
        data=training,
        train=train,
    )
    stripped = strip.run_strip(
        plain, context=context("plain"), student=network, teacher=None, trained=trained, data=training
    )
    told = {**given, "method": plain, "trained": trained, "teacher": None}
    # the float file of the other student: what is trained is its graph, here only the loss matters
    found = tune.run_tune(
        QAT.model_copy(update={"epochs": 1}), context=context("plain"), **{**told, "stripped": stripped}
    )
    assert "ce" in found.history.path.read_text().splitlines()[0] and "bkl" not in found.history.path.read_text()


def test_a_map_that_the_graph_does_not_hold_is_refused_by_name(given):
    live = tune._student(given["stripped"])
    pictures = build.load_images(given["data"].training, "cpu")
    graph = tune.export.int8.quantize.prepare(given["model"].file.path, np.zeros((2, 16, 16, 3), np.uint8))
    found = tune._find_tensors(("pooled", "stages_post.1"), given["stripped"].trained, live, graph, pictures)
    assert set(found) == {"pooled", "stages_post.1"} and len(set(found.values())) == 2
    with pytest.raises(StageError, match="reads the map 'head', which the exported graph does not hold"):
        tune._find_tensor("head", torch.randn(4, 16), {"logits": torch.randn(4, 16)})


def test_a_student_in_another_form_is_refused(given):
    other = dataclasses.replace(
        given["stripped"].trained,
        network=dataclasses.replace(given["stripped"].trained.network, deployed={"kind": "x"}),
    )
    with pytest.raises(StageError, match="ships another network than it compares with the teacher"):
        tune._student(dataclasses.replace(given["stripped"], trained=other))


def test_a_file_that_answers_otherwise_is_refused(context, given, monkeypatch):
    monkeypatch.setattr(tune, "fit", lambda student, *_, **__: None)
    turned = tune.export.int8.search.logits
    monkeypatch.setattr(tune.export.int8.search, "logits", lambda *arguments: np.roll(turned(*arguments), 1, axis=1))
    with pytest.raises(StageError, match="it is not what was trained"):
        tune.run_tune(QAT, context=context("otherwise"), **given)


def test_a_file_that_is_no_model_is_a_stage_error(context, given):
    where = context("broken")
    (where.work / "broken.onnx").write_bytes(b"no model")
    broken = dataclasses.replace(given["model"], file=File.of(where.work / "broken.onnx"), int8_source=None)
    with pytest.raises(StageError, match="^tune: .*cannot load this file"):
        tune.run_tune(QAT, context=where, **{**given, "model": broken})


def test_a_tuning_that_loses_is_said():
    assert tune.worse(0.8, 0.8) is None
    assert tune.worse(0.79, 0.75) == (
        "tuning made it worse: 75.00 % on validation images, static int8 of the same student has 79.00 %; "
        "lower quantize.lr, or use "
        "quantize.scheme: static"
    )
