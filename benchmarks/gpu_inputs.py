"""The images and the teacher that on_gpu.py needs: found, read from the sheets of a test folder, or made small."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import train_speed
from gpu_steps import Given

from compress.core.errors import MissingError
from compress.data.sources import fashion
from compress.data.splits import stratified
from compress.pipeline import run as pipeline


def found(given: Given) -> Given:
    """Check that everything is there; read CIFAR-100's sheets and the teacher where the environment names them."""
    pipeline.resolve_device(given.device)
    data, teacher, root = given.data, given.teacher, os.environ.get("COMPRESS_TEST_DATA")
    given.artifacts.mkdir(parents=True, exist_ok=True)
    if root and data is None:
        data = given.artifacts / "cifar100.npz"
        if not data.is_file():
            _from_sheets(Path(root) / "cifar100", data)
    if root and teacher is None:
        teacher = given.artifacts / "resnet56.safetensors"
        source = Path(root) / "cifar100" / "teachers" / teacher.name
        if not teacher.is_file() and source.is_file():
            shutil.copyfile(source, teacher)
    if data is None or not data.exists():
        raise MissingError(
            f"{data or 'CIFAR-100'} is not there; name an npz file or the folder of cifar-100-python: --data FILE"
        )
    if teacher is None or not teacher.is_file():
        raise MissingError(f"{teacher or 'a trained resnet56'} is not there; name its checkpoint: --teacher FILE")
    return Given(data, teacher, given.device, given.artifacts, rehearse=False)


def _from_sheets(folder: Path, path: Path) -> None:
    """Write the npz file from sheets of 5,000 images. Raises MissingError where one is not there."""
    sheets = {part: sorted(folder.glob(f"{part}-*.webp")) for part in ("train", "test")}
    if not (folder / "labels.npz").is_file() or (len(sheets["train"]), len(sheets["test"])) != (10, 2):
        raise MissingError(
            f"{folder} does not hold labels.npz and all 12 sheets of CIFAR-100; name a file: --data FILE"
        )
    with np.load(folder / "labels.npz") as labels:
        arrays = {key: labels[key].astype(np.int64) for key in ("train_labels", "test_labels")}
        arrays["class_names"] = labels["class_names"]
    for part, paths in sheets.items():
        arrays[f"{part}_images"] = np.concatenate([train_speed.sheet(one) for one in paths])
    np.savez(path, **arrays)


def rehearsal(artifacts: Path) -> Given:
    """Write few embedded images, 16x16, in the place of CIFAR-100."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array([f"class {number}" for number in range(10)])}
    embedded = fashion.load()
    for part, count in (("train", 100), ("test", 50)):
        index = stratified(embedded[f"{part}_labels"], count, 0)
        grey = embedded[f"{part}_images"][index, ::2, ::2, None]
        arrays[f"{part}_images"] = np.pad(grey, ((0, 0), (1, 1), (1, 1), (0, 0))).repeat(3, axis=3)
        arrays[f"{part}_labels"] = embedded[f"{part}_labels"][index].astype(np.int64)
    artifacts.mkdir(parents=True, exist_ok=True)
    path = artifacts / "rehearsal.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Given(path, None, "cpu", artifacts, rehearse=True)
