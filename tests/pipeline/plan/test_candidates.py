"""A plan measures what would ship: the method's form of the student, teachers behind their own input."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.core.records.training import Network, Normalization
from compress.models.count import macs, params
from compress.pipeline.plan import candidates as subjects
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.recipe.schema import Choice, Recipe
from compress.training import build

FRAME = subjects.InputSpec(100, 32, Normalization((0.5,) * 3, (0.25,) * 3))
RECIPE = """\
data: {source: fashion}
teacher: {candidates: [{model: resnet32x4}, {model: resnet8x4}]}
student: {model: resnet8x4}
"""


def loaded(folder: Path, *flags: str) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(RECIPE)
    return resolve(loader.load(path, flags).recipe)


def counted(network: Network) -> tuple[int, int]:
    model = build.load_network(network, None, "cpu")
    return params(model), macs(model, 32)


@pytest.mark.parametrize(
    ("method", "count"),
    [("simkd", 1_447_556), ("catkd", 1_233_440), ("kd", 1_233_540)],  # source: measured on the authors' networks
)
def test_the_student_is_what_the_method_ships(tmp_path: Path, method: str, count: int):
    one = subjects.student(loaded(tmp_path, f"distill.method={method}"), "student", Choice(model="resnet8x4"), FRAME)
    assert counted(one.network)[0] == count
    assert one.ships_as == (None if method == "kd" else f"resnet8x4 is timed as {method} ships it.")


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_teachers_forms_the_largest_is_planned(tmp_path: Path, order: int):
    models = ["resnet20", "resnet32x4"][::order]
    settings = loaded(
        tmp_path, "distill.method=simkd", f"teacher.candidates=[{{model: {models[0]}}}, {{model: {models[1]}}}]"
    )
    one = subjects.student(settings, "student", Choice(model="resnet8x4"), FRAME)
    assert counted(one.network)[0] == 1_447_556 and one.ships_as is not None
    assert one.ships_as.endswith("as simkd ships it with teacher resnet32x4, the largest of its forms.")


def test_a_teacher_is_timed_at_its_own_size(tmp_path: Path):
    candidates = (
        "[{model: resnet8, image_size: 64, channels: bgr}, {model: resnet8}, "
        "{model: resnet8, weights: x.pt, expect_top1: 0.5}]"
    )
    listed = subjects.teachers(loaded(tmp_path, f"teacher.candidates={candidates}"), tmp_path, FRAME)
    assert [one.name for one in listed] == ["resnet8 at 64 pixels", "resnet8"]  # the third costs what the second does
    larger, plain = (counted(one.network)[1] for one in listed)
    assert larger - 6_400 == 4 * (plain - 6_400)  # all but the classifier


def test_a_neighbour_that_the_method_does_not_take_is_left_out(tmp_path: Path):
    settings = loaded(tmp_path, "distill.method=simkd")
    assert subjects.neighbour(settings, Choice(model="torchvision/mobilenet_v2"), FRAME) is None
    known = subjects.neighbour(settings, Choice(model="resnet14"), FRAME)
    assert known is not None and known.network.deployed is not None


def test_an_absent_onnx_teacher_is_not_measured(tmp_path: Path):
    settings = loaded(tmp_path, "teacher.candidates=[{onnx: x.onnx}, {model: resnet8}]")
    assert [one.name for one in subjects.teachers(settings, tmp_path, FRAME)] == ["resnet8"] and subjects.unmeasured(
        settings, tmp_path
    )
