"""A folder of photos as inspection lines give it: many good parts, few faulty ones that look nearly alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"good": (380, (120, 120, 120)), "faulty": (20, (122, 120, 119))}  # images and mean colour


def write_unequal_photos(folder: Path, *, side: int = 32, seed: int = 0) -> Path:
    """Write `folder/good` with 380 PNG files and `folder/faulty` with 20: a mean colour and noise."""
    random = np.random.default_rng(seed)
    for name, (count, colour) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(colour) + random.normal(0, 12, (side, side, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder
