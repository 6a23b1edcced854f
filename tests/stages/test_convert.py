"""Export held against torch and against what was recorded when training ended."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import export.graph.from_torch
import export.graph.rewrites
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.recipe.schema import Export
from compress.stages import convert
from compress.training import build
from compress.training.evaluation import predict
from export.runtime import Model

pytestmark = pytest.mark.slow


def run(work, model, recorded, training, versions):
    return convert.run_convert(Export(), context=work, model=model, recorded=recorded, data=training, versions=versions)


def test_the_file_answers_as_recorded_on_the_validation_pictures(exported, stripped, training, network):
    images = np.load(training.images.path)
    recorded = np.load(stripped.predictions.path)
    from compress.data import training_arrays

    index = training_arrays(training)[3]
    model = Model.load(exported.file.path)
    assert (model.run(images[index]).argmax(axis=1) == recorded).all() and exported.disagreements == 0
    assert exported.images == len(index) == 40 and 0 < exported.max_abs_diff < 1e-4
    assert model.contract.classes == training.classes and model.contract.layout == "uint8_nhwc" == exported.input
    assert model.contract.mean == pytest.approx(network.normalization.mean)


@pytest.mark.parametrize(
    ("difference", "largest", "limit"), [(2e-3, 0.5, "0.001"), (2e-3, 1.5, "0.0015"), (float("nan"), 900.0, "0.9")]
)
def test_a_difference_above_the_limit_fails(
    work, stripped, training, versions, monkeypatch, difference, largest, limit
):
    measured = export.graph.from_torch.parity
    monkeypatch.setattr(
        export.graph.from_torch,
        "parity",
        lambda *rest: dataclasses.replace(measured(*rest), max_abs_diff=difference, largest=largest),
    )
    said = (
        r"convert resnet8: onnxruntime and torch differ by .* on real images "
        rf"\(limit {limit}, for logits that reach {largest:.3g}\)"
    )
    with pytest.raises(StageError, match=said):
        run(work, stripped.trained, stripped.predictions, training, versions)


def test_the_limit_grows_with_the_logits_whose_rounding_it_bounds(work, stripped, training, versions, monkeypatch):
    measured, seen = export.graph.from_torch.parity, list[float]()

    def large(*rest):
        found = measured(*rest)
        seen.append(found.largest)
        return dataclasses.replace(found, max_abs_diff=2e-3, largest=2.5)

    monkeypatch.setattr(export.graph.from_torch, "parity", large)
    assert run(work, stripped.trained, stripped.predictions, training, versions).max_abs_diff == 2e-3
    live = build.load_network(stripped.trained.network, stripped.trained.weights, "cpu").eval()
    network = stripped.trained.network
    logits = predict(live, build.load_images(training, "cpu").validation(), network.image_size, network.normalization)
    assert seen == [pytest.approx(float(logits.abs().max()), rel=1e-4)]


@pytest.fixture
def known(monkeypatch, stripped, exported):
    """The export itself is known to work: answer with the file and parity of before, without exporting again."""
    parity = export.graph.from_torch.Parity(1e-7, 1e-8, 1.0, 40, np.load(stripped.predictions.path), 9.0)
    made = export.graph.from_torch.ExportResult(18, 8, 10, 100, ())

    def to_onnx(live, path, contract, *, opset, images):
        path.write_bytes(exported.file.path.read_bytes())
        return made

    monkeypatch.setattr(export.graph.from_torch, "to_onnx", to_onnx)
    monkeypatch.setattr(export.graph.from_torch, "parity", lambda *rest: parity)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_predictions_that_differ_from_the_recorded_ones_fail_from_two_on(
    work, stripped, training, versions, known, wrong
):
    recorded = np.load(stripped.predictions.path)
    recorded[:wrong] = (recorded[:wrong] + 1) % 4
    np.save(work.work / "recorded.npy", recorded)
    file = File.of(work.work / "recorded.npy")
    if wrong < 2:
        assert run(work, stripped.trained, file, training, versions).disagreements == wrong
        return
    with pytest.raises(
        StageError, match="convert resnet8: 2 of 40 predictions differ from those recorded when training ended"
    ):
        run(work, stripped.trained, file, training, versions)


def test_without_a_record_the_accuracy_is_held_against_the_known_one(work, stripped, training, versions, known):
    assert run(work, stripped.trained, None, training, versions).disagreements == 0
    claimed = dataclasses.replace(stripped.trained, top1_validation=stripped.trained.top1_validation - 0.1)
    with pytest.raises(StageError, match="4 of 40 predictions differ"):
        run(work, claimed, None, training, versions)


def test_what_the_exporter_refuses_is_a_stage_error(work, stripped, training, versions, monkeypatch):
    def refuse(*arguments, **options):
        raise export.graph.from_torch.ExportError("no such operator")

    monkeypatch.setattr(export.graph.from_torch, "to_onnx", refuse)
    with pytest.raises(StageError, match="convert resnet8: no such operator"):
        run(work, stripped.trained, None, training, versions)


def test_the_file_says_what_the_application_must_do(work, stripped, training, versions, known, monkeypatch):
    written = {}
    made = export.graph.from_torch.to_onnx

    def to_onnx(live, path, contract, *, opset, images):
        written["contract"] = contract
        return made(live, path, contract, opset=opset, images=images)

    monkeypatch.setattr(export.graph.from_torch, "to_onnx", to_onnx)
    told = convert.preprocessing("folder", 18, 16)
    convert.run_convert(
        Export(),
        context=work,
        model=stripped.trained,
        recorded=None,
        data=training,
        versions=versions,
        preprocessing=told,
    )
    assert written["contract"].preprocessing == told
    assert [step["step"] for step in told["steps"]] == ["orient", "decode", "resize", "crop"]
    assert told["steps"][2]["short_side"] == 18 and told["steps"][3]["size"] == [16, 16]
    assert told["result"] == {"channels": "RGB", "dtype": "uint8", "layout": "NHWC", "range": [0, 255]}
    assert [step["step"] for step in convert.preprocessing("fashion", 32, 32)["steps"]] == ["decode", "pad", "repeat"]


def test_rewrites_for_integers_get_a_file_of_their_own(work, stripped, training, versions, known, monkeypatch):
    """resnet8 has nothing to rewrite, so the rewrite itself is stood in for."""
    seen = []

    def for_integers(source, target, images, share):
        seen.append(images.shape)
        target.write_bytes(source.read_bytes() + b"x")
        return (export.graph.rewrites.Rewrite("a", 2, True, "b", "int8", 0.0, 1.0, 40, 0.1, 0.2),)

    monkeypatch.setattr(export.graph.rewrites, "for_integers", for_integers)
    student = run(work, stripped.trained, stripped.predictions, training, versions)
    assert student.int8_source.bytes == student.file.bytes + 1 and seen == [(40, 16, 16, 3)]
    assert student.rewrites[0]["kept"] and student.rewrites[0]["rewritten_share"] == 0.2
    student.int8_source.path.unlink()
    teacher = run(work, stripped.trained, None, training, versions)
    assert teacher.int8_source is None and len(seen) == 1  # nothing quantises a teacher
