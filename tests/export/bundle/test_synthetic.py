"""A bundle of drawn images: it holds none of the user's, and it still tells right answers from wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import runtime, verify
from export.bundle import synthetic, write
from export.bundle.write import Shipped
from export.int8.quantize import quantize
from export.runtime import Model

HERE = runtime.isa() if runtime.isa() in runtime.TARGETS else None
COUNT = 32


@pytest.fixture(scope="module")
def models(fp32: Path, calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Shipped]:
    folder = tmp_path_factory.mktemp("synthetic")
    found = [Shipped(fp32, "student", "fp32")]
    if HERE is not None:
        quantize(fp32, folder / "here.onnx", calibration, isa=HERE)
        found.append(Shipped(folder / "here.onnx", "student", "int8", HERE))
    return found


@pytest.fixture(scope="module")
def drawn(models: list[Shipped]) -> np.ndarray:
    every = synthetic.draw(synthetic.candidates(COUNT), 16, 0)
    return every[synthetic.choose([Model.load(model.path).run(every) for model in reversed(models)], COUNT)]


@pytest.fixture
def bundle(models: list[Shipped], drawn: np.ndarray, tmp_path: Path) -> Path:
    return write.write(tmp_path / "bundle", models, drawn, None).folder


def sign(folder: Path) -> None:
    names = [line.split("  ")[1] for line in (folder / "checksums.sha256").read_text().splitlines()]
    lines = [f"{write._described(folder / name)['sha256']}  {name}\n" for name in names]
    (folder / "checksums.sha256").write_text("".join(lines))


def test_equal_seeds_draw_equal_patterns_and_no_two_are_equal() -> None:
    images = synthetic.draw(40, 24, 3)
    assert (images == synthetic.draw(40, 24, 3)).all() and (images != synthetic.draw(40, 24, 4)).any()
    assert images.shape == (40, 24, 24, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 40 and min(image.std() for image in images) > 10


@pytest.mark.parametrize("size", [1, 2, 8])
def test_small_sides_are_drawn_too(size: int) -> None:
    assert synthetic.draw(8, size, 0).shape == (8, size, size, 3)


def test_the_surest_of_every_class_are_kept() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 0.2, (200, 4)).astype(np.float32)
    logits[:, 0] += 3  # nearly every pattern is answered with class 0
    rare = np.array([3, 50, 120])
    logits[rare, 2] += np.array([9, 8, 7], np.float32)
    kept = synthetic.choose([logits], 8)
    assert set(rare) <= set(kept) and len(kept) == len(set(kept)) == 8
    ties = logits.copy()
    ties[3] = 0  # another of the student's files is not sure
    assert 3 not in synthetic.choose([logits, ties], 3)


def test_its_files_say_that_the_images_are_synthetic(bundle: Path, drawn: np.ndarray) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["samples"]["synthetic"] is True and manifest["samples"]["images"] == COUNT
    with np.load(bundle / "samples.npz") as stored:
        assert "labels" not in stored.files and (stored["images"] == drawn).all()
    assert "synthetic" in (bundle / "README.md").read_text()


def test_right_answers_pass_and_accuracy_is_not_measured(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    answer = bundle.parent / "answer.json"
    assert verify.main([str(bundle), "--no-latency", "--json", str(answer)]) == 0
    content = json.loads(answer.read_text())
    assert content["ok"] is True and all(row["ok"] and row["images"] == COUNT for row in content["models"])
    assert [row["top1"] for row in content["models"]] == [None] * len(content["models"])
    said = capsys.readouterr().out
    assert "not measured" in said and any("synthetic" in text for text in content["remarks"]) and "synthetic" in said


@pytest.mark.parametrize("name", ["small.fp32.onnx", "here.onnx"])
def test_wrong_answers_are_found_by_them(bundle: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    if not (bundle / name).is_file():
        pytest.skip("no int8 file is meant for this machine")
    model = onnx.load(str(bundle / name))
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "right"
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["logits"]))
    (bundle / name).write_bytes(model.SerializeToString())
    sign(bundle)
    assert verify.main([str(bundle), "--model", name, "--no-latency"]) == 4
    assert "WRONG ANSWERS" in capsys.readouterr().out
