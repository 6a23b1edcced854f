"""The second line of verification: from a photo's bytes to the network's pixels, where most wrong answers on devices come from.

Standard library and numpy, Pillow only where it is installed; runs on Python 3.8, because it travels inside the bundle.
"""

from __future__ import annotations

import io
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from export.runtime import Contract, ExportError, scale_and_shift

FOLDER, ARRAYS = "photos", "photos.npz"
TOLERANCE = 6.0  # mean |difference| in levels of 255: other decoders and antialiased filters stay below it, known faults mostly begin at 9
NAMED = 6.0  # a known fault is named when it explains the pixels to this many levels
ANOTHER_FILTER = 15.0  # the right picture, but rougher: up to here it may be resampled without antialiasing
VARIANTS = {
    "squash": "squash instead of crop",
    "exif": "EXIF rotation ignored",
    "uncropped": "the whole square instead of its centre",
}
POOLED = 64  # faults are compared on pictures of at most this side: they are coarse
LIMIT_SECONDS = 60
PHOTO_REPEATS = 72  # enough for p90, though some be interrupted
Decode = Callable[
    [Path], Tuple[np.ndarray, Optional[str]]
]  # a photo's path -> pixels float32 (S, S, 3), 0 to 255, and a doubtful normalisation
# (x - mean) / std of pixels in [0, 255], the same for each channel but for ImageNet's.
_HABITS = {
    "pixels divided by 255 only": ((0.0,) * 3, (255.0,) * 3),
    "pixels as they are, 0 to 255": ((0.0,) * 3, (1.0,) * 3),
    "pixels scaled to [-1, 1]": ((127.5,) * 3, (127.5,) * 3),
    "ImageNet's mean and deviation": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def preprocess(content: Any, resize: int, crop: int, *, squash: bool = False, upright: bool = True) -> np.ndarray:
    """What an application must do with a photo: RGB, upright by EXIF, short side to `resize` (antialiased bilinear), its centre.

    `content`: a path or a binary stream; returns uint8 (crop, crop, 3). `squash` and `upright=False` are faults, to be recognised.
    """
    from PIL import Image, ImageOps

    bilinear = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has it in the module
    with Image.open(content) as opened:
        opened.draft(
            None, (2 * resize, 2 * resize)
        )  # JPEG: decoded at a half, a quarter or an eighth where twice the size is left
        image = ImageOps.exif_transpose(opened) if upright else opened.copy()
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if squash:
        return np.asarray(image.resize((crop, crop), bilinear))
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    square = np.asarray(image.resize((resize, resize), bilinear, box=(left, top, left + short, top + short)))
    offset = (resize - crop) // 2
    return square[offset : offset + crop, offset : offset + crop]


def pillow() -> str | None:
    """The version of Pillow here; None where it is not installed."""
    try:
        import PIL.Image
    except ImportError:
        return None
    return str(PIL.__version__)


def time_to_answer(
    folder: Path, manifest: Dict[str, Any], file: str, *, threads: int, repeats: int, provider: str | None = None
) -> Tuple[Dict[str, Any] | None, str]:
    """Milliseconds from the bytes of the bundle's photos to logits: decoding by Pillow, resizing, inference; and what was timed, in words.

    The user's own photos where the bundle has some, else the drawn ones; `provider`: an execution provider. None where nothing can be timed.
    """
    from export.runtime import latency, latency_stats

    listed, version = manifest.get("photos"), pillow()
    if not listed:
        return None, "not timed, the bundle has no photos"
    if version is None:
        return None, "not timed, Pillow is not installed here"
    own = [entry["file"] for entry in listed["pictures"] if entry.get("own")]
    chosen = own or [entry["file"] for entry in listed["pictures"]]
    contents = [(folder / name).read_bytes() for name in chosen]
    timed = latency.photo_latency(
        {file: folder / file},
        contents,
        lambda content: preprocess(io.BytesIO(content), listed["resize"], listed["crop"]),
        threads=threads,
        repeats=min(repeats, PHOTO_REPEATS),
        attempts=2,
        provider=provider,
    )
    summary = {
        **timed.models[file].summary(),
        "p50_ci95": list(latency_stats.p50_interval(timed, file)[1:]),
        "contaminated": timed.contaminated,
    }
    kind = "of your own photos" if own else "drawn photos"
    return (
        summary,
        f"{summary['p50']:.3g} ms (median of {summary['runs']} runs), Pillow {version}, {len(chosen)} {kind}",
    )


def pool(images: np.ndarray) -> np.ndarray:
    """uint8 or float (..., S, S, 3) as float32 means of blocks, at most POOLED on a side."""
    side = images.shape[-2]
    block = -(-side // POOLED)
    kept = side // block
    start = (side - kept * block) // 2
    cut = images[..., start : start + kept * block, start : start + kept * block, :].astype(np.float32)
    return cut.reshape(*images.shape[:-3], kept, block, kept, block, 3).mean(axis=(-4, -2))


def check(
    folder: Path,
    manifest: Dict[str, Any],
    models: Dict[str, Any],
    command: str | None = None,
    other: Tuple[str, Decode] | None = None,
) -> Tuple[Dict[str, Any], Dict[str, Dict[str, float]]]:
    """Decode every photo as the application would and compare pixels and answers.

    `models`: loaded models by file name. `command`: gets a photo's path as last argument, writes its pixels to stdout. `other`: another decoder,
    its name and what it makes of a path. Returns the photos' line and, for each model, how its answers agree. `ok` is None where nothing could
    be decoded with.
    """
    listed = manifest.get("photos")
    if not listed:
        return {
            "status": "not run",
            "ok": None,
            "decoder": None,
            "sentence": "photos: not run, the bundle has none",
            "pictures": [],
        }, {}
    version = pillow()
    if command is None and other is None and version is None:
        why = "photos: not run, Pillow is not installed here and no --preprocess command was given"
        return {"status": "not run", "ok": None, "decoder": None, "sentence": why, "pictures": []}, {}
    with np.load(folder / ARRAYS, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    decoder, decode = other or _decoder(command, listed, next(iter(models.values())).contract)
    rows, pixels = [], []
    for index, entry in enumerate(listed["pictures"]):
        row, got = _one(folder, entry, arrays, index, decode)
        rows.append(row)
        pixels.append(arrays["pixels"][index] * 0 if got is None else got)
    answers = {name: _answers(model, np.stack(pixels), arrays["logits/" + name]) for name, model in models.items()}
    ok = all(row["ok"] for row in rows)
    return {
        "status": "ok" if ok else "wrong",
        "ok": ok,
        "decoder": decoder,
        "sentence": _sentence(rows, decoder),
        "pictures": rows,
    }, answers


def _decoder(command: str | None, listed: Dict[str, Any], contract: Contract) -> Tuple[str, Decode]:
    """The application's own decoder, or Pillow."""
    if command is not None:
        return command, lambda path: _by_command(command, path, listed["crop"], contract)
    return f"Pillow {pillow()}", lambda path: (
        preprocess(path, listed["resize"], listed["crop"]).astype(np.float32),
        None,
    )


def _one(
    folder: Path, entry: Dict[str, Any], arrays: Dict[str, np.ndarray], index: int, decode: Decode
) -> Tuple[Dict[str, Any], np.ndarray | None]:
    """One photo's row, and its pixels as uint8 (S, S, 3) where there are any."""
    row: Dict[str, Any] = {
        "file": entry["file"],
        "what": entry["what"],
        "mean_abs_diff": None,
        "ok": False,
        "looks_like": None,
        "note": None,
    }
    expected = arrays["pixels"][index]
    try:
        got, note = decode(folder / entry["file"])
    except (OSError, ValueError, SyntaxError, ExportError) as error:
        row["note"] = str(error)
        return row, None
    difference = float(np.abs(got - expected).mean())
    row.update(mean_abs_diff=difference, ok=difference <= TOLERANCE)
    if not row["ok"]:
        variants = {name: arrays[name][index] for name in VARIANTS if name in arrays}
        row["looks_like"] = f"wrong normalisation ({note})" if note else name_fault(got, expected, variants)
    return row, np.clip(np.rint(got), 0, 255).astype(np.uint8)


def _by_command(command: str, photo: Path, side: int, contract: Contract) -> Tuple[np.ndarray, str | None]:
    """Pixels float32 (S, S, 3), 0 to 255, that the application's own code makes of a photo, and the normalisation that it seems to use.

    It writes uint8 (S, S, 3), or for a file that takes normalised float32 (3, S, S) its floats. Raises ExportError.
    """
    try:
        done = subprocess.run([*shlex.split(command), str(photo)], capture_output=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"the command gave no pixels within {LIMIT_SECONDS} seconds") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ExportError(f"the command ended with {done.returncode}: {said[-1] if said else 'no message'}")
    if len(done.stdout) == side * side * 3:
        return np.frombuffer(done.stdout, np.uint8).reshape(side, side, 3).astype(np.float32), None
    if len(done.stdout) == 4 * side * side * 3 and contract.layout == "float_nchw":
        values = np.frombuffer(done.stdout, "<f4").reshape(3, side, side).transpose(1, 2, 0)
        scale, shift = scale_and_shift(contract)
        return ((values - shift) / scale).astype(np.float32), _habit(values)
    raise ExportError(
        f"the command wrote {len(done.stdout)} bytes; {side} x {side} x 3 = {side * side * 3} are one RGB picture"
    )


def _habit(values: np.ndarray) -> str | None:
    """The common normalisation whose range holds floats (S, S, 3) best, where their range says so plainly."""
    low, high = float(values.min()), float(values.max())
    found = []
    for name, (mean, std) in _HABITS.items():
        bottom, top = min(-mean[c] / std[c] for c in range(3)), max((255 - mean[c]) / std[c] for c in range(3))
        slack = 0.02 * (top - bottom)
        if low >= bottom - slack and high <= top + slack and high - low > 0.5 * (top - bottom):
            found.append((top - bottom, name))
    return min(found)[1] if found else None


def name_fault(got: np.ndarray, expected: np.ndarray, variants: Dict[str, np.ndarray]) -> str:
    """The known mistake that explains wrong pixels best: `got` and `expected` (S, S, 3), 0 to 255; `variants`: pooled, by fault."""
    if float(got.std()) < 2 or float(((got <= 4) | (got >= 251)).mean()) > 0.95 > float(
        ((expected <= 4) | (expected >= 251)).mean()
    ):
        return "wrong normalisation (the bytes are normalised or scaled values, not pixels)"
    seen, right = pool(got), pool(expected)
    geometry = {"": right, "mirrored": right[:, ::-1], "upside down": right[::-1, ::-1]}
    geometry.update({"rotated by 90 degrees": np.rot90(right, 1), "rotated by 270 degrees": np.rot90(right, 3)})
    geometry.update({VARIANTS[name]: picture.astype(np.float32) for name, picture in variants.items()})
    found: List[Tuple[float, str]] = []
    for where, picture in geometry.items():
        for colour, changed in (("", picture), ("BGR", picture[..., ::-1])):
            names = [name for name in (colour, where) if name]
            error = float(np.abs(seen - changed).mean())
            found.append(
                (error + 0.5 * len(names) - 0.1 * (where in VARIANTS.values()), "looks like " + " and ".join(names))
            )
            fitted, gain, offset = _affine(seen, changed)
            if max(abs(gain - 1)) > 0.08 or max(abs(offset)) > 8:
                also = " and ".join([*names, "wrong normalisation"])
                found.append(
                    (
                        fitted + 2.0 + 0.5 * len(names),
                        f"looks like {also} (values are {gain.mean():.2f} x {offset.mean():+.0f} of the right ones)",
                    )
                )
    error, name = min(found)
    if error <= NAMED and name != "looks like ":
        return name
    if found[0][0] <= ANOTHER_FILTER:  # the right picture comes first
        return "looks like a resize without antialiasing, or another filter"
    return f"no known fault explains it (nearest: {name[11:] or 'the right pixels'})"


def _affine(seen: np.ndarray, right: np.ndarray) -> Tuple[float, np.ndarray, np.ndarray]:
    """Best gain and offset (3,) a channel so that seen = gain x right + offset; the mean |rest|, scaled back to the right contrast."""
    x, y = right.reshape(-1, 3).astype(np.float64), seen.reshape(-1, 3).astype(np.float64)
    spread = x - x.mean(axis=0)
    gain = (spread * (y - y.mean(axis=0))).sum(axis=0) / np.maximum((spread**2).sum(axis=0), 1e-9)
    offset = y.mean(axis=0) - gain * x.mean(axis=0)
    rest = np.abs(y - gain * x - offset).mean() / max(float(np.abs(gain).mean()), 0.05)
    return float(rest), gain, offset


def _answers(model: Any, pixels: np.ndarray, expected: np.ndarray) -> Dict[str, float]:
    """How one model's answers on the decoded photos agree with the expected ones."""
    logits = model.run(np.ascontiguousarray(pixels))
    same = logits.argmax(1) == expected.argmax(1)
    return {
        "photos": len(pixels),
        "agreement": float(same.mean()),
        "max_abs_diff": float(np.abs(logits.astype(np.float64) - expected).max()),
    }


def _sentence(rows: List[Dict[str, Any]], decoder: str) -> str:
    """The photos' line in words."""
    wrong = [row for row in rows if not row["ok"]]
    if not wrong:
        worst = max(row["mean_abs_diff"] for row in rows)
        return f"photos: all {len(rows)} decoded by {decoder} as expected (largest mean difference {worst:.2f} of 255)"
    named = Counter(row["looks_like"] or row["note"] for row in wrong)
    causes = "; ".join(
        f"{name} ({', '.join(row['what'] for row in wrong if (row['looks_like'] or row['note']) == name)})"
        for name, _ in named.most_common()
    )
    return f"photos: {len(wrong)} of {len(rows)} decoded by {decoder} are wrong: {causes}"
