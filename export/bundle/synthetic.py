"""Drawn images for a bundle that may hold none of the user's: seeded patterns on which the models' answers are clear.

A device is checked by whether it gives the same answers, which needs no real image. It needs answers of several classes
and no near ties: among many patterns those are chosen that the student is surest of, spread over the classes it names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 8  # patterns drawn for each one that is chosen
MOST_CANDIDATES = 512


def candidates(count: int) -> int:
    """Return how many patterns to draw, so that `count` can be chosen."""
    return max(count, min(CANDIDATES * count, MOST_CANDIDATES))


def draw(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Return patterns uint8 (count, size, size, 3): soft colours, and on them stripes or a shape, with some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / max(1, size - 1)
    images = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        image = _soft(random, x, y)
        kind = number % 4
        if kind == 1:
            angle, waves, phase = random.uniform(0, np.pi), random.uniform(1, 12), random.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
            image += wave[..., None] * random.uniform(-110, 110, 3)
        elif kind > 1:
            left, top = random.uniform(0.2, 0.8, 2)
            across, down = np.abs(x - left) / random.uniform(0.1, 0.45), np.abs(y - top) / random.uniform(0.1, 0.45)
            inside = (np.maximum(across, down) if kind == 2 else np.hypot(across, down)) < 1
            image[inside] = random.uniform(0, 255, 3) + 0.3 * (image[inside] - 128)
        image += random.normal(0, random.uniform(0, 20), image.shape)
        images[number] = np.clip(np.rint(image), 0, 255)
    return images


def _soft(random: np.random.Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a slow change of colours between random ones at the nodes of a coarse grid, (S, S, 3)."""
    nodes = int(random.integers(2, 6))
    grid = random.uniform(0, 255, (nodes, nodes, 3))
    place_x, place_y = x * (nodes - 1), y * (nodes - 1)
    left, top = (np.minimum(place.astype(np.int64), nodes - 2) for place in (place_x, place_y))
    right, below = (place_x - left)[..., None], (place_y - top)[..., None]
    upper = grid[top, left] * (1 - right) + grid[top, left + 1] * right
    lower = grid[top + 1, left] * (1 - right) + grid[top + 1, left + 1] * right
    return np.asarray(upper * (1 - below) + lower * below)


def choose(logits: Sequence[NDArray[np.float32]], count: int) -> NDArray[np.int64]:
    """Return which patterns are kept, sorted: in turn one of each class that is named, the surest first.

    Args:
        logits: Of the student's files, the preferred one first, (N, K) each.
        count: How many to keep, at most N.
    """
    margins = np.min([_margins(values) for values in logits], axis=0)
    answers = logits[0].argmax(axis=1)
    order = np.argsort(-margins, kind="stable")
    turn = np.empty(len(answers), np.int64)  # how many surer patterns of the same class there are
    for answer in np.unique(answers):
        own = order[answers[order] == answer]
        turn[own] = np.arange(len(own))
    return np.sort(np.lexsort((-margins, turn))[:count])


def _margins(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the lead of the first answer over the second, in units of the logits' spread, (N,)."""
    ordered = np.sort(values.astype(np.float64), axis=1)
    return np.asarray((ordered[:, -1] - ordered[:, -2]) / max(float(ordered.std()), 1e-12))
