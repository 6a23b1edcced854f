"""The final validation on exported networks: the contract's keys, and every number recomputed from the raw files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile

import numpy as np
import pytest

from compress.errors import StageError
from compress.results import File, ModelFile
from compress.schema import Validate
from compress.stages import data, validate

MODEL_KEYS = {  # the contract's, then those that the report documents beyond it
    "role", "precision", "file", "sha256", "bytes", "images", "top1", "top1_ci95", "top5", "agreement_with_teacher", "max_abs_diff_from_torch",
    "latency_ms", "first_run_ms", "load_ms", "peak_memory_bytes", "int8_mac_share", "target",
} | {"islands"}  # fmt: skip
LATENCY_KEYS = {"p50", "p90", "p99", "runs", "threads", "batch"} | {"p50_ci95"}
COMPARISON_KEYS = {
    "model", "against", "top1_drop_points", "top1_drop_ci95", "mcnemar_p", "speedup_p50", "size_ratio",
} | {"images", "lost", "gained", "speedup_ci95"}  # fmt: skip


@pytest.fixture(scope="module")
def predictions(measured) -> dict[str, np.ndarray]:
    with np.load(measured.predictions.path) as stored:
        return dict(stored)


def test_rows_have_the_contracts_keys(measured):
    assert [set(row) for row in measured.models] == [MODEL_KEYS] * 3
    assert [set(row["latency_ms"]) for row in measured.models] == [LATENCY_KEYS] * 3
    assert [set(row) for row in measured.comparisons] == [COMPARISON_KEYS] * 3
    pairs = [(row["model"], row["against"]) for row in measured.comparisons]
    assert pairs == [("student.fp32.onnx", "teacher.onnx"), ("student.int8.onnx", "teacher.onnx"), ("student.int8.onnx", "student.fp32.onnx")]


def test_values_have_the_contracts_types(measured):
    for row in measured.models:
        numbers = [row["top1"], row["agreement_with_teacher"], row["first_run_ms"], row["load_ms"], row["int8_mac_share"], *row["top1_ci95"]]
        assert all(isinstance(value, float) for value in numbers)
        assert all(type(row[name]) is int for name in ("bytes", "images"))
        assert row["peak_memory_bytes"] is None or (type(row["peak_memory_bytes"]) is int and row["peak_memory_bytes"] > 10**7)
        assert row["latency_ms"]["p90"] > 0 and row["latency_ms"]["p99"] is None  # 70 runs: enough for p90, not for p99
        assert row["top5"] is None  # four classes
    assert [row["int8_mac_share"] > 0.9 for row in measured.models] == [False, False, True]
    assert [row["target"] for row in measured.models] == [None, None, "x86-vnni"]
    assert measured.models[0]["agreement_with_teacher"] == 1.0 and measured.models[2]["max_abs_diff_from_torch"] is None


def test_accuracies_are_those_of_the_predictions(measured, predictions, prepared, models):
    labels = predictions["labels"]
    teacher = predictions["logits/teacher.onnx"].argmax(axis=1)
    images = np.load(prepared.test_images.path)
    assert predictions["sha256"].tolist() == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert labels.tolist() == np.load(prepared.test_labels.path).tolist()
    for row, model in zip(measured.models, models, strict=True):
        answer = predictions[f"logits/{row['file']}"].argmax(axis=1)
        assert predictions[f"logits/{row['file']}"].dtype == np.float32
        assert (row["top1"], row["agreement_with_teacher"]) == ((answer == labels).mean(), (answer == teacher).mean())
        assert (row["images"], row["bytes"], row["sha256"]) == (120, model.file.bytes, model.file.sha256)
        p, z, n = row["top1"], 1.959964, 120  # Wilson
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert row["top1_ci95"] == pytest.approx([(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)], abs=1e-6)


def test_paired_numbers_are_those_of_the_predictions(measured, predictions):
    labels = predictions["labels"]
    sizes = {row["file"]: row["bytes"] for row in measured.models}
    for row in measured.comparisons:
        right, reference = (predictions[f"logits/{row[name]}"].argmax(axis=1) == labels for name in ("model", "against"))
        lost, gained = int((reference & ~right).sum()), int((right & ~reference).sum())
        assert (row["lost"], row["gained"], row["images"]) == (lost, gained, 120)
        assert row["top1_drop_points"] == pytest.approx(100 * (reference.mean() - right.mean()))
        low, high = row["top1_drop_ci95"]
        assert low <= row["top1_drop_points"] <= high
        tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
        assert row["mcnemar_p"] == pytest.approx(min(1.0, 2 * tail))
        assert row["size_ratio"] == sizes[row["against"]] / sizes[row["model"]]


def test_latencies_are_those_of_the_samples(measured):
    with np.load(measured.latency_samples.path) as stored:
        samples = dict(stored)
    for row in measured.models:
        times, latency = samples[row["file"]], row["latency_ms"]
        assert (latency["runs"], latency["threads"], latency["batch"]) == (len(times), 1, 1) == (70, 1, 1)
        assert latency["p50"] == np.median(times) and latency["p90"] == np.percentile(times, 90)
        assert latency["p50_ci95"][0] <= latency["p50"] <= latency["p50_ci95"][1]
    for row in measured.comparisons:
        rounds = [[np.median(part) for part in np.array_split(samples[row[name]], 20)] for name in ("against", "model")]
        assert row["speedup_p50"] == pytest.approx(np.median(np.array(rounds[0]) / np.array(rounds[1])))
        assert row["speedup_ci95"][0] <= row["speedup_p50"] <= row["speedup_ci95"][1]


def test_mistakes_are_the_students_alone(measured, predictions, prepared):
    labels = predictions["labels"]
    teacher, student = (predictions[f"logits/{name}"].argmax(axis=1) for name in ("teacher.onnx", "student.int8.onnx"))
    with np.load(measured.pictures.path) as shown:
        index = shown["index"]
        assert int(shown["total"]) == int(((teacher == labels) & (student != labels)).sum())
        assert (teacher[index] == labels[index]).all() and (student[index] != labels[index]).all()
        assert (shown["images"] == np.load(prepared.test_images.path)[index]).all() and len(index) <= 24
    assert sum(row["n"] for row in measured.per_class) == 120
    assert sum(row["lost"] for row in measured.per_class) == int(((teacher == labels) & (student != labels)).sum())


def test_the_bundle_holds_the_files_that_ship_and_a_stratified_sample(measured, models):
    with zipfile.ZipFile(measured.bundle.path) as archive:
        names = set(archive.namelist())
        with archive.open("bundle/samples.npz") as stream, np.load(stream) as samples:
            assert np.bincount(samples["labels"]).tolist() == [5] * 4
        for model in models:
            assert hashlib.sha256(archive.read(f"bundle/{model.name}")).hexdigest() == model.file.sha256
    assert not [name for name in names if "torch" in name or "baseline" in name]


def test_a_file_for_another_instruction_set_is_neither_timed_nor_audited(work, models, prepared, versions, monkeypatch):
    monkeypatch.setattr(validate, "isa", lambda: "arm64")
    monkeypatch.setattr(validate.export.measure, "memory", lambda *rest, **options: None)
    record = validate.run.run(
        Validate(warmup=0, repeats=20), context=work, models=models, samples=16, test=data.test(prepared), host={}, versions=versions
    )
    row = record.models[2]
    assert [row[name] for name in ("latency_ms", "first_run_ms", "load_ms", "peak_memory_bytes", "int8_mac_share")] == [None] * 5
    assert record.comparisons[1]["speedup_p50"] is None and record.comparisons[1]["top1_drop_points"] is not None
    assert record.models[0]["latency_ms"]["runs"] == 20 and record.models[0]["latency_ms"]["p90"] is None


def test_a_file_that_is_no_model_is_a_stage_error(work, models, prepared, versions):
    (work.work / "x.onnx").write_bytes(b"no model")
    broken: tuple[ModelFile, ...] = (dataclasses.replace(models[0], file=File.of(work.work / "x.onnx")), *models[1:])
    with pytest.raises(StageError, match="^validate: .*cannot load this file"):
        validate.run.run(Validate(), context=work, models=broken, samples=16, test=data.test(prepared), host={}, versions=versions)
