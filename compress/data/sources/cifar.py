"""CIFAR-10 and CIFAR-100 through torchvision, which downloads them and checks their MD5 sums."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError


@dataclass(frozen=True)
class Cifar:
    """One of the two sets: its folder, the files that must be in it, and its published RGB mean and deviation."""

    title: str
    folder: str
    files: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


SETS = {
    "cifar10": Cifar(
        "CIFAR-10",
        "cifar-10-batches-py",
        ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Cifar(
        "CIFAR-100", "cifar-100-python", ("train", "test", "meta"), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
}


def default_root() -> Path:
    """Return where downloads go if the recipe names no root: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress" / "data"


def require(source: str, root: Path, download: bool) -> None:
    """Raise MissingError if the files are absent and may not be downloaded."""
    wanted = SETS[source]
    absent = [name for name in wanted.files if not (root / wanted.folder / name).is_file()]
    if absent and not download:
        raise MissingError(
            f"{wanted.title} is not in {root} (no {wanted.folder}/{absent[0]}): point data.root at the folder that "
            f"holds {wanted.folder}, or let torchvision download it (about 170 MB): "
            "compress run RECIPE --set data.download=true"
        )


def load(source: str, root: Path, download: bool) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Load a set, downloading it first if that is allowed.

    Args:
        source: "cifar10" or "cifar100".
        root: Folder that holds the set's folder.
        download: Whether to download missing files.

    Returns:
        train_images, test_images uint8 (N, 32, 32, 3) and train_labels, test_labels int64 (N,); and the class names.

    Raises:
        MissingError: The files are absent, damaged, or cannot be downloaded.
    """
    from torchvision import datasets  # not needed to train on other sources

    require(source, root, download)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[source]
    arrays: dict[str, np.ndarray] = {}
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        for part in ("train", "test"):
            loaded = kind(root, train=part == "train", download=download)
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = loaded.data, np.asarray(loaded.targets, dtype=np.int64)
    # torchvision raises RuntimeError for a wrong MD5 sum and URLError (an OSError) for a failed download.
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise MissingError(
            f"{SETS[source].title} in {root} cannot be read ({reason}): remove {root / SETS[source].folder} and "
            "download it again: compress run RECIPE --set data.download=true"
        ) from error
    return arrays, tuple(loaded.classes)
