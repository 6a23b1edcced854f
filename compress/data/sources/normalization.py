"""The normalization of a data set: the recipe's constants, else published ones, else measured ones."""

from __future__ import annotations

import numpy as np

from compress.core.records.training import Normalization
from compress.data.sources import cifar, fashion, imagenet
from compress.recipe import schema

MEASURED_IMAGES = 20_000  # enough for four digits of a channel mean


def known_normalization(config: schema.Data) -> Normalization | None:
    """Return the recipe's constants, else the published ones of a named set; None if they must be measured."""
    if config.normalize is not None:
        return Normalization(config.normalize.mean, config.normalize.std)
    if config.source == "fashion":
        return Normalization((fashion.MEAN,) * 3, (fashion.STD,) * 3)
    if config.source == "imagenet":
        return Normalization(imagenet.MEAN, imagenet.STD)
    if config.source in cifar.SETS:
        return Normalization(cifar.SETS[config.source].mean, cifar.SETS[config.source].std)
    return None


def measure_normalization(images: np.ndarray) -> Normalization:
    """Measure channel mean and standard deviation of images uint8 (N, S, S, 3), rounded to 4 digits.

    Sums are exact integers, over at most MEASURED_IMAGES images.
    """
    step = max(1, -(-len(images) // MEASURED_IMAGES))
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 256 * step):
        block = np.asarray(images[start : start + 256 * step : step])
        counts += np.stack([np.bincount(block[..., channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    red, green, blue = (round(float(value), 4) for value in mean)
    # Images of a single colour would divide by zero.
    spread = [max(round(float(value), 4), 1 / 255) for value in std]
    return Normalization((red, green, blue), (spread[0], spread[1], spread[2]))
