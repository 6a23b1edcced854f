"""Int8 for one target, from calibration pictures alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import export.quantize
from compress.data import calibration_arrays, training_arrays
from compress.errors import StageError, UsageError
from compress.results import File
from compress.schema import Quantize
from compress.stages import data, quantize
from export.runtime import Model


@pytest.mark.parametrize("here", ["x86-vnni", "x86-avx2", "arm64"])
def test_auto_is_this_machine_and_a_named_target_stays(monkeypatch, here):
    monkeypatch.setattr(quantize, "isa", lambda: here)
    assert quantize.resolve_target("auto") == here
    assert quantize.resolve_target("arm64") == "arm64"


@pytest.mark.parametrize("here", ["x86", "riscv64"])
def test_an_unknown_machine_is_refused_with_what_to_do(monkeypatch, here):
    monkeypatch.setattr(quantize, "isa", lambda: here)
    with pytest.raises(UsageError, match=rf"no int8 rule for this machine \({here}\); name one of x86-vnni, x86-avx2, arm64, or set scheme: none"):
        quantize.resolve_target("auto")


def test_the_record_is_the_files(quantized, exported):
    assert (quantized.target, quantized.activation_type, quantized.weight_type) == ("x86-vnni", "uint8", "int8")
    assert quantized.calibration_pictures == 32
    assert quantized.file.bytes < 0.5 * exported.file.bytes
    assert Model.load(quantized.file.path).target == "x86-vnni"


def test_the_ranges_come_from_the_calibration_pictures(work, exported, prepared, data_config, versions, monkeypatch):
    given: list[np.ndarray] = []
    made = export.quantize.quantize

    def spy(source, target, images, **options):
        given.append(images)
        return made(source, target, images, **options)

    monkeypatch.setattr(export.quantize, "quantize", spy)
    calibration = data.calibration(prepared, data_config)
    record = quantize.run.run(Quantize(), context=work, model=exported, data=calibration, target="arm64", versions=versions)
    images, index = calibration_arrays(calibration)
    assert (given[0] == images).all() and not set(index) & set(training_arrays(calibration.training)[3])
    assert (record.target, record.activation_type) == ("arm64", "int8")


def test_a_file_that_is_no_model_is_a_stage_error(work, exported, prepared, data_config, versions):
    (work.work / "broken.onnx").write_bytes(b"no model")
    broken = dataclasses.replace(exported, file=File.of(work.work / "broken.onnx"))
    with pytest.raises(StageError, match="^quantize: .*cannot load this file"):
        quantize.run.run(Quantize(), context=work, model=broken, data=data.calibration(prepared, data_config), target="arm64", versions=versions)
