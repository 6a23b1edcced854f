"""Known mistakes in decoding a photo: which one explains wrong pixels best.

Standard library and numpy only; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import numpy as np

# Faults whose pixels are stored in the bundle, by the name of their array.
VARIANTS = {
    "squash": "squash instead of crop",
    "exif": "EXIF rotation ignored",
    "uncropped": "the whole square instead of its centre",
}
# Faults are coarse, so they are compared on images of at most this side.
POOLED_SIDE = 64
# A fault is named if it explains the pixels up to this mean |difference| in levels of 255.
FAULT_TOLERANCE = 6.0
# The right image, but rougher: up to here it may be resampled without antialiasing.
FILTER_TOLERANCE = 15.0
# (x - mean) / std of pixels in [0, 255], the same for each channel except for ImageNet's.
_NORMALISATIONS = {
    "pixels divided by 255 only": ((0.0,) * 3, (255.0,) * 3),
    "pixels as they are, 0 to 255": ((0.0,) * 3, (1.0,) * 3),
    "pixels scaled to [-1, 1]": ((127.5,) * 3, (127.5,) * 3),
    "ImageNet's mean and deviation": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def pool(images: np.ndarray) -> np.ndarray:
    """Return images (..., S, S, 3) as float32 means of blocks, at most POOLED_SIDE on a side."""
    side = images.shape[-2]
    block = -(-side // POOLED_SIDE)
    kept = side // block
    start = (side - kept * block) // 2
    cut = images[..., start : start + kept * block, start : start + kept * block, :].astype(np.float32)
    means: np.ndarray = cut.reshape(*images.shape[:-3], kept, block, kept, block, 3).mean(axis=(-4, -2))
    return means


def guess_normalisation(values: np.ndarray) -> str | None:
    """Return the common normalisation whose range fits floats (S, S, 3) best, or None if none clearly does."""
    low, high = float(values.min()), float(values.max())
    found = []
    for name, (mean, std) in _NORMALISATIONS.items():
        bottom, top = min(-mean[c] / std[c] for c in range(3)), max((255 - mean[c]) / std[c] for c in range(3))
        slack = 0.02 * (top - bottom)
        if low >= bottom - slack and high <= top + slack and high - low > 0.5 * (top - bottom):
            found.append((top - bottom, name))
    return min(found)[1] if found else None


def name_fault(got: np.ndarray, expected: np.ndarray, variants: Dict[str, np.ndarray]) -> str:
    """Return the known mistake that explains wrong pixels best, in words.

    Args:
        got: the wrong pixels (S, S, 3), 0 to 255.
        expected: the right ones.
        variants: pooled pixels of the faults in VARIANTS, by their key.
    """
    if float(got.std()) < 2 or _extreme_share(got) > 0.95 > _extreme_share(expected):
        return "wrong normalisation (the bytes are normalised or scaled values, not pixels)"
    seen, right = pool(got), pool(expected)
    geometry = {"": right, "mirrored": right[:, ::-1], "upside down": right[::-1, ::-1]}
    geometry.update({"rotated by 90 degrees": np.rot90(right, 1), "rotated by 270 degrees": np.rot90(right, 3)})
    geometry.update({VARIANTS[name]: image.astype(np.float32) for name, image in variants.items()})
    found: List[Tuple[float, str]] = []
    for where, image in geometry.items():
        for colour, changed in (("", image), ("BGR", image[..., ::-1])):
            names = [name for name in (colour, where) if name]
            error = float(np.abs(seen - changed).mean()) + 0.5 * len(names)
            found.append((error - 0.1 * (where in VARIANTS.values()), "looks like " + " and ".join(names)))
            fitted, gain, offset = _fit_affine(seen, changed)
            if max(abs(gain - 1)) > 0.08 or max(abs(offset)) > 8:
                also = " and ".join([*names, "wrong normalisation"])
                values = f"values are {gain.mean():.2f} x {offset.mean():+.0f} of the right ones"
                found.append((fitted + 2.0 + 0.5 * len(names), f"looks like {also} ({values})"))
    error, name = min(found)
    if error <= FAULT_TOLERANCE and name != "looks like ":
        return name
    if found[0][0] <= FILTER_TOLERANCE:  # the first one is the right image
        return "looks like a resize without antialiasing, or another filter"
    return f"no known fault explains it (nearest: {name[11:] or 'the right pixels'})"


def _extreme_share(pixels: np.ndarray) -> float:
    """Return the share of values that are nearly black or nearly white."""
    return float(((pixels <= 4) | (pixels >= 251)).mean())


def _fit_affine(seen: np.ndarray, right: np.ndarray) -> Tuple[float, np.ndarray, np.ndarray]:
    """Fit seen = gain x right + offset for each channel.

    Returns the mean |residual| scaled back to the right contrast, the gain (3,) and the offset (3,).
    """
    x, y = right.reshape(-1, 3).astype(np.float64), seen.reshape(-1, 3).astype(np.float64)
    spread = x - x.mean(axis=0)
    gain = (spread * (y - y.mean(axis=0))).sum(axis=0) / np.maximum((spread**2).sum(axis=0), 1e-9)
    offset = y.mean(axis=0) - gain * x.mean(axis=0)
    rest = np.abs(y - gain * x - offset).mean() / max(float(np.abs(gain).mean()), 0.05)
    return float(rest), gain, offset
