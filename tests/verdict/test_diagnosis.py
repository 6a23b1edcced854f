"""Planted input mistakes are named, and nothing is named where nothing is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.verdict import diagnosis

SIDE, COUNT = 8, 400
CLASSES = ("a", "b", "c", "d", "e", "f")
RIGHT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
RAW = ((0.0,) * 3, (1 / 255,) * 3)


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw images whose upper and lower halves have a colour of their class.

    Returns images uint8 (N, S, S, 3), labels, and the colours of the classes (K, 2, 3).
    """
    random = np.random.default_rng(0)
    colours = random.uniform(20, 235, (len(CLASSES), 2, 3))
    labels = random.integers(0, len(CLASSES), COUNT)
    halves = np.repeat(colours[labels], SIDE // 2, axis=1)[:, :, None, :]
    pictures = halves + random.normal(0, 45, (COUNT, SIDE, SIDE, 3)) + random.normal(0, 40, (COUNT, 1, 1, 3))
    return pictures.clip(0, 255).astype(np.uint8), labels, colours


PICTURES, LABELS, COLOURS = drawn()


def network(pixels: np.ndarray, now: diagnosis.Constants = RIGHT) -> np.ndarray:
    """Classify by the colours of both halves, learnt on pixels normalised as RIGHT; `now` is their normalisation."""
    values = (pixels / 255 - np.array(now[0])) / np.array(now[1])
    wanted = (COLOURS / 255 - np.array(RIGHT[0])) / np.array(RIGHT[1])
    seen = np.stack([values[:, : SIDE // 2].mean(axis=(1, 2)), values[:, SIDE // 2 :].mean(axis=(1, 2))], axis=1)
    return -((seen[:, None] - wanted[None]) ** 2).sum(axis=(2, 3))


TOP1 = float((network(PICTURES.astype(np.float32)).argmax(axis=1) == LABELS).mean())


def name(
    model: diagnosis.Predict = network, pictures: np.ndarray = PICTURES, **known: object
) -> diagnosis.Fault | None:
    return diagnosis.name_fault(model, pictures, LABELS, TOP1, **{"normalization": RIGHT, "classes": CLASSES, **known})


def test_the_network_is_good_and_nothing_is_named() -> None:
    assert 0.8 < TOP1 < 1 and name() is None


def test_bgr() -> None:
    fault = name(pictures=np.ascontiguousarray(PICTURES[..., ::-1]))

    assert fault is not None and (fault.kind, fault.restores, fault.repaired) == ("BGR", True, pytest.approx(TOP1))
    assert (
        fault.sentence().startswith("looks like BGR: with red and blue exchanged top-1 is 0.")
        and "on 400 images" in fault.sentence()
    )


@pytest.mark.parametrize("now", [HALF, RAW])
def test_a_network_fed_with_another_normalisation_than_it_learnt(now: diagnosis.Constants) -> None:
    fault = name(lambda pixels: network(pixels, now), normalization=now)

    assert fault is not None and fault.restores
    assert fault.sentence().startswith("looks like another normalisation: with ImageNet's mean and deviation")


def test_without_the_normalisation_no_other_is_tried() -> None:
    fault = name(lambda pixels: network(pixels, RAW), normalization=None)

    assert fault is None or fault.kind not in ("normalisation", "range")


def test_the_range_of_pixels() -> None:
    """A network that wants pixels in [0, 255] gets them in [0, 1]."""
    unit = ((0.0,) * 3, (1.0,) * 3)

    fault = name(
        lambda pixels: network(pixels / 255), normalization=unit
    )  # what arrives is on the scale 0 to 255 / 255

    assert fault is not None and fault.sentence().startswith(
        "looks like another range of pixels: with pixels in [0, 255], not divided"
    )


@pytest.mark.parametrize(("quarters", "words"), [(1, "three quarter turns"), (2, "a half turn"), (3, "a quarter turn")])
def test_turned_pictures(quarters: int, words: str) -> None:
    fault = name(pictures=np.ascontiguousarray(np.rot90(PICTURES, quarters, axes=(1, 2))))

    assert fault is not None and (fault.kind, fault.repair) == ("turned", words)


def test_inverted_pictures() -> None:
    fault = name(pictures=255 - PICTURES)

    assert fault is not None and "looks like inverted images" in fault.sentence()


def test_bgr_and_another_normalisation_at_once() -> None:
    fault = name(lambda pixels: network(pixels, HALF), np.ascontiguousarray(PICTURES[..., ::-1]), normalization=HALF)

    assert fault is not None and fault.restores and fault.kind == "BGR and another normalisation"


def test_a_variant_is_named_by_its_mistake() -> None:
    narrow = PICTURES.copy()
    narrow[:, : SIDE // 2] = narrow[:, SIDE // 2 :]

    fault = name(pictures=narrow, variants={"squash for crop": PICTURES})

    assert fault is not None and fault.sentence().startswith(
        "looks like squash for crop: with images prepared without it top-1"
    )


def test_swapped_classes_and_another_order() -> None:
    swapped, turned = np.array([0, 4, 2, 3, 1, 5]), np.array([1, 2, 3, 4, 5, 0])

    fault = name(lambda pixels: network(pixels)[:, swapped])
    assert (
        fault is not None
        and "looks like swapped classes: with b and e exchanged" in fault.sentence()
        and fault.images == 200
    )
    fault = name(lambda pixels: network(pixels)[:, turned])
    assert fault is not None and fault.sentence().startswith(
        "looks like another order of the classes: with 6 of 6 classes in another order"
    )


def test_a_network_that_knows_nothing_is_not_explained() -> None:
    random = np.random.default_rng(1).normal(size=(SIDE * SIDE * 3, len(CLASSES)))

    assert name(lambda pixels: pixels.reshape(len(pixels), -1) @ random) is None


def test_what_explains_a_part_is_said_so() -> None:
    broken = np.arange(COUNT) % 4 == 0  # a quarter of the pictures is lost for good
    pictures = np.where(broken[:, None, None, None], np.uint8(0), PICTURES[..., ::-1])

    fault = name(pictures=pictures)

    assert (
        fault is not None
        and fault.kind == "BGR"
        and not fault.restores
        and fault.sentence().endswith("which explains only a part of it")
    )


def file_with_scales(path: Path, sizes: list[int]) -> Path:
    """An ONNX file with one convolution for each number of weight scales."""
    nodes, values = [], []
    for number, size in enumerate(sizes):
        values.append(helper.make_tensor(f"w{number}", TensorProto.INT8, [4, 1, 1, 1], [1] * 4))
        values.append(helper.make_tensor(f"s{number}", TensorProto.FLOAT, [size] if size > 1 else [], [1.0] * size))
        nodes.append(helper.make_node("DequantizeLinear", [f"w{number}", f"s{number}"], [f"d{number}"], axis=0))
        nodes.append(helper.make_node("Conv", ["x", f"d{number}"], [f"y{number}"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], [], values)
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_per_tensor_int8_is_read_from_the_file(tmp_path: Path) -> None:
    assert diagnosis.per_tensor_layers(file_with_scales(tmp_path / "a.onnx", [1, 4, 1])) == (2, 3)
    assert diagnosis.name_int8_fault(file_with_scales(tmp_path / "b.onnx", [1, 1])) == (
        "looks like per-tensor int8: one weight scale for all channels in each of 2 layers; "
        "quantize.per_channel: true gives every channel its own"
    )
    assert diagnosis.name_int8_fault(file_with_scales(tmp_path / "c.onnx", [1, 4])) is None
    assert diagnosis.name_int8_fault(file_with_scales(tmp_path / "d.onnx", [])) is None
