"""What `validate` says about time: inference, photo to answer, and a run without a pause."""

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
from export.runtime.latency_stats import LatencyResult
from export.runtime.rounds import DRIFT_LIMIT

ATTEMPTS = 3  # a disturbed measurement is repeated at most twice
PHOTOS = 16
PHOTO_REPEATS = 72  # enough for p90, though some be interrupted; a photo of 12 megapixels takes a tenth of a second
QUALITY = 90


def inference(
    files: Mapping[str, File], images: NDArray[np.uint8], *, threads: int, warmup: int, repeats: int, seed: int
) -> LatencyResult:
    """All models interleaved; the bytes that ran are those that were hashed when they were made. Raises StageError, ExportError."""
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
                f"validate: {name} changed while it was measured (sha256 {digest[:12]}, it was {files[name].sha256[:12]}); run again"
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
    """Time from the bytes of a picture file to logits, and what the files were: the data set's photos, or JPEGs of the stored pictures.

    `resize`: the short side of which the centre is cut out; None: the pictures' own.
    """
    size = images.shape[1]
    contents = [Path(file.path).read_bytes() for file in photos] or [_jpeg(image) for image in images[:PHOTOS]]

    def decode(content: bytes) -> NDArray[np.uint8]:
        return centre_crop(decode_image(content, (resize or size) if photos else size)[None], size)[0]

    timed = export.runtime.latency.photo_latency(
        {name: file.path for name, file in files.items()},
        contents,
        decode,
        threads=threads,
        repeats=min(repeats, PHOTO_REPEATS),
        seed=seed,
        attempts=ATTEMPTS,
    )
    return (
        timed,
        _described(contents)
        if photos
        else f"{len(contents)} JPEG files made from the stored pictures, {size} x {size} pixels, quality {QUALITY}",
    )


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def _described(contents: list[bytes]) -> str:
    sizes = []
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            sizes.append(picture.size)
    small, large = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    pixels = f"{small[0]} x {small[1]}" + (f" to {large[0]} x {large[1]}" if large != small else "")
    return f"{len(contents)} photos of the data set, {pixels} pixels"


def entry(timed: LatencyResult, name: str, seed: int) -> dict[str, Any] | None:
    """A `latency_ms` or `photo_latency_ms` of report.json; None where the file was not timed."""
    if name not in timed.models:
        return None
    return {
        **timed.models[name].summary(),
        "p50_ci95": list(export.runtime.latency_stats.p50_interval(timed, name, seed=seed)[1:]),
    }


def photo_conditions(timed: LatencyResult, source: str) -> dict[str, Any]:
    """`latency.photo` of report.json."""
    known = timed.conditions()
    kept = ("contaminated", "other_cores", "disturbances", "interrupted", "unfit", "attempts")
    return {"pictures": source, "decoder": f"Pillow {PIL.__version__}", **{key: known[key] for key in kept}}


def warnings(timed: LatencyResult, sustained: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What a reader of the times must know."""
    tries = f" in each of {timed.attempts} attempts" if timed.attempts > 1 else ""
    said = [
        f"{what}{tries}; ratios are from interleaved rounds and suffer less than times" for what in timed.disturbances
    ]
    if timed.unfit is not None:
        crowded = conditions.too_many_threads(next(iter(timed.models.values())).threads)
        again = "" if crowded else "; measure again on a quiet machine: --force validate"
        said.append(f"{timed.unfit}: times are too long, and ratios are doubtful, too{again}")
    if sustained is not None and sustained["ratio"] > 1 + DRIFT_LIMIT:
        said.append(str(sustained["sentence"]))
    return (*said, *timed.notes)
