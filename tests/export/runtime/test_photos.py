"""Photos from JPEG to pixels: right ones pass, and each known mistake is named."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import export.bundle.photos
import export.bundle.write
from compress.data.decode import decode_image
from compress.stages.convert import preprocessing
from export import verify
from export.bundle.write import Shipped
from export.runtime import METADATA_PREFIX, Model, images, photo_faults, photos

SIDE, RESIZE = 16, 18
# A decoder in a program of its own, with one mistake; `{}` changes the pixels.
DECODER = """
import io, sys
import numpy as np
import onnx
from PIL import Image, ImageOps
image = Image.open(sys.argv[-1])
image = {upright}.convert("RGB")
short = min(image.size)
box = ((image.width - short) / 2, (image.height - short) / 2, (image.width + short) / 2, (image.height + short) / 2)
pixels = np.asarray(image.resize(({resize}, {resize}), Image.Resampling.BILINEAR, box={box}))
offset = ({resize} - 16) // 2
pixels = pixels[offset:offset + 16, offset:offset + 16].astype(np.float64)
sys.stdout.buffer.write(({change}).astype(np.uint8).tobytes())
"""
RIGHT = {"upright": "ImageOps.exif_transpose(image)", "resize": RESIZE, "box": "box", "change": "pixels"}


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """Coloured slopes with a bright corner: uint8 (8, 16, 16, 3)."""
    across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    images = [
        np.stack(
            [200 * across + 5 * i, 120 * down, 60 + 40 * (1 - across) + 90 * ((across < 0.3) & (down < 0.3))], axis=2
        )
        for i in range(8)
    ]
    return np.stack(images).astype(np.uint8)


@pytest.fixture(scope="module")
def made(smooth: np.ndarray, fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return export.bundle.write.write(
        folder / "bundle", [Shipped(fp32, "student", "fp32")], smooth, np.zeros(8, np.int64), resize=RESIZE
    ).folder


def command(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "decoder.py"
    path.write_text(DECODER.format(**{**RIGHT, **changes}))
    return shlex.join([sys.executable, str(path)])


def answer(made: Path, preprocess: str | None) -> dict[str, Any]:
    return verify.verify(made, preprocess=preprocess, latency=False)


def test_photos_have_the_described_properties(made: Path) -> None:
    seen = {}
    for path in sorted((made / "photos").iterdir()):
        with Image.open(path) as image:
            seen[path.stem] = (
                image.format,
                image.mode,
                image.size,
                image.getexif().get(0x0112),
                "progressive" in image.info,
            )

    assert len(seen) == export.bundle.photos.COUNT and {row[0] for row in seen.values()} == {"JPEG"}
    assert seen["large"][2] == (4000, 3000) and seen["portrait"][4] and not seen["landscape"][4]
    assert (seen["cmyk"][1], seen["grey"][1]) == ("CMYK", "L")
    assert [seen[name][3] for name in ("exif3", "exif6", "exif8", "landscape")] == [3, 6, 8, None]


def test_photos_decode_to_the_pixels_of_training(made: Path) -> None:
    """The device's decoding is the data set's: short side, antialiased, centre."""
    with np.load(made / photos.ARRAYS) as stored:
        expected = stored["pixels"]
    offset = (RESIZE - SIDE) // 2
    for path, pixels in zip(
        ("landscape", "portrait", "exif6", "exif3", "exif8", "grey", "cmyk", "large"), expected, strict=True
    ):
        own = decode_image((made / "photos" / f"{path}.jpg").read_bytes(), RESIZE)[
            offset : offset + SIDE, offset : offset + SIDE
        ]
        assert (own == pixels).all(), path


@pytest.fixture(scope="module")
def owned(smooth: np.ndarray, fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A bundle with two photos of its maker's own, one turned by EXIF and with a comment, one half transparent."""
    folder = tmp_path_factory.mktemp("own")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "my dog"
    Image.fromarray(np.kron(smooth[0], np.ones((4, 6, 1), np.uint8))).save(
        folder / "IMG_1.JPG", exif=exif.tobytes(), quality=95
    )
    clear = np.dstack([smooth[1], np.full(smooth[1].shape[:2], 90, np.uint8)])
    Image.fromarray(np.kron(clear, np.ones((3, 2, 1), np.uint8))).save(folder / "clear.png")
    own = [folder / "IMG_1.JPG", folder / "clear.png"]
    write = export.bundle.write.write(
        folder / "bundle",
        [Shipped(fp32, "student", "fp32")],
        smooth,
        np.zeros(8, np.int64),
        resize=RESIZE,
        own_photos=own,
    )
    return write.folder, own


def test_own_photos_are_copied_unchanged_and_decoded_like_the_data_set(owned: tuple[Path, list[Path]]) -> None:
    folder, own = owned
    listed = json.loads((folder / "manifest.json").read_text())["photos"]["pictures"]
    mine = [row for row in listed if row["own"]]

    assert [row["file"] for row in mine] == ["photos/own1.jpg", "photos/own2.png"] and len(
        listed
    ) == export.bundle.photos.COUNT + 2
    assert (
        mine[0]["what"] == "own photo 1: 96 x 64, EXIF orientation 6"
        and mine[1]["what"] == "own photo 2: 32 x 48, RGBA"
    )
    assert [(folder / row["file"]).read_bytes() for row in mine] == [path.read_bytes() for path in own]
    with np.load(folder / photos.ARRAYS) as stored:
        expected = stored["pixels"][export.bundle.photos.COUNT :]
    offset = (RESIZE - SIDE) // 2
    for path, pixels in zip(own, expected, strict=True):
        assert (decode_image(path.read_bytes(), RESIZE)[offset : offset + SIDE, offset : offset + SIDE] == pixels).all()


def test_own_photos_are_checked_and_timed(owned: tuple[Path, list[Path]]) -> None:
    found = verify.verify(owned[0], repeats=64)

    assert found["ok"] is True and found["models"][0]["photos"]["photos"] == export.bundle.photos.COUNT + 2
    timed = found["models"][0]["photo_latency_ms"]
    assert timed["p50"] > found["models"][0]["latency_ms"]["p50"] > 0 and 0 < timed["runs"] <= 144
    assert "2 of your own photos" in found["photo_to_answer"] and f"{timed['p50']:.3g} ms" in found["photo_to_answer"]


@pytest.mark.slow
def test_a_decoder_that_ignores_exif_is_caught_on_an_own_photo(owned: tuple[Path, list[Path]], tmp_path: Path) -> None:
    found = answer(owned[0], command(tmp_path, upright="image"))

    wrong = {row["what"] for row in found["photos"]["pictures"] if row["looks_like"] and "EXIF" in row["looks_like"]}
    assert "own photo 1: 96 x 64, EXIF orientation 6" in wrong


def test_equal_images_give_equal_photos(smooth: np.ndarray, made: Path, tmp_path: Path) -> None:
    entry, _ = export.bundle.photos.write(tmp_path, smooth, RESIZE)

    for row in entry["pictures"]:
        assert (tmp_path / row["file"]).read_bytes() == (made / row["file"]).read_bytes()


def test_pillow_decodes_the_photos_and_answers_agree(made: Path) -> None:
    found = answer(made, None)

    assert (
        found["ok"] is True and found["photos"]["status"] == "ok" and found["photos"]["decoder"].startswith("Pillow ")
    )
    assert found["models"][0]["photos"] == {"photos": 8, "agreement": 1.0, "max_abs_diff": pytest.approx(0, abs=1e-4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"change": "pixels[..., ::-1]"}, "looks like BGR"),
        ({"box": "None", "resize": SIDE}, "looks like squash instead of crop"),
        ({"upright": "image"}, "looks like EXIF rotation ignored"),
        ({"resize": SIDE}, "looks like the whole square instead of its centre"),
        ({"change": "pixels[:, ::-1]"}, "looks like mirrored"),
        ({"change": "pixels / 255"}, "wrong normalisation"),
        ({"change": "(pixels / 255 - 0.45) / 0.22"}, "wrong normalisation"),
        ({"change": "pixels * 0.5 + 64"}, "looks like wrong normalisation (values are 0.50 x +64 of the right ones)"),
        ({"change": "pixels[:8]"}, "the command wrote 384 bytes; 16 x 16 x 3 = 768 are one RGB image"),
        ({"change": "1 / 0"}, "the command ended with 1: ZeroDivisionError: division by zero"),
    ],
)
def test_each_mistake_of_a_decoder_is_named(
    made: Path, tmp_path: Path, changes: dict[str, Any], named: str | None
) -> None:
    found = answer(made, command(tmp_path, **changes))

    if named is None:
        assert found["ok"] is True, found["photos"]["sentence"]
        return
    assert found["ok"] is False and found["photos"]["status"] == "wrong"
    assert named in found["photos"]["sentence"]
    rotated = [row["what"] for row in found["photos"]["pictures"] if not row["ok"]]
    if "upright" in changes:
        assert rotated == ["EXIF orientation 6", "EXIF orientation 3", "EXIF orientation 8"]


def test_faults_are_named_on_larger_images_too(smooth: np.ndarray) -> None:
    large = np.repeat(np.repeat(smooth[0], 14, axis=0), 14, axis=1).astype(
        np.float32
    )  # 224 x 224, not a multiple of the pooled side
    noise = np.random.default_rng(0).uniform(0, 255, large.shape).astype(np.float32)

    assert photo_faults.name_fault(large[..., ::-1], large, {}) == "looks like BGR"
    assert photo_faults.name_fault(large[:, ::-1], large, {}) == "looks like mirrored"
    assert photo_faults.name_fault(large[:, ::-1, ::-1], large, {}) == "looks like BGR and mirrored"
    assert photo_faults.name_fault(noise, large, {}).startswith("no known fault explains it (nearest: ")


def test_a_decoder_may_write_normalised_floats(smooth: np.ndarray, contract: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    floats = replace(contract, layout="float_nchw")
    script = tmp_path / "floats.py"
    script.write_text(
        "import sys, numpy as np\nsys.stdout.buffer.write(np.load(sys.argv[1]).astype('<f4').tobytes())\n"
    )

    def told(values: np.ndarray) -> tuple[np.ndarray, str | None]:
        np.save(tmp_path / "values.npy", values.transpose(2, 0, 1))
        return photos._by_command(shlex.join([sys.executable, str(script)]), tmp_path / "values.npy", SIDE, floats)

    full = smooth[0].astype(np.float64)
    full[0, 0], full[0, 1] = 0, 255
    right, _ = told((full / 255 - np.array(floats.mean)) / np.array(floats.std))
    _, half = told(full / 127.5 - 1)
    _, unit = told(full / 255)

    assert (
        np.abs(right - full).max() < 0.01
        and half == "pixels scaled to [-1, 1]"
        and unit == "pixels divided by 255 only"
    )


def test_without_pillow_and_a_command_photos_are_not_judged(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "pillow", lambda: None)

    found = answer(made, None)

    assert found["ok"] is True and found["photos"]["status"] == "not run" and found["models"][0]["photos"] is None
    assert (
        found["photos"]["sentence"]
        == "photos: not run, Pillow is not installed here and no --preprocess command was given"
    )
    timed = verify.verify(made, repeats=2)
    assert (
        timed["photo_to_answer"] == "not timed, Pillow is not installed here"
        and timed["models"][0]["photo_latency_ms"] is None
    )


def test_the_range_of_a_sets_values_reaches_the_bundles_photos(smooth: np.ndarray, fp32: Path, tmp_path: Path) -> None:
    """A contract names the range of images of more than 8 bits, and a photo of 12 bits is decoded with it."""
    model = onnx.load(fp32)
    steps = preprocessing("folder", RESIZE, SIDE, (0, 4096))
    assert images.value_range(json.loads(json.dumps(steps))) == (0, 4096)
    assert images.value_range(preprocessing("folder", RESIZE, SIDE)) is None
    onnx.helper.set_model_props(model, {**Model.load(fp32).contract.to_metadata(), **_metadata(steps)})
    onnx.save(model, tmp_path / "own.fp32.onnx")
    values = np.linspace(0, 4095, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "own.png")
    shipped = [Shipped(tmp_path / "own.fp32.onnx", "student", "fp32")]
    made = export.bundle.write.write(
        tmp_path / "bundle", shipped, smooth, np.zeros(8, np.int64), resize=RESIZE, own_photos=[tmp_path / "own.png"]
    ).folder
    with np.load(made / photos.ARRAYS) as stored:
        pixels = stored["pixels"][-1]
    offset = (RESIZE - SIDE) // 2
    expected = decode_image((tmp_path / "own.png").read_bytes(), RESIZE, (0, 4096))
    assert (pixels == expected[offset : offset + SIDE, offset : offset + SIDE]).all() and pixels.max() > 200
    assert answer(made, None)["photos"]["ok"]


def _metadata(steps: dict[str, Any]) -> dict[str, str]:
    return {METADATA_PREFIX + "preprocessing": json.dumps(steps)}
