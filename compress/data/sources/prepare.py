"""From the recipe's `data` section to a data set on disk, decoded once.

fashion is zero-padded from 28x28 grey. cifar10, cifar100 and npz are resized (bilinear, antialiased) if image_size
differs from the stored size. Photos of a folder are stored at image_size * 256 / 224, so that training crops have room;
evaluation takes the centre. imagenet and webdataset stay in their files: see `streamed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.core.records.base import File
from compress.core.records.training import Prepared, Unreadable
from compress.core.records.warnings import RunWarning
from compress.data import npy, quality_warnings
from compress.data.sources import cifar, fashion, folder, npz, streamed, unlabelled_folder, unreadable
from compress.data.sources.folder_split import split_folder
from compress.data.sources.inspection import folder_groups, locate_root, locate_unlabelled, store_size
from compress.data.sources.normalization import known_normalization, measure_normalization
from compress.data.sources.prepared_files import PreparedFiles
from compress.data.sources.unlabelled_folder import UNLABELLED, UnlabelledImages
from compress.data.splits import stratified
from compress.recipe import schema

TEST_STREAM = 2  # limit_test draws other numbers than limit_train of the same seed

Report = Callable[[str], None]


def prepare_data(config: schema.Data, work: Path, *, base: Path, report: Report) -> Prepared:
    """Decode the source into `work`: train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.

    Args:
        config: The recipe's `data` section, resolved.
        work: Folder to write into.
        base: The recipe's folder, which `data.root` is relative to.
        report: Receives one progress line at a time.

    Raises:
        MissingError: The data are absent.
        UsageError: The source is not laid out as it must be.
        StageError: Too many images are unreadable.
    """
    work.mkdir(parents=True, exist_ok=True)
    if config.source in streamed.SOURCES:
        return _prepare_streamed(config, work, base, report)
    written = _warn_of_empty_classes(
        _prepare_folder(config, work, base, report)
        if config.source == "folder"
        else _prepare_arrays(config, work, base, report)
    )
    known = known_normalization(config)
    if known is None:
        known = measure_normalization(np.load(written.train_images.path, mmap_mode="r", allow_pickle=False))
    return Prepared(
        source=config.source, image_size=config.side, normalization=known, augment=config.views, **written.record()
    )


def _warn_of_empty_classes(written: PreparedFiles) -> PreparedFiles:
    """Add a warning about classes that a part has no images of."""
    empty = quality_warnings.classes_without_images(
        written.classes, np.load(written.train_labels.path), np.load(written.test_labels.path)
    )
    arrays = [np.load(file.path, mmap_mode="r") for file in (written.train_images, written.test_images)]
    blank = quality_warnings.blank_images([array for array in arrays if array.ndim == 4])
    return replace(written, warnings=(*written.warnings, *empty, *blank))


def _prepare_streamed(config: schema.Data, work: Path, base: Path, report: Report) -> Prepared:
    """Prepare a set that is too large to decode at once."""
    root, size = locate_root(config, base), config.side
    written, listing = streamed.prepare_streamed(
        config, root, work, image_size=size, test_stream=TEST_STREAM, report=report
    )
    written = _warn_of_empty_classes(written)
    known = known_normalization(config)
    if known is None:
        known = measure_normalization(streamed.normalization_sample(listing, np.load(written.train_labels.path)))
    return Prepared(
        source=config.source, image_size=size, normalization=known, augment=config.views, root=root, **written.record()
    )


def _prepare_arrays(config: schema.Data, work: Path, base: Path, report: Report) -> PreparedFiles:
    """Prepare a source that fits into memory as arrays."""
    if config.source == "fashion":
        fashion.check_size(config.side)
        arrays, classes = fashion.load(), fashion.CLASSES
    elif config.source == "npz":
        arrays, classes = npz.load(locate_root(config, base))
    else:
        arrays, classes = cifar.load(config.source, locate_root(config, base), config.download)
    files: dict[str, File] = {}
    used: dict[str, np.ndarray | slice] = {"train": slice(None), "test": slice(None)}
    for part, limit, stream in (("train", config.limit_train, 0), ("test", config.limit_test, TEST_STREAM)):
        if limit is not None:
            used[part] = stratified(arrays[f"{part}_labels"], limit, config.split_seed, stream)
        images, labels = (arrays[f"{part}_{what}"][used[part]] for what in ("images", "labels"))
        size = config.side
        if part == "train" and config.source != "fashion" and images.shape[1:3] != (size, size):
            report(
                f"data: images of {images.shape[2]}x{images.shape[1]} are resized to {size}x{size}; "
                "set data.image_size to change that"
            )
        blocks = iter([fashion.pad_images(images, size)]) if config.source == "fashion" else _resized(images, size)
        files[f"{part}_images"] = npy.write_rows(work / f"{part}_images.npy", blocks, (size, size, 3), np.uint8)
        files[f"{part}_labels"] = npy.write_array(work / f"{part}_labels.npy", labels)
        report(f"data: {len(labels):,} {part} images of {len(classes)} classes, {size}x{size}")
    warnings = _duplicate_arrays(arrays, used) if config.source == "npz" else []
    return PreparedFiles(classes, **files, unreadable=(), paths=None, warnings=tuple(warnings), value_range=None)


def _resized(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield images uint8 (N, H, W, 3) as blocks (n, size, size, 3)."""
    if images.shape[1:3] == (size, size):
        yield images
        return
    # Pillow is imported only where an image is resized.
    from PIL import Image

    from compress.data.decode import resize_square

    for image in images:
        yield resize_square(Image.fromarray(image), size)[None]


def _duplicate_arrays(arrays: dict[str, np.ndarray], used: dict[str, np.ndarray | slice]) -> list[RunWarning]:
    """Build the warnings about images in two classes or in both parts of the user's arrays; they are kept.

    `used` are the rows of each part that are read. Published sets are not checked.
    """
    rows = {part: np.arange(len(arrays[f"{part}_labels"]))[index] for part, index in used.items()}
    hashes = {
        part: [hashlib.blake2b(arrays[f"{part}_images"][i].tobytes()).digest() for i in index]
        for part, index in rows.items()
    }
    every = (
        (f"{part}_images[{i}]", int(arrays[f"{part}_labels"][i]), digest)
        for part, index in rows.items()
        for i, digest in zip(index, hashes[part], strict=True)
    )
    found, in_test = quality_warnings.duplicates_across_classes(every, "pixels"), set(hashes["test"])
    both = sum(digest in in_test for digest in hashes["train"])
    if both:
        then = "kept in both, so test accuracy may be too high"
        found.append(quality_warnings.train_test_overlap(both, "pixels", then, affects_verdict=True))
    return found


def _prepare_folder(config: schema.Data, work: Path, base: Path, report: Report) -> PreparedFiles:
    """Prepare photos: decoded in threads and written row by row."""
    from compress.data.sources.value_range import find_range  # needs Pillow, which training on arrays does without

    root = locate_root(config, base)
    layout = folder.scan(root, config.labels)
    folder.require_most_files(root, layout, config.max_unreadable)
    grouping = folder_groups(config, root, layout)
    named = grouping.names if grouping else None
    split = split_folder(root, layout, config.test, config.split_seed, named)
    scale, ranged = find_range(root, split.train, config.bits)
    group_of = dict(zip((image.path for image in (*layout.train, *(layout.test or ()))), named or (), strict=False))
    further = _unlabelled(config, root, base, layout)
    files: dict[str, File] = {}
    broken: list[Unreadable] = []
    used: list[folder.ImageFile] = []
    for part, images, limit, stream in (
        ("train", split.train, config.limit_train, 0),
        ("test", split.test, config.limit_test, TEST_STREAM),
    ):
        if limit is not None:
            chosen = stratified(np.array([image.label for image in images]), limit, config.split_seed, stream)
            images = tuple(images[i] for i in chosen)
        labelled = images
        if part == "train":
            images += further.images
        used += images
        crop = config.side if part == "test" else store_size(config)
        read: list[folder.ImageFile] = []
        rows = _decoded(root, images, store_size(config), crop, part, read, broken, scale, report)
        files[f"{part}_images"] = npy.write_rows(work / f"{part}_images.npy", rows, (crop, crop, 3), np.uint8)
        labels = [image.label for image in read]
        files[f"{part}_labels"] = npy.write_array(work / f"{part}_labels.npy", np.array(labels, dtype=np.int64))
        names = [image.path for image in read]
        files[f"{part}_names"] = _write_names(work / f"{part}_names.npy", names)
        if named is not None:
            files[f"{part}_groups"] = _write_names(work / f"{part}_groups.npy", [group_of[name] for name in names])
        unreadable.require_readable_classes(root, labelled, labels, layout.classes, part)
        without = f", {labels.count(UNLABELLED):,} of them without a label" if UNLABELLED in labels else ""
        report(f"data: {len(labels):,} {part} images of {len(layout.classes)} classes{without}, {crop}x{crop}")
    warnings = (
        *split.duplicates,
        *folder.layout_warnings(layout),
        *further.warnings,
        *split.overlap,
        *split.few,
        *(grouping.warnings if grouping else ()),
        *ranged,
        *unreadable.judge(broken, used, layout.classes, config.max_unreadable),
    )
    return PreparedFiles(
        layout.classes, **files, unreadable=tuple(broken), paths=None, warnings=warnings, value_range=scale
    )


def _unlabelled(config: schema.Data, root: Path, base: Path, layout: folder.FolderLayout) -> UnlabelledImages:
    """List the images of `data.unlabelled`."""
    place = locate_unlabelled(config, base)
    if place is None:
        return UnlabelledImages((), ())
    return unlabelled_folder.find(root, place, (*layout.train, *(layout.test or ())))


def _write_names(path: Path, names: list[str]) -> File:
    return npy.write_array(path, np.array(names, dtype=np.str_))


def _decoded(
    root: Path,
    images: tuple[folder.ImageFile, ...],
    size: int,
    crop: int,
    part: str,
    read: list[folder.ImageFile],
    broken: list[Unreadable],
    scale: tuple[float, float] | None,
    report: Report,
) -> Iterator[np.ndarray]:
    """Yield the readable images as blocks (1, crop, crop, 3); append their files to `read`, the others to `broken`."""
    from compress.data.decode import decode_all

    offset = (size - crop) // 2
    for position, image in decode_all(root, [image.path for image in images], size, report, part, scale):
        if isinstance(image, Unreadable):
            broken.append(image)
        else:
            read.append(images[position])
            yield image[None, offset : offset + crop, offset : offset + crop]
