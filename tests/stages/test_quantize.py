"""Int8 for one target, from calibration pictures alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import export.int8.quantize
from compress.core.errors import StageError, UsageError
from compress.core.records.base import File
from compress.data import calibration_arrays, training_arrays
from compress.recipe.schema import Device, Quantize
from compress.stages import data, quantize
from export.runtime import Model
from tests.stages.conftest import TARGET


@pytest.mark.parametrize("here", ["x86-vnni", "x86-avx2", "arm64"])
def test_auto_is_this_machine_and_a_named_target_stays(monkeypatch, here):
    monkeypatch.setattr(quantize, "isa", lambda: here)
    assert quantize.resolve_target("auto", Device()) == here
    assert quantize.resolve_target("arm64", Device()) == "arm64"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("auto", ["x86-vnni"]),
        (["arm64", "auto"], ["x86-vnni", "arm64"]),
        (["auto", "x86-vnni"], ["x86-vnni"]),
        (["arm64", "x86-avx2"], ["x86-avx2", "arm64"]),
    ],
)
def test_the_devices_file_is_the_first_of_several(monkeypatch, asked, found):
    monkeypatch.setattr(quantize, "isa", lambda: "x86-vnni")
    assert list(quantize.resolve_targets(Quantize(target=asked), Device())) == found


def test_a_distant_device_gets_the_first_that_is_named():
    device = Device(target="ssh://pi@nowhere")
    assert quantize.resolve_targets(Quantize(target=["arm64", "web"]), device) == ("arm64", "web")
    assert quantize.resolve_targets(Quantize(), Device(target="browser")) == ("web",)


@pytest.mark.parametrize("here", ["x86", "riscv64"])
def test_an_unknown_machine_is_refused_with_what_to_do(monkeypatch, here):
    monkeypatch.setattr(quantize, "isa", lambda: here)
    with pytest.raises(
        UsageError,
        match=rf"no int8 rule for this machine \({here}\); name one of x86-vnni, x86-avx2, arm64, or set scheme: none",
    ):
        quantize.resolve_target("auto", Device())


def test_the_record_is_the_files(quantized, exported):
    assert (quantized.target, quantized.activation_type, quantized.weight_type) == (
        TARGET,
        "int8" if TARGET == "arm64" else "uint8",
        "int8",
    )
    assert quantized.calibration_images == 32
    assert quantized.file.bytes < 0.5 * exported.file.bytes
    assert Model.load(quantized.file.path).target == TARGET


def test_the_ranges_come_from_the_calibration_pictures(work, exported, prepared, data_config, versions, monkeypatch):
    given: list[np.ndarray] = []
    made = export.int8.quantize.quantize

    def spy(source, target, images, **options):
        given.append(images)
        return made(source, target, images, **options)

    monkeypatch.setattr(export.int8.quantize, "quantize", spy)
    calibration = data.calibration(prepared, data_config)
    record = quantize.run_quantize(
        Quantize(), context=work, model=exported, data=calibration, target="arm64", versions=versions
    )
    images, index = calibration_arrays(calibration)
    assert (given[0] == images).all() and not set(index) & set(training_arrays(calibration.training)[3])
    assert (record.target, record.activation_type) == ("arm64", "int8")


def test_a_file_that_is_no_model_is_a_stage_error(work, exported, prepared, data_config, versions):
    (work.work / "broken.onnx").write_bytes(b"no model")
    broken = dataclasses.replace(exported, file=File.of(work.work / "broken.onnx"))
    with pytest.raises(StageError, match="^quantize: .*cannot load this file"):
        quantize.run_quantize(
            Quantize(),
            context=work,
            model=broken,
            data=data.calibration(prepared, data_config),
            target="arm64",
            versions=versions,
        )


def _run(config, work, exported, prepared, data_config, versions, target=TARGET):
    calibration = data.calibration(prepared, data_config)
    return quantize.run_quantize(
        config, context=work, model=exported, data=calibration, target=target, versions=versions
    )


def test_the_recipes_settings_reach_the_file(work, exported, prepared, data_config, versions, quantized):
    config = Quantize(calibrate="percentile", percentile=99.999, float_layers=("last",), bias_correction=True)

    record = _run(config, work, exported, prepared, data_config, versions)

    assert (record.calibrate, record.bias_correction, len(record.float_layers)) == ("percentile", True, 1)
    assert record.file.bytes > quantized.file.bytes and record.trials == () and record.search is None
    assert list((work.cache / "calibration").glob("*.npz"))


def test_a_rewritten_float_file_is_what_int8_is_made_from(work, exported, prepared, data_config, versions, monkeypatch):
    given = []
    made = export.int8.quantize.quantize
    monkeypatch.setattr(
        export.int8.quantize,
        "quantize",
        lambda source, *rest, **options: given.append(source) or made(source, *rest, **options),
    )
    copy = work.work / "source.onnx"
    copy.write_bytes(exported.file.path.read_bytes())

    _run(Quantize(), work, dataclasses.replace(exported, int8_source=File.of(copy)), prepared, data_config, versions)

    assert given == [copy]


def test_search_certifies_few_and_ships_one(work, exported, prepared, data_config, versions):
    record = _run(Quantize(search=True), work, exported, prepared, data_config, versions)

    kept = [row for row in record.trials if row["kept"]]
    assert len(kept) == 3 and all(
        {"drop_points", "drop_ci95", "mcnemar_p"} <= set(row) and row["images"] == 40 for row in kept
    )
    (chosen,) = [row for row in record.trials if row["chosen"]]
    assert chosen in kept and chosen["bytes"] == record.file.bytes and record.search.startswith(chosen["name"])
    assert all(row["reason"] and not row["chosen"] for row in record.trials if not row["kept"])
    assert Model.load(record.file.path).target == TARGET


def test_the_searchs_pictures_set_no_range_and_select_nothing_else(prepared, data_config):
    calibration = data.calibration(prepared, data_config)
    found = quantize._ranking_images(calibration)
    images, _, train, validation = training_arrays(calibration.training)
    own = {images[index].tobytes() for index in (*calibration_arrays(calibration)[1], *validation)}

    assert len(found) == 32 and not own & {picture.tobytes() for picture in found}
    assert {picture.tobytes() for picture in found} <= {images[index].tobytes() for index in train}


def test_too_few_pictures_for_a_search_say_how_many_calibration_may_use(prepared, data_config):
    greedy = data.calibration(prepared, data_config.model_copy(update={"calibration": 150}))

    with pytest.raises(
        UsageError,
        match="needs 32 training images that calibration does not use, but 10 are left; "
        "set data.calibration to 128 or less",
    ):
        quantize._ranking_images(greedy)


def test_labels_overrule_divergence_only_beyond_chance():
    right = np.ones(400, bool)
    slightly, badly = right.copy(), right.copy()
    slightly[:3], badly[:30] = False, False

    assert quantize.choose([slightly, right]) == 0
    assert quantize.choose([badly, slightly, right]) == 1
    assert quantize.choose([badly]) == 0
