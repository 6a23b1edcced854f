"""How an image file is opened: by its content, in formats that start no program, within limits."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from export.runtime import images

ROOT = Path(__file__).parents[3]
# Formats whose files begin in a way of their own.
MARKED = ("AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "SGI", "TIFF", "WEBP")
UNMARKED = ("DIB", "PCX", "TGA")


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (48, 32), **save: object) -> bytes:
    """Return a file with red on the left and blue on the right."""
    image = Image.new("RGB", size, (200, 20, 20))
    image.paste((20, 20, 200), (size[0] // 2, 0, *size))
    stream = io.BytesIO()
    try:
        image.convert(mode).save(stream, kind, **save)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    return stream.getvalue()


def decoded(content: bytes, **options: object) -> np.ndarray:
    with images.open_image(content) as image:
        return np.asarray(images.to_upright_rgb(image, (16, 16), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*MARKED, *UNMARKED])
def test_a_raster_format_is_opened_by_its_content(kind: str) -> None:
    content = encoded(kind, "P" if kind == "GIF" else "RGB")
    pixels = decoded(content).astype(int)
    assert np.abs(pixels[10, 4] - (200, 20, 20)).max() < 40 and np.abs(pixels[10, -4] - (20, 20, 200)).max() < 40
    assert images.looks_like_image(content[: images.HEAD_BYTES]) is (kind in MARKED)


def test_postscript_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    content = encoded("EPS")
    with Image.open(io.BytesIO(content), formats=["EPS"]) as opened, pytest.raises(AssertionError):
        opened.load()  # what would happen
    with pytest.raises(images.UnreadableImage, match="PostScript, which is not opened"):
        decoded(content)
    assert not images.looks_like_image(content[: images.HEAD_BYTES])
    Image.init()
    starts_programs = {"EPS", "WMF", "IPTC", "GRIB", "BUFR", "HDF5", "MPEG"}
    assert not starts_programs & set(images.FORMATS) and starts_programs <= set(Image.OPEN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "not an image that Pillow can read"),
        (b"BMW and other cars, a list of them", "Truncated"),
        (b"P1 is a car park for everybody who comes", "invalid literal"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(50), "not an image that Pillow can read"),
    ],
)
def test_other_content_is_no_image(content: bytes, reason: str) -> None:
    assert not images.looks_like_image(content[: images.HEAD_BYTES])
    with pytest.raises(images.BROKEN_FILE_ERRORS, match=reason):
        decoded(content)


def test_a_heic_image_names_the_package_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    head = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(60)
    assert images.is_heif(head) and not images.looks_like_image(head)
    with pytest.raises(images.UnreadableImage, match=r"HEIC image; to read it: pip install pillow-heif$"):
        decoded(head)


def test_a_heic_image_is_read_where_the_package_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.register_heif_opener()
    content = encoded("HEIF", exif=_orientation(6))
    assert images.looks_like_image(content[: images.HEAD_BYTES])
    assert decoded(content).shape == (48, 32, 3)


def _orientation(value: int) -> bytes:
    tags = Image.Exif()
    tags[images.EXIF_ORIENTATION] = value
    return tags.tobytes()


def test_a_large_jpeg_is_decoded_at_a_fraction_and_other_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 40_000)
    monkeypatch.setattr(images, "LARGE_PIXELS", 1)
    for progressive in (False, True):
        content = encoded("JPEG", size=(200, 200), progressive=progressive, exif=_orientation(6))
        with images.open_image(content) as image:
            assert images.is_transposed(image)
            pixels = np.asarray(images.to_upright_rgb(image, (190, 190)))
        assert pixels.shape == (100, 100, 3) and pixels[10, 50, 0] > 150 > pixels[90, 50, 0]
    with pytest.raises(images.UnreadableImage, match="more than 0 megapixels"):
        decoded(encoded("JPEG", size=(201, 200)))
    with pytest.raises(images.UnreadableImage, match="more than 0 megapixels"):
        decoded(encoded("PNG", size=(101, 100)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_photo_with_broken_exif_is_read_as_it_lies() -> None:
    content = encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert decoded(content).shape == (16, 24, 3)


def test_only_the_first_frame_is_read() -> None:
    stream = io.BytesIO()
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    first.save(stream, "GIF", save_all=True, append_images=[second])
    assert (decoded(stream.getvalue())[10, 10] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("values", "scale", "expected"),
    [
        (np.array([[0, 256, 65535]], np.uint16), None, [0, 1, 255]),
        (np.array([[0, 16, 4095]], np.uint16), (0, 4096), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], np.float32), (0, 1), [0, 128, 255]),
        (np.array([[-1024, 0, 1023]], np.int32), (-1024, 1024), [0, 128, 255]),
    ],
)
def test_more_than_8_bits_are_scaled_by_a_given_range(
    values: np.ndarray, scale: tuple[float, float] | None, expected: list[int]
) -> None:
    assert np.asarray(images.to_rgb(Image.fromarray(values), scale))[0, :, 1].tolist() == expected


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(images.UnreadableImage, match="not finite"):
        images.to_rgb(Image.fromarray(np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize(
    ("lowest", "highest", "whole", "expected"),
    [
        (0, 4095, True, (0, 4096)),
        (5, 4096, True, (0, 8192)),
        (0, 65535, True, (0, 65536)),
        (0, 0, True, (0, 1)),
        (0, 0.97, False, (0, 1)),
        (0, 1.0, False, (0, 1)),
        (-1000, 3000, True, (-1024, 4096)),
    ],
)
def test_a_range_is_rounded_up_to_powers_of_two(
    lowest: float, highest: float, whole: bool, expected: tuple[float, float]
) -> None:
    assert images.rounded_range(lowest, highest, whole=whole) == expected


def test_files_are_opened_in_one_place() -> None:
    """Pillow's own `open` tries every format that it knows."""
    calls = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for folder in ("compress", "export")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bImage\.open\(|\bimread\(|read_file\(|decode_image\(.*torchvision", line)
    ]
    assert [path for path, _ in calls] == ["export/runtime/images.py"] and "formats=" in calls[0][1]
