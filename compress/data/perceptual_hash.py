"""Perceptual hashes of decoded images: the same for a resized, recompressed or slightly cropped copy, or nearly so.

An image becomes a small grey thumbnail, and the thumbnail's lowest cosine frequencies become a hash of 63 bits and a
vector of 255 numbers. A copy that was cropped is met by hashing windows of the thumbnail too. Resizing and the cosine
transform are linear, so hashing a window is two small matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # of the thumbnail
COLOUR_SIDE = 2  # of the grid of mean colours
HASH_SIDE, VECTOR_SIDE = 8, 16  # cosine frequencies in each direction; the constant one is left out
CROP = 0.05  # share of the side that a crop takes off
BLOCK = 1024  # images at a time
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Edges (top, bottom, left, right) as shares of the side.
Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 1.0, 0.0, 1.0)


def crops(share: float, steps: int = 3) -> list[Window]:
    """Return windows that lack `share` of each side, at steps x steps places."""
    starts = np.linspace(0.0, share, steps)
    return [(float(y), float(y + 1 - share), float(x), float(x + 1 - share)) for y in starts for x in starts]


# What the search hashes: the whole, what is left without CROP of the side, and without CROP at each edge.
WINDOWS: tuple[Window, ...] = (WHOLE, *crops(CROP), (CROP, 1 - CROP, CROP, 1 - CROP))


@dataclass(frozen=True)
class Thumbnails:
    """Small versions of N images.

    Attributes:
        grey: uint8 (N, SIDE, SIDE).
        colour: Mean colours, int16 (N, COLOUR_SIDE, COLOUR_SIDE, 3).
        flat: Whether an image has too little contrast to be told from others, bool (N,).
    """

    grey: NDArray[np.uint8]
    colour: NDArray[np.int16]
    flat: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.grey)

    def take(self, index: NDArray[np.int64]) -> Thumbnails:
        """Return the thumbnails at some positions."""
        return Thumbnails(self.grey[index], self.colour[index], self.flat[index])


LEAST_CONTRAST = 3.0  # standard deviation of the grey levels below which an image counts as flat


@cache
def _resize(target: int, side: int, start: float = 0.0, end: float = 1.0) -> NDArray[np.float32]:
    """Return the matrix (target, side) that resizes a window of a row: means when smaller, interpolation when not."""
    edges = np.linspace(start * side, end * side, target + 1)
    matrix = np.zeros((target, side))
    for row, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if high - low <= 1:
            place = (low + high) / 2 - 0.5
            first = int(np.floor(place))
            for pixel, weight in ((first, first + 1 - place), (first + 1, place - first)):
                matrix[row, min(max(pixel, 0), side - 1)] += weight
        else:
            pixels = np.arange(side)
            matrix[row] = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, 1) / (high - low)
    return matrix.astype(np.float32)


@cache
def _cosines(frequencies: int) -> NDArray[np.float32]:
    """Return the lowest rows of the orthonormal cosine transform of SIDE values (DCT-II)."""
    waves = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(frequencies)[:, None] / SIDE)
    matrix: NDArray[np.float32] = (waves * np.sqrt(2 / SIDE)).astype(np.float32)
    return matrix


def thumbnails(images: NDArray[np.uint8]) -> Thumbnails:
    """Make small versions of images uint8 (N, S, S, 3); a memory map is read block by block."""
    count, side = len(images), images.shape[1]
    grey = np.empty((count, SIDE, SIDE), np.uint8)
    colour = np.empty((count, COLOUR_SIDE, COLOUR_SIDE, 3), np.int16)
    small, grid = _resize(SIDE, side), _resize(COLOUR_SIDE, SIDE)
    for start in range(0, count, BLOCK):
        block = np.asarray(images[start : start + BLOCK]).astype(np.float32).transpose(0, 3, 1, 2)
        reduced = small @ block @ small.T
        grey[start : start + BLOCK] = np.clip(np.rint(np.tensordot(LUMA, reduced, (0, 1))), 0, 255)
        colour[start : start + BLOCK] = np.rint(grid @ reduced @ grid.T).transpose(0, 2, 3, 1)
    flat = grey.reshape(count, -1).std(axis=1, dtype=np.float32) < LEAST_CONTRAST if count else np.zeros(0, bool)
    return Thumbnails(grey, colour, flat)


def frequencies(grey: NDArray[np.uint8], window: Window, side: int) -> NDArray[np.float32]:
    """Return the lowest cosine frequencies of a window of thumbnails, without the constant: (N, side * side - 1)."""
    rows = _cosines(side) @ _resize(SIDE, SIDE, window[0], window[1])
    columns = _cosines(side) @ _resize(SIDE, SIDE, window[2], window[3])
    found: NDArray[np.float32] = (rows @ grey.astype(np.float32) @ columns.T).reshape(len(grey), -1)[:, 1:]
    return found


def bits(grey: NDArray[np.uint8], window: Window) -> NDArray[np.bool_]:
    """Return the small hash of a window: which of 63 frequencies lie above their median, bool (N, 63)."""
    found = np.empty((len(grey), HASH_SIDE * HASH_SIDE - 1), np.bool_)
    for start in range(0, len(grey), BLOCK):
        block = frequencies(grey[start : start + BLOCK], window, HASH_SIDE)
        found[start : start + BLOCK] = block > np.median(block, axis=1, keepdims=True)
    return found


def directions(grey: NDArray[np.uint8], window: Window) -> NDArray[np.float32]:
    """Return the large hash of a window: 255 frequencies as a vector of length 1, (N, 255)."""
    found = np.empty((len(grey), VECTOR_SIDE * VECTOR_SIDE - 1), np.float32)
    for start in range(0, len(grey), BLOCK):
        vectors = frequencies(grey[start : start + BLOCK], window, VECTOR_SIDE)
        length = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        found[start : start + BLOCK] = vectors / length
    return found


def colour_distance(one: NDArray[np.int16], other: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the mean difference of colours, in grey levels, of pairs (P, COLOUR_SIDE, COLOUR_SIDE, 3)."""
    apart: NDArray[np.float64] = np.abs(one.astype(np.int32) - other).mean(axis=(1, 2, 3))
    return apart


def nearest(first: NDArray[np.uint8], second: NDArray[np.uint8], windows: Sequence[Window]) -> NDArray[np.float32]:
    """Return how different pairs of thumbnails (P, SIDE, SIDE) are at best: 0 equal, 1 unrelated.

    Either of them may be a window of the other.
    """
    one, other = directions(first, WHOLE), directions(second, WHOLE)
    best = np.einsum("pi,pi->p", one, other)
    for window in windows:
        best = np.maximum(best, np.einsum("pi,pi->p", directions(first, window), other))
        best = np.maximum(best, np.einsum("pi,pi->p", one, directions(second, window)))
    found: NDArray[np.float32] = 1 - best
    return found
