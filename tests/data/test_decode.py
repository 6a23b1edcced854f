"""Image files of every mode become upright RGB squares."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data import decode

RED, BLUE = (220, 20, 20), (20, 20, 220)


def odd_images(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Images in unusual forms, with the colour that their centre must have."""
    folder.mkdir(parents=True)
    halves = Image.new("RGB", (40, 40), RED)
    halves.paste(BLUE, (0, 0, 40, 20))
    rotated = Image.Exif()
    rotated[0x0112] = 3  # upside down: the red half belongs on top
    halves.save(folder / "exif.png", exif=rotated)
    Image.new("L", (40, 40), 100).save(folder / "grey.jpg")
    Image.fromarray(np.full((40, 40), 100 * 257, np.uint16)).save(folder / "grey16.png")
    Image.new("RGB", (40, 40), RED).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (0, 0, 40, 40))
    palette.save(folder / "palette.png", transparency=0)
    Image.new("RGBA", (40, 40), (*RED, 0)).save(folder / "clear.webp", lossless=True, exact=True)
    Image.new("LA", (40, 40), (100, 255)).save(folder / "grey_alpha.png")
    Image.new("RGB", (40, 40), RED).save(folder / "UPPER.BMP")
    grey = (100, 100, 100)
    return {
        "exif.png": RED,
        "grey.jpg": grey,
        "grey16.png": grey,
        "cmyk.jpg": RED,
        "palette.png": BLUE,
        "clear.webp": (255, 255, 255),
        "grey_alpha.png": grey,
        "UPPER.BMP": RED,
    }


def test_every_mode_becomes_upright_rgb(tmp_path: Path) -> None:
    expected = odd_images(tmp_path / "odd")
    for name, colour in expected.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            made = decode.decode_image((tmp_path / "odd" / name).read_bytes(), 16)
        assert made.shape == (16, 16, 3) and made.dtype == np.uint8
        assert np.abs(made[4, 8].astype(int) - colour).max() <= 6, name  # JPEG moves values a little


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_and_looks_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(80)), axis=2)).save(
        tmp_path / "a.jpg", quality=95
    )
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode.decode_image((tmp_path / "a.jpg").read_bytes(), 32) - expected).max() <= 3
