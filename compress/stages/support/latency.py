"""The times that `validate` measures: inference, photo to answer, and a run without a pause."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

import export.runtime.latency
import export.runtime.latency_stats
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.data import centre_crop
from compress.data.decode import decode_image
from export.runtime import conditions
from export.runtime import images as image_files
from export.runtime.latency_stats import LatencyResult
from export.runtime.rounds import DRIFT_LIMIT

ATTEMPTS = 3  # a disturbed measurement is repeated at most twice
PHOTOS = 16
PHOTO_REPEATS = 72  # enough for p90 with some interrupted; a photo of 12 megapixels takes a tenth of a second
QUALITY = 90


def inference(
    files: Mapping[str, File], images: NDArray[np.uint8], *, threads: int, warmup: int, repeats: int, seed: int
) -> LatencyResult:
    """Time all files interleaved, and check that the bytes that ran are those that were hashed.

    Args:
        files: File name -> file.
        images: Inputs, uint8 (N, S, S, 3), taken in turn.
        threads: Of onnxruntime.
        warmup: Runs of each file before the timed ones.
        repeats: Timed runs of each file.
        seed: Of the order within rounds.

    Raises:
        StageError: A file changed while it was measured.
        ExportError: A file cannot be run.
    """
    timed = export.runtime.latency.latency(
        {name: file.path for name, file in files.items()},
        images,
        threads=threads,
        warmup=warmup,
        repeats=repeats,
        seed=seed,
        attempts=ATTEMPTS,
    )
    for name, digest in timed.sha256.items():
        if digest != files[name].sha256:
            raise StageError(
                f"validate: {name} changed while it was measured (sha256 {digest[:12]}, "
                f"it was {files[name].sha256[:12]}); run again"
            )
    return timed


def photos_to_answers(
    files: Mapping[str, File],
    photos: Sequence[File],
    images: NDArray[np.uint8],
    *,
    resize: int | None,
    threads: int,
    repeats: int,
    seed: int,
) -> tuple[LatencyResult, str]:
    """Time decoding, resizing and inference together, from the bytes of an image file to logits.

    Args:
        files: File name -> file.
        photos: Image files of the data set; none: JPEGs are made from `images`.
        images: Stored images, uint8 (N, S, S, 3).
        resize: The short side to which a photo is resized before its centre is cut out; None: S.
        threads: Of onnxruntime.
        repeats: Timed runs of each file.
        seed: Of the order within rounds.

    Returns:
        The times, and a description of the image files.
    """
    size = images.shape[1]
    contents = [Path(file.path).read_bytes() for file in photos] or [_jpeg(image) for image in images[:PHOTOS]]

    def decode(content: bytes) -> NDArray[np.uint8]:
        decoded = decode_image(content, (resize or size) if photos else size)
        cropped: NDArray[np.uint8] = centre_crop(decoded[None], size)[0]
        return cropped

    timed = export.runtime.latency.photo_latency(
        {name: file.path for name, file in files.items()},
        contents,
        decode,
        threads=threads,
        repeats=min(repeats, PHOTO_REPEATS),
        seed=seed,
        attempts=ATTEMPTS,
    )
    if photos:
        return timed, _described(contents)
    return timed, f"{len(contents)} JPEG files made from the stored images, {size} x {size} pixels, quality {QUALITY}"


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def _described(contents: list[bytes]) -> str:
    sizes = []
    for content in contents:
        with image_files.open_image(content) as image:
            sizes.append(image.size)
    small, large = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    pixels = f"{small[0]} x {small[1]}" + (f" to {large[0]} x {large[1]}" if large != small else "")
    return f"{len(contents)} photos of the data set, {pixels} pixels"


def entry(timed: LatencyResult, name: str, seed: int) -> dict[str, Any] | None:
    """Return a `latency_ms` or `photo_latency_ms` of report.json; None if the file was not timed."""
    if name not in timed.models:
        return None
    return {
        **timed.models[name].summary(),
        "p50_ci95": list(export.runtime.latency_stats.p50_interval(timed, name, seed=seed)[1:]),
    }


def photo_conditions(timed: LatencyResult, source: str) -> dict[str, Any]:
    """Return `latency.photo` of report.json."""
    known = timed.conditions()
    kept = ("contaminated", "other_cores", "disturbances", "interrupted", "unfit", "attempts")
    return {"pictures": source, "decoder": f"Pillow {PIL.__version__}", **{key: known[key] for key in kept}}


def warnings(timed: LatencyResult, sustained: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return what a reader of the times must know, one sentence each."""
    tries = f" in each of {timed.attempts} attempts" if timed.attempts > 1 else ""
    advice = "ratios come from interleaved rounds and suffer less than times"
    found = [f"{what}{tries}; {advice}" for what in timed.disturbances]
    if timed.unfit is not None:
        crowded = conditions.too_many_threads(next(iter(timed.models.values())).threads)
        again = "" if crowded else "; measure again on a quiet machine: --force validate"
        doubtful = "ratios are of CPU time" if timed.cpu_ratios else "ratios are doubtful, too"
        found.append(f"{timed.unfit}: times are too long, and {doubtful}{again}")
    elif timed.cpu_ratios is not None:
        found.append(f"{timed.cpu_ratios}: ratios are of CPU time, not of wall-clock time")
    if sustained is not None and sustained["ratio"] > 1 + DRIFT_LIMIT:
        found.append(str(sustained["sentence"]))
    return (*found, *timed.notes)
