"""From the recipe's `data` section to a data set on disk, decoded once: `fingerprint` says which set it is, `prepare` makes it.

fashion: 28x28 grey, zero-padded; cifar10, cifar100, npz: resized (bilinear, antialiased) where image_size differs from the stored size;
folder: stored at image_size * 256 / 224, so that training crops have room, evaluation takes the centre; imagenet, webdataset: `streamed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.core.errors import CompressError, StageError, UsageError
from compress.core.records.base import File, sha256_of
from compress.core.records.training import Normalization, Prepared, Unreadable
from compress.core.records.warnings import RunWarning
from compress.data import npy, quality_warnings
from compress.data.sources import cifar, fashion, folder, npz, streamed, webdataset
from compress.data.sources.prepared_files import PreparedFiles
from compress.data.splits import stratified
from compress.data.streaming.listing import size_with_margin
from compress.recipe import schema

VERSION = 1  # raise when the same source would be decoded to other pixels
NORMALIZATION_PICTURES = 20_000  # enough for four digits of a channel mean
TEST_STREAM = 2  # limit_test draws other numbers than limit_train of the same seed

Report = Callable[[str], None]


def store_size(config: schema.Data) -> int:
    """Side that a training picture is resized to before evaluation takes the centre: photos keep a margin around image_size."""
    return size_with_margin(config.side) if config.photos else config.side


def locate_root(config: schema.Data, base: Path) -> Path:
    """The absolute `data.root`: relative to the recipe's folder, `~` expands. Raises UsageError where the source needs one and has none."""
    if config.root is None:
        if config.source in ("cifar10", "cifar100"):
            return cifar.default_root()
        what = {"npz": ".npz file", "webdataset": "folder of shards"}.get(config.source, "folder of photos")
        raise UsageError(f"data.root: source {config.source} needs one; name the {what}")
    return (base / Path(config.root).expanduser()).absolute()


def fingerprint(config: schema.Data, root_base: Path) -> str:
    """sha256 (hex) of what `prepare` would decode: the source's content and the keys that matter for it. Cheap: reads no pixels.

    fashion counts by its bytes, npz by its members' CRC-32, cifar by its name (torchvision checks md5), folder by each file's path, size
    and time, imagenet likewise, webdataset by each shard's.
    Raises MissingError where the data are absent, UsageError where root is not what the source needs.
    """
    content: object
    if config.source == "fashion":
        fashion.require()
        fashion.check_size(config.side)
        content = File.of(fashion.EMBEDDED)
    elif config.source == "npz":
        content = npz.content_stamp(locate_root(config, root_base))
    elif config.source == "folder":
        content = folder.content_stamp(locate_root(config, root_base))
    elif config.source in streamed.SOURCES:
        content = streamed.content_stamp(config.source, locate_root(config, root_base))
    else:
        cifar.require(config.source, locate_root(config, root_base), config.download)
        content = config.source
    keys = config.model_dump(
        mode="json",
        include={"source", "normalize", "test", "max_unreadable", "limit_train", "limit_test", "split_seed"},
    )
    if config.source != "folder":  # only there are they read
        del keys["test"], keys["max_unreadable"]
        if config.limit_train is None and config.limit_test is None:
            del keys["split_seed"]
    return sha256_of([VERSION, keys, config.side, config.views, content])


def prepare_data(config: schema.Data, work: Path, *, base: Path, report: Report) -> Prepared:
    """Decode the source into `work`: train_images.npy, train_labels.npy, test_images.npy, test_labels.npy.

    `base` is the recipe's folder; `report` gets one line of progress at a time; what is probably wrong is in the result's `run_warnings`.
    Raises MissingError for absent data, UsageError for a source that is not laid out as it must be, StageError for too many unreadable
    pictures.
    """
    work.mkdir(parents=True, exist_ok=True)
    if config.source in streamed.SOURCES:
        return _prepare_streamed(config, work, base, report)
    written = _judged(
        _prepare_folder(config, work, base, report)
        if config.source == "folder"
        else _prepare_arrays(config, work, base, report)
    )
    return Prepared(
        source=config.source,
        image_size=config.side,
        normalization=_normalization(config, written.train_images.path),
        augment=config.views,
        **written.record(),
    )


def _judged(written: PreparedFiles) -> PreparedFiles:
    """Add a warning about classes that have no images in a part."""
    absent = quality_warnings.classes_without_images(
        written.classes, np.load(written.train_labels.path), np.load(written.test_labels.path)
    )
    return replace(written, warnings=(*written.warnings, *absent))


def _prepare_streamed(config: schema.Data, work: Path, base: Path, report: Report) -> Prepared:
    """Sets that are too large to decode at once."""
    root, size = locate_root(config, base), config.side
    written, listing = streamed.prepare_streamed(
        config, root, work, image_size=size, test_stream=TEST_STREAM, report=report
    )
    written = _judged(written)
    known = (
        Normalization(config.normalize.mean, config.normalize.std)
        if config.normalize
        else streamed.published_normalization(config.source)
    )
    if known is None:
        known = measure_normalization(streamed.normalization_sample(listing, np.load(written.train_labels.path)))
    return Prepared(
        source=config.source, image_size=size, normalization=known, augment=config.views, root=root, **written.record()
    )


def _prepare_arrays(config: schema.Data, work: Path, base: Path, report: Report) -> PreparedFiles:
    """The sources that fit into memory as arrays."""
    if config.source == "fashion":
        fashion.check_size(config.side)
        arrays, classes = fashion.load(), fashion.CLASSES
    elif config.source == "npz":
        arrays, classes = npz.load(locate_root(config, base))
    else:
        arrays, classes = cifar.load(config.source, locate_root(config, base), config.download)
    files: dict[str, File] = {}
    taken: dict[str, np.ndarray | slice] = {"train": slice(None), "test": slice(None)}
    for part, limit, stream in (("train", config.limit_train, 0), ("test", config.limit_test, TEST_STREAM)):
        if limit is not None:
            taken[part] = stratified(arrays[f"{part}_labels"], limit, config.split_seed, stream)
        images, labels = (arrays[f"{part}_{what}"][taken[part]] for what in ("images", "labels"))
        size = config.side
        if part == "train" and config.source != "fashion" and images.shape[1:3] != (size, size):
            report(
                f"data: pictures of {images.shape[2]}x{images.shape[1]} are resized to {size}x{size}; data.image_size says otherwise"
            )
        blocks = iter([fashion.pad_images(images, size)]) if config.source == "fashion" else _resized(images, size)
        files[f"{part}_images"] = npy.write_rows(work / f"{part}_images.npy", blocks, (size, size, 3), np.uint8)
        files[f"{part}_labels"] = npy.write_array(work / f"{part}_labels.npy", labels)
        report(f"data: {len(labels):,} {part} pictures of {len(classes)} classes, {size}x{size}")
    return PreparedFiles(
        classes,
        **files,
        unreadable=(),
        warnings=tuple(_alike(arrays, taken) if config.source == "npz" else ()),
    )


def _resized(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Pictures uint8 (N, H, W, 3) as blocks (n, size, size, 3)."""
    if images.shape[1:3] == (size, size):
        yield images
        return
    from PIL import Image

    from compress.data.decode import resize_square

    for picture in images:
        yield resize_square(Image.fromarray(picture), size)[None]


def _alike(arrays: dict[str, np.ndarray], taken: dict[str, np.ndarray | slice]) -> list[RunWarning]:
    """Return warnings about images that are in two classes or in both parts; the user's arrays keep both.

    `taken`: the rows of each part that are used.
    """
    rows = {part: np.arange(len(arrays[f"{part}_labels"]))[index] for part, index in taken.items()}
    hashes = {
        part: [hashlib.blake2b(arrays[f"{part}_images"][i].tobytes()).digest() for i in index]
        for part, index in rows.items()
    }
    every = (
        (f"{part}_images[{i}]", int(arrays[f"{part}_labels"][i]), digest)
        for part, index in rows.items()
        for i, digest in zip(index, hashes[part], strict=True)
    )
    found, seen = quality_warnings.duplicates_across_classes(every, "pixels"), set(hashes["test"])
    both = sum(digest in seen for digest in hashes["train"])
    if both:
        then = "kept in both, so test accuracy may be flattered"
        found.append(quality_warnings.train_test_overlap(both, "pixels", then, affects_verdict=True))
    return found


def _prepare_folder(config: schema.Data, work: Path, base: Path, report: Report) -> PreparedFiles:
    """Photos: decoded in threads, row by row into the files."""
    root = locate_root(config, base)
    layout = folder.scan(root)
    warnings = folder.layout_warnings(layout)
    train, test, twins, leaked = folder.split_parts(root, layout, config.test, config.split_seed)
    chosen = {"train": train, "test": test}
    files: dict[str, File] = {}
    bad: list[Unreadable] = []
    total = 0
    for part, limit, stream in (("train", config.limit_train, 0), ("test", config.limit_test, TEST_STREAM)):
        pictures = chosen[part]
        if limit is not None:
            pictures = [
                pictures[i]
                for i in stratified(np.array([picture.label for picture in pictures]), limit, config.split_seed, stream)
            ]
        total += len(pictures)
        crop = config.side if part == "test" else store_size(config)
        labels: list[int] = []
        rows = _decoded(root, pictures, store_size(config), crop, part, labels, bad, report)
        files[f"{part}_images"] = npy.write_rows(work / f"{part}_images.npy", rows, (crop, crop, 3), np.uint8)
        files[f"{part}_labels"] = npy.write_array(work / f"{part}_labels.npy", np.array(labels, dtype=np.int64))
        _check_left(root, pictures, labels, layout.classes, part)
        report(f"data: {len(labels):,} {part} pictures of {len(layout.classes)} classes, {crop}x{crop}")
    warnings += [*leaked, *_judge_unreadable(bad, total, config.max_unreadable)]
    return PreparedFiles(layout.classes, **files, unreadable=tuple(bad), warnings=(*twins, *warnings))


def _decoded(
    root: Path,
    pictures: list[folder.ImageFile],
    size: int,
    crop: int,
    part: str,
    labels: list[int],
    bad: list[Unreadable],
    report: Report,
) -> Iterator[np.ndarray]:
    """The readable pictures as blocks (1, crop, crop, 3); appends their labels and the unreadable ones to the two lists."""
    from compress.data.decode import decode_all

    offset = (size - crop) // 2
    for position, picture in decode_all(root, [picture.path for picture in pictures], size, report, part):
        if isinstance(picture, Unreadable):
            bad.append(picture)
        else:
            labels.append(pictures[position].label)
            yield picture[None, offset : offset + crop, offset : offset + crop]


def _few(bad: list[Unreadable]) -> str:
    return "; ".join(f"{picture.path}: {picture.reason}" for picture in bad[:3]) + ("; ..." if len(bad) > 3 else "")


def _judge_unreadable(bad: list[Unreadable], total: int, limit: float) -> list[RunWarning]:
    """Return a warning about unreadable images, if any. Raises StageError above the tolerated share."""
    if len(bad) > limit * total:
        raise StageError(
            f"data: {len(bad)} of {total} pictures cannot be read, more than data.max_unreadable {limit} allows ({_few(bad)}); "
            f"repair or remove them, or raise the limit"
        )
    skipped = f"{len(bad)} of {total} pictures cannot be read and are skipped ({_few(bad)})"
    return [RunWarning(skipped)] if bad else []


def _check_left(
    root: Path, pictures: list[folder.ImageFile], labels: list[int], classes: tuple[str, ...], part: str
) -> None:
    """Raise StageError where no picture of a class could be read."""
    gone = {picture.label for picture in pictures} - set(labels)
    if gone:
        raise StageError(
            f"{root}: none of the {part} pictures of class {classes[min(gone)]!r} can be read; repair them, or remove the class"
        )


def _normalization(config: schema.Data, train_images: Path) -> Normalization:
    """The recipe's constants, else the published ones of a named set, else those of the training pictures."""
    if config.normalize is not None:
        return Normalization(config.normalize.mean, config.normalize.std)
    if config.source == "fashion":
        return Normalization((fashion.MEAN,) * 3, (fashion.STD,) * 3)
    if config.source in cifar.SETS:
        return Normalization(cifar.SETS[config.source].mean, cifar.SETS[config.source].std)
    return measure_normalization(np.load(train_images, mmap_mode="r", allow_pickle=False))


def measure_normalization(images: np.ndarray) -> Normalization:
    """Channel mean and deviation of pictures uint8 (N, S, S, 3), exact integer sums over at most 20,000 of them, rounded to 4 digits."""
    step = max(1, -(-len(images) // NORMALIZATION_PICTURES))
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 256 * step):
        block = np.asarray(images[start : start + 256 * step : step])
        counts += np.stack([np.bincount(block[..., channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    red, green, blue = (round(float(value), 4) for value in mean)
    spread = [max(round(float(value), 4), 1 / 255) for value in std]  # pictures of one colour would divide by zero
    return Normalization((red, green, blue), (spread[0], spread[1], spread[2]))


def class_names(config: schema.Data, base: Path) -> tuple[str, ...] | None:
    """The source's classes; None where it is not there, is not laid out as it must be, or only reading all of it would tell."""
    if config.source == "fashion":
        return fashion.CLASSES
    try:
        root = locate_root(config, base)
        if config.source == "npz":
            return npz.read_labels(root)[1]
        if config.source == "folder":
            return folder.scan(root).classes
        if config.source == "webdataset":
            return webdataset.named(root) or None
        return (
            tuple(folder.subfolders(root / "train"))
            if config.source == "imagenet" and (root / "train").is_dir()
            else None
        )
    except CompressError:  # `fingerprint` says what is wrong
        return None


def training_labels(config: schema.Data, base: Path) -> np.ndarray | None:
    """Labels int64 (N,) of the training part, any limit applied; None where only decoding would tell.

    Of a folder without a test part they are about those that will be left: what is carved off follows the files' content. Raises what `prepare`
    raises for labels and splits.
    """
    if config.source == "npz":
        labels = npz.read_labels(locate_root(config, base))[0]["train_labels"]
    elif config.source == "folder":
        labels = folder.training_labels(folder.scan(locate_root(config, base)), config.test)
    elif config.source == "fashion":
        labels = fashion.load()["train_labels"]
    else:
        return None
    return labels if config.limit_train is None else labels[stratified(labels, config.limit_train, config.split_seed)]


def early_warnings(config: schema.Data, base: Path) -> list[RunWarning]:
    """Return the warnings of `prepare_data` that need no image to be decoded.

    Raises what `prepare_data` raises for files and labels.
    """
    if config.source == "folder":
        return folder.layout_warnings(folder.scan(locate_root(config, base)))
    if config.source == "npz":
        labels, classes = npz.read_labels(locate_root(config, base))
        return quality_warnings.classes_without_images(classes, labels["train_labels"], labels["test_labels"])
    return []
