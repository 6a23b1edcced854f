"""Records through JSON and into cache keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from compress.core.records import base
from compress.core.records.base import (
    EXCLUDED_FROM_KEY,
    IN_KEY_IF_SET,
    JSON_NAMES,
    File,
    from_json,
    key_content,
    sha256_of,
    to_json,
)
from compress.core.records.deployment import Exported, Extra, Measured, Packaged, Quantized, Verified
from compress.core.records.training import (
    Distilled,
    Network,
    Normalization,
    Prepared,
    Proxied,
    Stripped,
    Trained,
    TrainingData,
    Unreadable,
)
from compress.core.records.training_checks import TrainingChecks
from compress.recipe.schema import Candidate, Data, Train

A, B = (File(Path(f"/cache/{name}"), name * 64, 7) for name in "ab")
NETWORK = Network("mobilenet_v2", 0.5, 10, 32, Normalization((0.1, 0.2, 0.3), (1.0, 0.5, 0.25)))
TRAINED = Trained(NETWORK, A, 0.75, 100, 2000, 3, 1.5, history=B)
# A value of each setting of `train` that counts only where it is set.
SET = {
    "batch_norm": "frozen",
    "probe": True,
    "optimizer": "adamw",
    "decay_norms": False,
    "clip_norm": 1.0,
    "ema": 0.99,
    "patience": 3,
    "class_weights": "balanced",
    "sampling": "balanced",
    "metric": "macro_f1",
}
RECORDS = [
    Prepared(
        "fashion", ("a", "b"), 32, A, B, A, B, NETWORK.normalization, "crop_flip", (Unreadable("x/y.jpg", "truncated"),)
    ),
    TRAINED,
    dataclasses.replace(TRAINED, history=None, network=dataclasses.replace(NETWORK, width=None)),
    Distilled(NETWORK, A, "dhkd", 3, 2, 1.5, 800.0, "bf16", 1, "cc 1.0", B),
    Stripped(TRAINED, ("auxiliary.0.weight",), B),
    Exported(A, 18, 8, 106, "uint8_nhwc", 1e-7, 0, 64, ({"name": "ReduceMean to GlobalAveragePool", "kept": True},), B),
    Packaged(
        (
            Extra("student.int8.ort", "ort", "student.int8.onnx", A, "arm64", 0.0, ("ai.onnx:Cast",)),
            Extra("b", "batch1", "a", B, None, 0.0, None),
        )
    ),
    Quantized(A, "x86-vnni", "uint8", "int8", 512),
    Measured(({"role": "teacher", "top5": None},), ({"model": "m"},), (), {"contaminated": False}, ("w",), A, B, A, B),
    Verified(({"target": "local", "latency_ms": {"p50": 1.0, "p99": None}},), True),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_json_as_it_was(record):
    text = json.dumps(to_json(record))
    again = from_json(type(record), json.loads(text))
    assert again == record
    assert all(type(getattr(again, f.name)) is type(getattr(record, f.name)) for f in dataclasses.fields(record))


def test_a_renamed_field_keeps_its_name_in_json_and_in_keys():
    kinds = {kind.__name__: kind for kind in (Exported, Measured, Proxied, Quantized)}
    assert kinds.keys() == JSON_NAMES.keys()
    for name, kind in kinds.items():
        assert JSON_NAMES[name].keys() <= {field.name for field in dataclasses.fields(kind)}
    (quantized,) = (record for record in RECORDS if isinstance(record, Quantized))
    for stored in (to_json(quantized), key_content(quantized)):
        assert stored["calibration_pictures"] == 512 and "calibration_images" not in stored


def test_a_field_that_is_missing_is_an_error_unless_it_has_a_default():
    data = to_json(TRAINED)
    del data["origin"]
    assert from_json(Trained, data).origin == "trained here"
    del data["params"]
    with pytest.raises(TypeError, match="params"):
        from_json(Trained, data)


def test_a_file_is_hashed_by_content(tmp_path):
    for name, content in (("one", b"x" * 5), ("two", b"x" * 5), ("three", b"y" * 5)):
        (tmp_path / name).write_bytes(content)
    one, two, three = (File.of(tmp_path / name) for name in ("one", "two", "three"))
    assert (one.bytes, one.sha256) == (5, hashlib.sha256(b"xxxxx").hexdigest())
    assert one.sha256 == two.sha256 != three.sha256 and one.path != two.path
    assert sha256_of(one) == sha256_of(two) != sha256_of(three)


def test_identity_ignores_paths_and_circumstance():
    elsewhere = dataclasses.replace(
        TRAINED,
        weights=dataclasses.replace(A, path=Path("/moved")),
        seconds=99.0,
        images_per_second=3.0,
        precision="bf16",
        threads=8,
        kernels="torch",
        history=None,
        origin="checkpoint",
    )
    assert sha256_of(elsewhere) == sha256_of(TRAINED)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": B},
        {"top1_validation": 0.5},
        {"epochs": 4},
        {"network": dataclasses.replace(NETWORK, width=1.0)},
        {"network": dataclasses.replace(NETWORK, normalization=Normalization((0.1, 0.2, 0.4), (1.0, 0.5, 0.25)))},
    ],
    ids=["weights", "accuracy", "epochs", "width", "normalization"],
)
def test_identity_sees_what_a_result_is(change):
    assert sha256_of(dataclasses.replace(TRAINED, **change)) != sha256_of(TRAINED)


def test_circumstance_names_are_fields():
    names = {field.name for kind in (Trained, Distilled, TrainingData) for field in dataclasses.fields(kind)}
    assert EXCLUDED_FROM_KEY <= names


@pytest.mark.parametrize("name", sorted(IN_KEY_IF_SET & Train.model_fields.keys()))
def test_a_new_setting_is_part_of_a_key_where_it_is_set_also_in_a_candidate(name):
    assert Train.model_fields[name].default is None
    plain = Candidate(model="resnet20", train=Train(epochs=3, views=None))
    content = key_content(plain)["train"]
    assert name not in content and content["views"] is None and name not in key_content(plain.train)
    value = SET[name]
    for section in (plain.train, plain):
        train = Train(epochs=3, **{name: value})
        changed = train if section is plain.train else plain.model_copy(update={"train": train})
        assert sha256_of(changed) != sha256_of(section)


def test_a_field_that_older_records_have_not_is_written_where_it_is_set():
    assert "checks" not in to_json(TRAINED)
    checked = dataclasses.replace(TRAINED, checks=TrainingChecks(9, 7, 30, "running", 1, 0, 0.1))
    assert from_json(Trained, json.loads(json.dumps(to_json(checked)))) == checked
    assert sha256_of(checked) == sha256_of(TRAINED)


def test_identity_of_sections_dicts_and_tuples():
    config = Data(source="fashion")
    fields = config.model_dump(mode="json")
    for name in IN_KEY_IF_SET & fields.keys():
        assert fields.pop(name) is None
    assert key_content((config, {2: A})) == [fields, {"2": {"sha256": A.sha256}}]
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1}) != sha256_of({"a": 1, "b": 3})
    assert sha256_of(("1",)) != sha256_of((1,))


class _Inner(BaseModel):
    kept: float | None = None
    hold: float | None = None


class _Outer(BaseModel):
    inner: _Inner = _Inner()
    several: tuple[_Inner, ...] = (_Inner(),)


def test_a_setting_enters_a_key_at_any_depth_only_when_it_is_set(monkeypatch):
    """A new key of `train` must not change the key of a teacher, whose settings contain it."""
    monkeypatch.setattr(base, "IN_KEY_IF_SET", frozenset({"hold"}))
    assert key_content(_Outer()) == {"inner": {"kept": None}, "several": [{"kept": None}]}
    assert key_content(_Outer(inner=_Inner(hold=1.0)))["inner"] == {"kept": None, "hold": 1.0}
