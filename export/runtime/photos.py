"""Check that an application turns a photo's bytes into the right pixels.

The bundle's JPEG files are decoded as an application would, and pixels and answers are compared with the stored ones.
Files are opened by `images`, as for training; `compress.data.decode` must resize alike.
Most wrong answers on devices come from the way from a photo's bytes to the network's pixels.
Standard library and numpy, Pillow only if it is installed; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

import io
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from export.runtime import Contract, ExportError, images, scale_and_shift
from export.runtime.photo_faults import VARIANTS, guess_normalisation, name_fault

FOLDER, ARRAYS = "photos", "photos.npz"
# Mean |difference| in levels of 255. Other decoders and antialiased filters stay below it; faults mostly begin at 9.
TOLERANCE = 6.0
COMMAND_SECONDS = 60
# Enough for p90, even if some runs are interrupted.
PHOTO_REPEATS = 72
# From a photo's path to its pixels, float32 (S, S, 3), 0 to 255, and the wrong normalisation that they seem to have.
Decode = Callable[[Path], Tuple[np.ndarray, Optional[str]]]


def preprocess(
    content: Any,
    resize: int,
    crop: int,
    *,
    squash: bool = False,
    upright: bool = True,
    scale: images.Range | None = None,
) -> np.ndarray:
    """Prepare a photo as an application must: RGB, upright by EXIF, short side to `resize`, centre crop.

    Args:
        content: a path or a binary stream.
        resize: the short side after resizing, in pixels; bilinear, antialiased.
        crop: side of the centre that is cut out, in pixels.
        squash: a fault to be recognised: resize both sides to `crop`.
        upright: False is a fault to be recognised: ignore the EXIF orientation.
        scale: range of values of an image of more than 8 bits; None: 16 bits.

    Returns:
        Pixels uint8 (crop, crop, 3).
    """
    from PIL import Image

    bilinear = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has it in the module
    with images.open_image(content) as opened:
        # A JPEG is decoded at a half, a quarter or an eighth of its size if twice the target size is left.
        image = images.to_upright_rgb(opened, (2 * resize, 2 * resize), scale=scale, upright=upright)
    if squash:
        return np.asarray(image.resize((crop, crop), bilinear))
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    square = np.asarray(image.resize((resize, resize), bilinear, box=(left, top, left + short, top + short)))
    offset = (resize - crop) // 2
    return square[offset : offset + crop, offset : offset + crop]


def pillow() -> str | None:
    """Return the version of Pillow, or None if it is not installed."""
    try:
        import PIL.Image
    except ImportError:
        return None
    return str(PIL.__version__)


def time_to_answer(
    folder: Path, manifest: Dict[str, Any], file: str, *, threads: int, repeats: int, provider: str | None = None
) -> Tuple[Dict[str, Any] | None, str]:
    """Time the way from the bytes of the bundle's photos to logits: decoding by Pillow, resizing, inference.

    Uses the user's own photos if the bundle has some, else the drawn ones.

    Args:
        folder: the bundle.
        manifest: its manifest.
        file: the model file to time.
        threads: intra-op threads.
        repeats: timed runs, at most PHOTO_REPEATS.
        provider: an execution provider; None: the CPU.

    Returns:
        The `photo_latency_ms` entry of a row (None if nothing can be timed), and a sentence part about what was timed.
    """
    from export.runtime import latency, latency_stats

    listed, version = manifest.get("photos"), pillow()
    if not listed:
        return None, "not timed, the bundle has no photos"
    if version is None:
        return None, "not timed, Pillow is not installed here"
    own = [entry["file"] for entry in listed["pictures"] if entry.get("own")]
    chosen = own or [entry["file"] for entry in listed["pictures"]]
    scale = images.value_range(manifest.get("preprocessing"))
    contents = [(folder / name).read_bytes() for name in chosen]
    timed = latency.photo_latency(
        {file: folder / file},
        contents,
        lambda content: preprocess(io.BytesIO(content), listed["resize"], listed["crop"], scale=scale),
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
    said = f"{summary['p50']:.3g} ms (median of {summary['runs']} runs), Pillow {version}, {len(chosen)} {kind}"
    return summary, said


def check(
    folder: Path,
    manifest: Dict[str, Any],
    models: Dict[str, Any],
    command: str | None = None,
    other: Tuple[str, Decode] | None = None,
) -> Tuple[Dict[str, Any], Dict[str, Dict[str, float]]]:
    """Decode every photo as the application would and compare pixels and answers.

    Args:
        folder: the bundle.
        manifest: its manifest.
        models: loaded models by file name.
        command: the application's decoder; it gets a photo's path as last argument and writes the pixels to stdout.
        other: another decoder: its name, and the function.

    Returns:
        The `photos` entry of the answer, whose `ok` is None if nothing could be decoded, and for each model how its
        answers agree.
    """
    listed = manifest.get("photos")
    if not listed:
        return _not_run("the bundle has none"), {}
    if command is None and other is None and pillow() is None:
        return _not_run("Pillow is not installed here and no --preprocess command was given"), {}
    with np.load(folder / ARRAYS, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    scale = images.value_range(manifest.get("preprocessing"))
    decoder, decode = other or _decoder(command, listed, next(iter(models.values())).contract, scale)
    rows, pixels = [], []
    for index, entry in enumerate(listed["pictures"]):
        row, got = _check_photo(folder, entry, arrays, index, decode)
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


def _not_run(why: str) -> Dict[str, Any]:
    sentence = f"photos: not run, {why}"
    return {"status": "not run", "ok": None, "decoder": None, "sentence": sentence, "pictures": []}


def _decoder(
    command: str | None, listed: Dict[str, Any], contract: Contract, scale: images.Range | None
) -> Tuple[str, Decode]:
    """Return the name and the function of the application's own decoder, or Pillow's."""
    if command is not None:
        return command, lambda path: _by_command(command, path, listed["crop"], contract)

    def decode(path: Path) -> Tuple[np.ndarray, Optional[str]]:
        return preprocess(path, listed["resize"], listed["crop"], scale=scale).astype(np.float32), None

    return f"Pillow {pillow()}", decode


def _check_photo(
    folder: Path, entry: Dict[str, Any], arrays: Dict[str, np.ndarray], index: int, decode: Decode
) -> Tuple[Dict[str, Any], np.ndarray | None]:
    """Return one photo's row, and its pixels uint8 (S, S, 3) if it could be decoded."""
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
    except (*images.BROKEN_FILE_ERRORS, ExportError) as error:
        row["note"] = str(error)
        return row, None
    difference = float(np.abs(got - expected).mean())
    row.update(mean_abs_diff=difference, ok=difference <= TOLERANCE)
    if not row["ok"]:
        variants = {name: arrays[name][index] for name in VARIANTS if name in arrays}
        row["looks_like"] = f"wrong normalisation ({note})" if note else name_fault(got, expected, variants)
    return row, np.clip(np.rint(got), 0, 255).astype(np.uint8)


def _by_command(command: str, photo: Path, side: int, contract: Contract) -> Tuple[np.ndarray, str | None]:
    """Run the application's decoder on a photo.

    The command writes uint8 (S, S, 3); for a file with layout float_nchw it may write normalised float32 (3, S, S).

    Returns:
        Pixels float32 (S, S, 3), 0 to 255, and for floats the normalisation that they seem to have.

    Raises:
        ExportError: the command fails, takes too long or writes another number of bytes.
    """
    try:
        done = subprocess.run([*shlex.split(command), str(photo)], capture_output=True, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"the command gave no pixels within {COMMAND_SECONDS} seconds") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ExportError(f"the command ended with {done.returncode}: {said[-1] if said else 'no message'}")
    if len(done.stdout) == side * side * 3:
        return np.frombuffer(done.stdout, np.uint8).reshape(side, side, 3).astype(np.float32), None
    if len(done.stdout) == 4 * side * side * 3 and contract.layout == "float_nchw":
        values = np.frombuffer(done.stdout, "<f4").reshape(3, side, side).transpose(1, 2, 0)
        scale, shift = scale_and_shift(contract)
        return ((values - shift) / scale).astype(np.float32), guess_normalisation(values)
    expected = f"{side} x {side} x 3 = {side * side * 3} are one RGB image"
    raise ExportError(f"the command wrote {len(done.stdout)} bytes; {expected}")


def _answers(model: Any, pixels: np.ndarray, expected: np.ndarray) -> Dict[str, float]:
    """Return how one model's answers on the decoded photos agree with the expected ones."""
    logits = model.run(np.ascontiguousarray(pixels))
    same = logits.argmax(1) == expected.argmax(1)
    return {
        "photos": len(pixels),
        "agreement": float(same.mean()),
        "max_abs_diff": float(np.abs(logits.astype(np.float64) - expected).max()),
    }


def _sentence(rows: List[Dict[str, Any]], decoder: str) -> str:
    """Return the result in one sentence."""
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
