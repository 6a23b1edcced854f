"""Sets that are too large to decode at once: the training part is listed, the test part is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.core.errors import UsageError
from compress.core.records.base import File
from compress.data import npy
from compress.data.sources import imagenet, webdataset
from compress.data.sources.prepared_files import PreparedFiles
from compress.data.splits import stratified
from compress.data.streaming.listing import ListedPart, Listing, ListingSpec, Report, write_listing
from compress.recipe import schema

SOURCES = ("imagenet", "webdataset")
NORMALIZATION_IMAGES = 1000
ANNOUNCED_BYTES = 1 << 30  # a decoded part that needs more is announced first


def content_stamp(source: str, root: Path) -> object:
    """Identify what a root holds, as JSON, without reading a pixel.

    imagenet counts by each image's path, size and time, webdataset by each shard's. Raises as the source's `scan`.
    """
    if source == "imagenet":
        return imagenet.scan(root).stamp
    return [webdataset.content_stamp(root), webdataset.classes_file(root)]


def prepare_streamed(
    config: schema.Data, root: Path, work: Path, *, image_size: int, test_stream: int, report: Report
) -> tuple[PreparedFiles, Listing]:
    """List the training part and decode the test part; both are stratified and seeded where the recipe limits them.

    Args:
        config: The recipe's `data` section, resolved.
        root: Folder of the images or shards.
        work: Folder to write into.
        image_size: Side of the images, in pixels.
        test_stream: Stream of the seed that `limit_test` draws from.
        report: Receives one progress line at a time.

    Returns:
        What was written, and the listing of the training part.

    Raises:
        MissingError: As the source's `scan`.
        UsageError: As the source's `scan`, or the test shards are empty.
    """
    if config.source == "imagenet":
        found = imagenet.scan(root)
        classes, train, test = found.classes, found.train, found.test
    else:
        parts = webdataset.find_shards(root)
        train, test = webdataset.scan(parts.train, report), webdataset.scan(parts.test, report)
        if not len(test.labels):
            raise UsageError(f"{root}: the test shards hold no images with labels")
        classes = webdataset.class_names(root, train, test)
    rows, labels, paths = write_listing(train, _chosen(train, config.limit_train, config.split_seed, 0), work, "train")
    report(
        f"data: {len(np.load(labels.path)):,} training images of {len(classes)} classes, listed; "
        "they are decoded during training"
    )
    test_rows, test_labels, test_paths = write_listing(
        test, _chosen(test, config.limit_test, config.split_seed, test_stream), work, "test"
    )
    test_listing = Listing(ListingSpec(root, test_rows.path, test_paths.path, image_size))
    images = decode_listing(test_listing, np.arange(len(test_listing)), work / "test_images.npy", "test", report)
    test_rows.path.unlink()
    test_paths.path.unlink()
    listing = Listing(ListingSpec(root, rows.path, paths.path, image_size))
    return PreparedFiles(classes, rows, labels, images, test_labels, paths=paths), listing


def _chosen(part: ListedPart, limit: int | None, seed: int, stream: int) -> np.ndarray:
    every = np.arange(len(part.labels), dtype=np.int64)
    return every if limit is None else stratified(part.labels, limit, seed, stream)


def decode_listing(listing: Listing, positions: np.ndarray, path: Path, what: str, report: Report) -> File:
    """Decode listed images as for evaluation into a file, uint8 (n, S, S, 3).

    Args:
        listing: Where the images are.
        positions: Which of them to decode, int64 (n,).
        path: File to write, `.npy`.
        what: Adjective for the progress lines, such as "test".
        report: Receives one progress line at a time.

    Raises:
        StageError: An image cannot be read.
    """
    size = listing.spec.image_size
    needed = len(positions) * size**2 * 3
    if needed > ANNOUNCED_BYTES:
        report(f"data: {len(positions):,} {what} images are decoded once, {needed / 2**30:.1f} GiB on disk")
    file = npy.write_rows(path, listing.evaluated(positions, report, what), (size, size, 3), np.uint8)
    report(f"data: {len(positions):,} {what} images, {size}x{size}")
    return file


def normalization_sample(listing: Listing, labels: np.ndarray) -> np.ndarray:
    """Decode some training images, stratified by class, uint8 (n, S, S, 3), to measure their mean and deviation."""
    return listing[stratified(labels, NORMALIZATION_IMAGES, 0)]
