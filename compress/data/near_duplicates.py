"""Finds images of one part of a data set that are nearly the same in another: resized, recompressed, slightly cropped.

No pair of all pairs is compared. Each window's hash of 63 bits is cut into bands, in several random orders of its bits,
and only images that agree in all bits of a band are candidates: two hashes that differ in few bits have such a band.
Candidates with close hashes are confirmed by the large hash and by their colours. benchmarks/near_duplicates.py
measures what is found and what is found wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.data import perceptual_hash
from compress.data.perceptual_hash import WHOLE, WINDOWS, Thumbnails, Window
from compress.data.splits import shuffled

BANDS, BAND_BITS = 4, 15
ORDERS = 4  # random orders in which the bits are cut into bands
MOST_BITS = 8  # hashes of a copy differ in at most so many of 63 bits
PER_BUCKET = 24  # candidates taken from a bucket for one image
# How different a copy's large hash may be where images are as different as photos of many things, and how fast that
# falls where they look alike. Chosen so that clothes on black ground and CIFAR-100 give no false alarms to speak of.
MOST_DIFFERENT, USUAL_DISTANCE, POWER = 0.022, 1.15, 5
REFINED_FROM = 4.0  # times the limit: a pair below is looked at again through more windows
MOST_COLOUR = 16.0  # mean difference of colours, in grey levels
SAMPLED_PAIRS = 5_000
FINE_WINDOWS = (*perceptual_hash.crops(0.025, 2), *perceptual_hash.crops(0.05, 5), *perceptual_hash.crops(0.1, 3))
CHUNK = 1 << 20  # pairs at a time


@dataclass(frozen=True)
class Pairs:
    """One pair for each query image that has a near-duplicate among the reference images.

    Attributes:
        queries: Positions, int64 (P,), sorted.
        references: Position of the nearest reference image that was found, int64 (P,).
        difference: Of the large hashes, 0 for equal images, float (P,).
    """

    queries: NDArray[np.int64]
    references: NDArray[np.int64]
    difference: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.queries)


def find(queries: Thumbnails, references: Thumbnails, limit: float | None = None) -> Pairs:
    """Find the queries that have a near-duplicate among the references.

    Args:
        queries: Images that are looked up.
        references: Images that they are looked up among.
        limit: How different a copy's large hash may be; None: `limit_of` the two.
    """
    limit = limit_of(queries, references) if limit is None else limit
    best = np.full(len(queries), np.inf, np.float32)
    partner = np.full(len(queries), -1, np.int64)
    usable = np.flatnonzero(~references.flat)
    if limit > 0 and len(usable):
        known = references.take(usable)
        whole = _Hashes.of(known, WHOLE)
        for window in WINDOWS:
            for of_query in (True, False) if window != WHOLE else (True,):
                left = np.flatnonzero(~queries.flat & (best > limit))
                if len(left):
                    asked = _Hashes.of(queries.take(left), window if of_query else WHOLE)
                    _search(asked, whole if of_query else _Hashes.of(known, window), left, usable, best, partner)
        _refine(queries, references, limit, best, partner)
    found = np.flatnonzero(best <= limit)
    return Pairs(found, partner[found], best[found])


@dataclass(frozen=True)
class _Hashes:
    """Small hash, large hash and colours of one window of N images."""

    bits: NDArray[np.bool_]
    directions: NDArray[np.float32]
    colour: NDArray[np.int16]

    @classmethod
    def of(cls, images: Thumbnails, window: Window) -> _Hashes:
        grey = images.grey
        return cls(perceptual_hash.bits(grey, window), perceptual_hash.directions(grey, window), images.colour)


def limit_of(queries: Thumbnails, references: Thumbnails) -> float:
    """Return how different a copy may be: less in a set whose images look alike anyway, such as centred clothes.

    The distance that decides is the upper quartile of randomly drawn pairs: half of them may be frames of one clip.
    """
    if not len(queries) or not len(references):
        return 0.0
    first = shuffled(SAMPLED_PAIRS, 0) % len(queries)
    second = shuffled(SAMPLED_PAIRS, 1) % len(references)
    one = perceptual_hash.directions(queries.grey[first], WHOLE)
    other = perceptual_hash.directions(references.grey[second], WHOLE)
    distance = float(np.quantile(1 - np.einsum("pi,pi->p", one, other), 0.75))
    return MOST_DIFFERENT * min(1.0, distance / USUAL_DISTANCE) ** POWER


def _search(
    asked: _Hashes,
    known: _Hashes,
    left: NDArray[np.int64],
    usable: NDArray[np.int64],
    best: NDArray[np.float32],
    partner: NDArray[np.int64],
) -> None:
    """Compare the queries `left` with the references `usable`; note the nearest reference of each query."""
    for query, reference in _close(asked.bits, known.bits):
        difference = 1 - np.einsum("pi,pi->p", asked.directions[query], known.directions[reference])
        colours = perceptual_hash.colour_distance(asked.colour[query], known.colour[reference])
        difference[colours > MOST_COLOUR] = np.inf
        query, reference = left[query], usable[reference]
        order = np.lexsort((reference, difference, query))
        first = order[np.unique(query[order], return_index=True)[1]]
        first = first[difference[first] < best[query[first]]]
        best[query[first]], partner[query[first]] = difference[first], reference[first]


def _refine(
    queries: Thumbnails,
    references: Thumbnails,
    limit: float,
    best: NDArray[np.float32],
    partner: NDArray[np.int64],
) -> None:
    """Look again, through more windows, at the nearest reference where it is nearly near enough."""
    again = np.flatnonzero((best > limit) & (best <= REFINED_FROM * limit))
    for start in range(0, len(again), perceptual_hash.BLOCK):
        query = again[start : start + perceptual_hash.BLOCK]
        one, other = queries.grey[query], references.grey[partner[query]]
        best[query] = np.minimum(best[query], perceptual_hash.nearest(one, other, FINE_WINDOWS))


def _close(
    query_bits: NDArray[np.bool_], reference_bits: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of positions that share a band and differ in at most MOST_BITS bits; a pair may come again."""
    query_words, reference_words = _words(query_bits), _words(reference_bits)
    for order in range(ORDERS):
        places = shuffled(query_bits.shape[1], order)
        for band in range(BANDS):
            chosen = places[band * BAND_BITS : (band + 1) * BAND_BITS]
            for query, reference in _joined(_keys(query_bits, chosen), _keys(reference_bits, chosen)):
                near = np.bitwise_count(query_words[query] ^ reference_words[reference]) <= MOST_BITS
                if near.any():
                    yield query[near], reference[near]


def _words(hashes: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return hashes of up to 64 bits as one number each."""
    padded = np.zeros((len(hashes), 64), np.bool_)
    padded[:, : hashes.shape[1]] = hashes
    words: NDArray[np.uint64] = np.packbits(padded, axis=1).view(np.uint64)[:, 0]
    return words


def _keys(hashes: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the bits at up to 16 places as one number for each hash."""
    keys = np.zeros(len(hashes), np.uint16)
    for place in places:
        keys = (keys << np.uint16(1)) | hashes[:, place]
    return keys


def _joined(
    keys: NDArray[np.uint16], others: NDArray[np.uint16]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of positions with equal keys, at most PER_BUCKET spread over a bucket for each of `keys`."""
    order = np.argsort(others, kind="stable")
    counts = np.bincount(others, minlength=1 << 16)
    starts = np.cumsum(counts) - counts
    sizes = counts[keys]
    taken = np.minimum(sizes, PER_BUCKET)
    ends = np.cumsum(taken)
    for low in range(0, len(keys), block := max(1, CHUNK // PER_BUCKET)):
        high = min(low + block, len(keys))
        query = np.repeat(np.arange(low, high), taken[low:high])
        rank = np.arange(len(query)) - np.repeat(
            ends[low:high] - taken[low:high] - (ends[low] - taken[low]), taken[low:high]
        )
        # Of a large bucket each image sees another part.
        step = (rank * sizes[query] // np.maximum(taken[query], 1) + query) % np.maximum(sizes[query], 1)
        yield query, order[starts[keys[query]] + step]
