"""The final validation on exported networks: the contract's keys, and every number recomputed from the raw files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import ModelFile
from compress.recipe.schema import Validate
from compress.stages import data, ship_float, validate
from compress.stages.support import device_bundle, model_rows, ship_choice
from compress.verdict.shipped_model import facts, shipping
from export.runtime.latency_stats import LatencyResult, ModelLatency
from tests.stages.conftest import TARGET

pytestmark = pytest.mark.slow

MODEL_KEYS = {  # the contract's, then those that the report documents beyond it
    "role",
    "variant",
    "precision",
    "file",
    "sha256",
    "bytes",
    "images",
    "top1",
    "top1_ci95",
    "top5",
    "balanced_accuracy",
    "balanced_accuracy_ci95",
    "macro_f1",
    "macro_f1_ci95",
    "agreement_with_teacher",
    "max_abs_diff_from_torch",
    "latency_ms",
    "first_run_ms",
    "load_ms",
    "peak_memory_bytes",
    "int8_mac_share",
    "target",
} | {"islands", "island_causes", "requantised", "photo_latency_ms", "note"}
LATENCY_KEYS = {"p50", "p90", "p99", "runs", "threads", "batch"} | {"p50_ci95"}
COMPARISON_KEYS = {
    "model",
    "against",
    "top1_drop_points",
    "top1_drop_ci95",
    "mcnemar_p",
    "speedup_p50",
    "size_ratio",
} | {"images", "lost", "gained", "speedup_ci95"}


@pytest.fixture(scope="module")
def predictions(measured) -> dict[str, np.ndarray]:
    with np.load(measured.predictions.path) as stored:
        return dict(stored)


def test_rows_have_the_contracts_keys(measured):
    assert [set(row) for row in measured.models] == [MODEL_KEYS] * 3
    assert [set(row["latency_ms"]) for row in measured.models] == [LATENCY_KEYS] * 3
    assert [set(row) for row in measured.comparisons] == [COMPARISON_KEYS] * 3
    pairs = [(row["model"], row["against"]) for row in measured.comparisons]
    assert pairs == [
        ("student.fp32.onnx", "teacher.onnx"),
        ("student.int8.onnx", "teacher.onnx"),
        ("student.int8.onnx", "student.fp32.onnx"),
    ]


def test_values_have_the_contracts_types(measured):
    for row in measured.models:
        numbers = [
            row["top1"],
            row["agreement_with_teacher"],
            row["first_run_ms"],
            row["load_ms"],
            row["int8_mac_share"],
            *row["top1_ci95"],
        ]
        assert all(isinstance(value, float) for value in numbers)
        assert all(type(row[name]) is int for name in ("bytes", "images"))
        assert row["peak_memory_bytes"] is None or (
            type(row["peak_memory_bytes"]) is int and row["peak_memory_bytes"] > 10**7
        )
        assert row["latency_ms"]["p90"] > 0 and row["latency_ms"]["p99"] is None  # 70 runs: enough for p90, not for p99
        assert row["top5"] is None  # four classes
    assert [row["int8_mac_share"] > 0.9 for row in measured.models] == [False, False, True]
    assert [row["target"] for row in measured.models] == [None, None, TARGET]
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
        assert row["top1_ci95"] == pytest.approx(
            [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)], abs=1e-6
        )


def test_paired_numbers_are_those_of_the_predictions(measured, predictions):
    labels = predictions["labels"]
    sizes = {row["file"]: row["bytes"] for row in measured.models}
    for row in measured.comparisons:
        right, reference = (
            predictions[f"logits/{row[name]}"].argmax(axis=1) == labels for name in ("model", "against")
        )
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
        # where other processes disturb every attempt, the rounds of all three are joined
        left = measured.latency["interrupted"].get(row["file"], 0)
        assert (latency["runs"], latency["threads"], latency["batch"]) == (len(times), 1, 1)
        assert len(times) + left in (70, 210) or measured.latency["rounds"] not in (
            20,
            60,
        )  # but for a round that a model had no time in
        assert latency["p50"] == np.median(times) and latency["p90"] == np.percentile(times, 90)
        assert latency["p50_ci95"][0] <= latency["p50"] <= latency["p50_ci95"][1]
    for row in measured.comparisons:
        rounds = [
            [
                np.median(samples[row[name]][samples[f"rounds/{row[name]}"] == number])
                for number in range(measured.latency["rounds"])
            ]
            for name in ("against", "model")
        ]
        assert row["speedup_p50"] == pytest.approx(np.median(np.array(rounds[0]) / np.array(rounds[1])))
        assert row["speedup_ci95"][0] <= row["speedup_p50"] <= row["speedup_ci95"][1]


def test_the_conditions_of_the_measurement_are_recorded(measured, models):
    latency = measured.latency
    assert latency["sha256"] == {model.name: model.file.sha256 for model in models}
    assert (latency["threads"], latency["spinning"]) == (1, False) and 5 <= latency["rounds"] <= 60
    assert {
        "contaminated",
        "other_cores",
        "governor",
        "cpu_features",
        "drift",
        "disturbances",
        "attempts",
        "round_other_cores",
    } <= set(latency)
    assert latency["photo"]["pictures"] == "16 JPEG files made from the stored images, 16 x 16 pixels, quality 90"
    assert latency["sustained"] is None
    for row in measured.models:
        left = latency["photo"]["interrupted"].get(row["file"], 0)
        assert (
            0 < row["photo_latency_ms"]["runs"] <= 3 * 72 - left
            and row["photo_latency_ms"]["p50"] > row["latency_ms"]["p50"]
        )


def test_slices_are_those_of_the_predictions(measured, predictions):
    labels, teacher = predictions["labels"], predictions["logits/teacher.onnx"].astype(np.float64)
    odds = np.sort(np.exp(teacher - teacher.max(axis=1, keepdims=True)), axis=1)
    order = np.argsort((odds[:, -1] - odds[:, -2]) / odds.sum(axis=1), kind="stable")
    assert [(row["slice"], row["against"]) for row in measured.slices] == [
        (name, against)
        for name in ("least sure tenth", "least sure quarter")
        for against in ("teacher.onnx", "student.fp32.onnx")
    ]
    for row in measured.slices:
        chosen = order[: round(row["share"] * 120)]
        right, reference = (
            predictions[f"logits/{row[name]}"][chosen].argmax(axis=1) == labels[chosen] for name in ("model", "against")
        )
        assert (row["n"], row["lost"], row["gained"]) == (
            len(chosen),
            int((reference & ~right).sum()),
            int((right & ~reference).sum()),
        )
    for row in measured.per_class:
        assert row["n"] == 30 and {"worse", "mcnemar_p", "drop_ci95", "float", "float_lost", "float_worse"} <= set(row)


def test_photos_are_decoded_and_the_shipped_file_runs_without_a_pause(work, models, prepared, versions):
    rng = np.random.default_rng(0)
    photos = []
    for number, size in enumerate([(64, 48), (200, 120)]):
        path = work.work / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        photos.append(File.of(path))
    record = validate.run_validate(
        Validate(warmup=0, repeats=16, sustained_seconds=1),
        context=work,
        models=models,
        samples=16,
        test=data.test(prepared),
        host={},
        versions=versions,
        photos=tuple(photos),
        resize=18,
    )
    assert record.latency["photo"]["pictures"] == "2 photos of the data set, 64 x 48 to 200 x 120 pixels"
    sustained = record.latency["sustained"]
    assert (
        sustained["file"] == "student.int8.onnx"
        and sustained["seconds"] >= 1
        and sustained["window_seconds"] == pytest.approx(0.1)
    )
    assert sustained["sentence"].startswith(f"After {sustained['seconds']:.3g} s without a pause it is ")


def test_int8_that_is_worse_than_its_float_file_is_explained(models, monkeypatch):
    monkeypatch.setattr(model_rows.diagnosis, "name_int8_fault", lambda path: "looks like per-tensor int8")
    row = {
        "model": "student.int8.onnx",
        "against": "student.fp32.onnx",
        "top1_drop_points": 7.74,
        "top1_drop_ci95": [3.0, 9.0],
    }
    said = model_rows.int8_warnings(
        models, (row, {**row, "top1_drop_ci95": [-1.0, 9.0]}, {**row, "against": "teacher.onnx"})
    )
    assert said == ("student.int8.onnx is 7.7 points below student.fp32.onnx: looks like per-tensor int8",)


def test_bytes_that_changed_while_they_were_measured_are_refused(work, models, prepared, versions):
    other = dataclasses.replace(models[0], file=File(models[0].file.path, "0" * 64, models[0].file.bytes))
    with pytest.raises(StageError, match="validate: teacher.onnx changed while it was measured"):
        validate.run_validate(
            Validate(warmup=0, repeats=16),
            context=work,
            models=(other, *models[1:]),
            samples=16,
            test=data.test(prepared),
            host={},
            versions=versions,
        )


def test_mistakes_are_the_students_alone(measured, predictions, prepared):
    labels = predictions["labels"]
    teacher, student = (predictions[f"logits/{name}"].argmax(axis=1) for name in ("teacher.onnx", "student.int8.onnx"))
    with np.load(measured.gallery.path) as shown:
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
    for module in (validate, model_rows):
        monkeypatch.setattr(module, "isa", lambda: "arm64" if TARGET != "arm64" else "x86-vnni")
    monkeypatch.setattr(model_rows.export.runtime.latency, "memory", lambda *rest, **options: None)
    record = validate.run_validate(
        Validate(warmup=0, repeats=20),
        context=work,
        models=models,
        samples=16,
        test=data.test(prepared),
        host={},
        versions=versions,
    )
    row = record.models[2]
    assert [row[name] for name in ("latency_ms", "first_run_ms", "load_ms", "peak_memory_bytes", "int8_mac_share")] == [
        None
    ] * 5
    assert record.comparisons[1]["speedup_p50"] is None and record.comparisons[1]["top1_drop_points"] is not None
    assert 0 < record.models[0]["latency_ms"]["runs"] <= 60 and record.models[0]["latency_ms"]["p90"] is None


def test_a_file_that_is_no_model_is_a_stage_error(work, models, prepared, versions):
    (work.work / "x.onnx").write_bytes(b"no model")
    broken: tuple[ModelFile, ...] = (dataclasses.replace(models[0], file=File.of(work.work / "x.onnx")), *models[1:])
    with pytest.raises(StageError, match="^validate: .*cannot load this file"):
        validate.run_validate(
            Validate(), context=work, models=broken, samples=16, test=data.test(prepared), host={}, versions=versions
        )


def _timed(ratios: list[float]):
    """A measurement in which int8 takes 1 ms and float `ratio` ms in each round."""

    def one(medians):
        values = np.array(medians)
        return ModelLatency(
            float(np.median(values)),
            None,
            None,
            len(values),
            1,
            1,
            1.0,
            1.0,
            tuple(medians),
            values,
            np.arange(len(values)),
        )

    return LatencyResult({"student.fp32.onnx": one(ratios), "student.int8.onnx": one([1.0] * len(ratios))}, False, 0.0)


@pytest.mark.parametrize(
    ("ratios", "keep", "ships", "words"),
    [
        ([1.5, 1.6, 1.55] * 7, "faster", "student.int8.onnx", "faster than the float student here"),
        ([0.9, 1.1, 1.0] * 7, "faster", "student.fp32.onnx", "ships instead of student.int8.onnx"),
        ([0.8, 0.81, 0.79] * 7, "faster", "student.fp32.onnx", "0.80x"),
        ([0.8, 0.81, 0.79] * 7, "always", "student.int8.onnx", None),
    ],
)
def test_int8_that_is_not_faster_ships_only_where_always(models, ratios, keep, ships, words):
    shipped, because = ship_choice.choose_shipped(models, _timed(ratios), keep, 0)

    assert shipped.name == ships and (because is None if words is None else words in because)


def test_int8_for_another_machine_ships_and_is_said_not_to_be_judged(models):
    elsewhere = LatencyResult({"student.fp32.onnx": _timed([1.0] * 9).models["student.fp32.onnx"]}, False, 0.0)

    shipped, because = ship_choice.choose_shipped(models, elsewhere, "faster", 0)

    assert shipped.name == "student.int8.onnx" and "could not be judged here" in because


def test_what_does_not_ship_is_not_in_the_bundle_and_not_judged(work, models, prepared, versions, monkeypatch):
    monkeypatch.setattr(
        ship_choice.export.runtime.latency_stats, "speedup_with_interval", lambda *_, **__: (0.9, 0.85, 0.95)
    )
    found = validate.run_validate(
        Validate(warmup=2, repeats=20),
        context=work,
        models=models,
        samples=20,
        test=data.test(prepared),
        host={},
        versions=versions,
        keep="faster",
    )

    assert found.ships == "student.fp32.onnx" and "ships instead of" in found.ships_because
    with zipfile.ZipFile(found.bundle.path) as archive:
        names = archive.namelist()
    assert any(name.endswith("student.fp32.onnx") for name in names) and not any(
        name.endswith("student.int8.onnx") for name in names
    )
    assert facts(found, models).file == "student.fp32.onnx"
    assert [model.name for model in shipping(models, found)] == ["teacher.onnx", "student.fp32.onnx"]
    assert [row["file"] for row in found.models] == [
        "teacher.onnx",
        "student.fp32.onnx",
        "student.int8.onnx",
    ]  # measured all the same


def test_static_int8_of_a_tuned_student_is_compared_and_not_shipped(models, quantized):
    static = ModelFile("student.static.int8.onnx", "static", "int8", quantized.file, quantized.target, None)
    arm = ModelFile("student.int8.arm64.onnx", "student", "int8", quantized.file, "arm64", None)
    every = (*models, static, arm)

    pairs = {
        (one.name, other.name)
        for one in every[1:]
        for other in every
        if one is not other and ship_choice.is_compared(one, other)
    }

    assert {pair for pair in pairs if static.name in pair} == {
        (static.name, "teacher.onnx"),
        (static.name, "student.fp32.onnx"),
        ("student.int8.onnx", static.name),
    }
    assert (
        ship_choice.preferred_student(every).name == "student.int8.onnx"
        and static.comparison_only
        and not arm.comparison_only
    )


def test_own_photos_fit_into_a_limit(tmp_path):
    files = []
    for number, size in enumerate((30, 90, 40, 31)):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(size))
        files.append(File.of(tmp_path / f"{number}.jpg"))
    assert [file.bytes for file in device_bundle.within_bytes(tuple(files), most=101)] == [30, 40, 31]


def test_where_the_device_decided_for_float_everything_speaks_of_the_float_file(
    work, measured, prepared, models, predictions
):
    settled = ship_float.run_ship_float("student.fp32.onnx", context=work, measured=measured, test=data.test(prepared))

    logits, labels = predictions["logits/student.fp32.onnx"], predictions["labels"]
    right = sum(row["student"] * row["n"] for row in settled.per_class)
    assert settled.ships == "student.fp32.onnx" and right == pytest.approx((logits.argmax(axis=1) == labels).sum())
    assert not any("float" in row for row in settled.per_class) and {row["model"] for row in settled.slices} == {
        "student.fp32.onnx"
    }
    with np.load(settled.gallery.path) as stored:
        assert (stored["student"] == logits[stored["index"]].argmax(axis=1)).all() and stored["total"] >= len(
            stored["images"]
        )
    again = ship_float.run_ship_float(measured.ships, context=work, measured=settled, test=data.test(prepared))
    assert again.per_class == measured.per_class and again.slices == measured.slices
    assert facts(settled, models).file == "student.fp32.onnx"
    assert [model.name for model in shipping(models, settled)] == ["teacher.onnx", "student.fp32.onnx"]
