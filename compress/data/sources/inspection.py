"""What a recipe's data source holds, found without decoding an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.core.errors import CompressError, UsageError
from compress.core.records.base import File, sha256_of
from compress.core.records.warnings import RunWarning
from compress.data import groups, quality_warnings
from compress.data.sources import cifar, fashion, folder, folder_split, npz, streamed, unlabelled_folder, webdataset
from compress.data.sources.folder_parts import class_folders
from compress.data.splits import stratified
from compress.data.streaming.listing import size_with_margin
from compress.recipe import schema

NAMED_CLASSES = 20  # more are counted
VERSION = 1  # raise when the same source would be decoded to other pixels
FOLDER_VERSION = 3  # the same for photos in class sub-folders, whose split is decided here too


def store_size(config: schema.Data) -> int:
    """Return the side that training images are stored at; photos keep a margin around image_size for crops."""
    return size_with_margin(config.side) if config.photos else config.side


def locate_root(config: schema.Data, base: Path) -> Path:
    """Return the absolute `data.root`: relative to the recipe's folder `base`, `~` expands.

    Raises:
        UsageError: The source needs a root and the recipe names none.
    """
    if config.root is None:
        if config.source in ("cifar10", "cifar100"):
            return cifar.default_root()
        what = {"npz": ".npz file", "webdataset": "folder of shards"}.get(config.source, "folder of photos")
        raise UsageError(f"data.root: source {config.source} needs one; name the {what}")
    return (base / Path(config.root).expanduser()).absolute()


def locate_unlabelled(config: schema.Data, base: Path) -> Path | None:
    """Return the absolute `data.unlabelled`: relative to the recipe's folder `base`, `~` expands; None without it."""
    return None if config.unlabelled is None else (base / Path(config.unlabelled).expanduser()).absolute()


def fingerprint(config: schema.Data, base: Path) -> str:
    """Return the sha256 (hex) of what `prepare_data` would decode, without reading pixels.

    It covers the source's content and the keys that matter for it. fashion counts by its bytes, npz by its members'
    CRC-32, cifar by its name (torchvision checks MD5), folder and imagenet by each file's path, size and time,
    webdataset by each shard's.

    Raises:
        MissingError: The data are absent.
        UsageError: The root is not what the source needs.
    """
    content: object
    if config.source == "fashion":
        fashion.require()
        fashion.check_size(config.side)
        content = File.of(fashion.EMBEDDED)
    elif config.source == "npz":
        content = npz.content_stamp(locate_root(config, base))
    elif config.source == "folder":
        content = folder.content_stamp(root := locate_root(config, base), config.labels)
        if further := locate_unlabelled(config, base):
            content = [*content, "unlabelled", *unlabelled_folder.content_stamp(root, further)]
    elif config.source in streamed.SOURCES:
        content = streamed.content_stamp(config.source, locate_root(config, base))
    else:
        cifar.require(config.source, locate_root(config, base), config.download)
        content = config.source
    keys = config.model_dump(
        mode="json",
        include={"source", "normalize", "test", "max_unreadable", "limit_train", "limit_test", "split_seed"},
    )
    if config.bits is not None:
        keys["bits"] = config.bits
    if config.source != "folder":  # only a folder reads these
        del keys["test"], keys["max_unreadable"]
        if config.limit_train is None and config.limit_test is None:
            del keys["split_seed"]
    if config.group is not None:
        keys["group"] = config.group
    version = FOLDER_VERSION if config.source == "folder" else VERSION
    return sha256_of([version, keys, config.side, config.views, content])


def class_names(config: schema.Data, base: Path) -> tuple[str, ...] | None:
    """Return the source's classes.

    None if the source is absent or not laid out as it must be (`fingerprint` reports why), or if only reading all of
    it would tell.
    """
    if config.source == "fashion":
        return fashion.CLASSES
    try:
        root = locate_root(config, base)
        if config.source == "npz":
            return npz.read_labels(root)[1]
        if config.source == "folder":
            return folder.scan(root, config.labels).classes
        if config.source == "webdataset":
            return webdataset.listed_names(root) or None
        return (
            tuple(class_folders(root, "train/")) if config.source == "imagenet" and (root / "train").is_dir() else None
        )
    except CompressError:
        return None


def training_labels(config: schema.Data, base: Path) -> np.ndarray | None:
    """Return the labels of the training part, int64 (N,), with any limit applied; None if only decoding would tell.

    For a folder without a test part they are approximate: what is carved off follows from the files' content. Raises
    what `prepare_data` raises for labels and splits.
    """
    if config.source == "npz":
        labels = npz.read_labels(locate_root(config, base))[0]["train_labels"]
    elif config.source == "folder":
        labels = folder_split.training_labels(folder.scan(locate_root(config, base), config.labels), config.test)
    elif config.source == "fashion":
        labels = fashion.load()["train_labels"]
    else:
        return None
    if config.limit_train is not None:
        labels = labels[stratified(labels, config.limit_train, config.split_seed)]
    further = locate_unlabelled(config, base)
    unlabelled = np.full(unlabelled_folder.count(further), unlabelled_folder.UNLABELLED) if further else labels[:0]
    return np.concatenate([labels, unlabelled])


def class_counts(config: schema.Data, base: Path) -> str | None:
    """Return the classes with their numbers of files, `cat 20, dog 18`, by part; None if only decoding would tell.

    Of a folder without a test part it is the number before the split. Raises what `prepare_data` raises for labels.
    """
    if config.source == "folder":
        layout = folder.scan(locate_root(config, base), config.labels)
        classes = layout.classes
        held = [part for part in (layout.train, layout.test) if part is not None]
        parts = [np.array([image.label for image in part], dtype=np.int64) for part in held]
    elif config.source == "npz":
        labels, classes = npz.read_labels(locate_root(config, base))
        parts = [labels["train_labels"], labels["test_labels"]]
    else:
        return None
    counts = [np.bincount(labels, minlength=len(classes)) for labels in parts]
    named = [
        f"{name} {' + '.join(f'{count[label]:,}' for count in counts)}"
        for label, name in enumerate(classes[:NAMED_CLASSES])
    ]
    more = f", {len(classes) - len(named):,} more" if len(classes) > len(named) else ""
    what = "training + test images" if len(counts) > 1 else "images"
    return f"{len(classes):,} classes, {what}: {', '.join(named)}{more}"


def group_warnings(config: schema.Data, root: Path, layout: folder.FolderLayout) -> list[RunWarning]:
    """Return the warnings about `data.group`. Raises UsageError where the files do not have what it asks for."""
    found = folder_groups(config, root, layout)
    return list(found.warnings) if found else []


def folder_groups(config: schema.Data, root: Path, layout: folder.FolderLayout) -> groups.Grouping | None:
    """Return the group of each image of both parts, the training part's first; None where the recipe names none."""
    if config.group is None:
        return None
    train, test = ([image.path for image in images] for images in (layout.train, layout.test or ()))
    paths, columns = [*train, *test], None
    if layout.columns is not None:
        columns = {name: [values.get(path, "") for path in paths] for name, values in layout.columns.items()}
    found = groups.group_images(config.group, root, paths, columns)
    both = groups.straddling(found.names[: len(train)], found.names[len(train) :])
    return replace(found, warnings=(*found.warnings, *both))


def early_warnings(config: schema.Data, base: Path) -> list[RunWarning]:
    """Return those warnings of `prepare_data` that can be found without decoding images.

    Raises what `prepare_data` raises for files and labels.
    """
    if config.source == "folder":
        root = locate_root(config, base)
        layout = folder.scan(root, config.labels)
        folder.require_most_files(root, layout, config.max_unreadable)
        return [*folder.layout_warnings(layout), *group_warnings(config, root, layout)]
    if config.source == "npz":
        labels, classes = npz.read_labels(locate_root(config, base))
        return quality_warnings.classes_without_images(classes, labels["train_labels"], labels["test_labels"])
    return []
