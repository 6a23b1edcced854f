"""How many planted near-duplicates are found, and how many images are called near-duplicates wrongly.

    python benchmarks/near_duplicates.py --cifar FOLDER --photos PHOTOS

Runs on a CPU. Copies of training images are planted among the queries: resized, recompressed, cropped by 5 % of the
side at a random place, by 5 % at every edge, and all of it at once. Recall is the share of the copies that are found,
precision the share of the found copies whose partner is the original. CIFAR-100 has real near-duplicates across its
parts, so its alarms are not all wrong: mirrored training images have no copies in the test part but look as much alike,
and alarms against them are counted as false, but for images that have a near-duplicate without the mirror, too.
`--scale` times a set of that many random images.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import result_file
from numpy.typing import NDArray
from PIL import Image
from train_speed import sheet

from compress.data import near_duplicates, perceptual_hash
from compress.data.decode import decode_image
from compress.data.sources import fashion

PHOTO_SIDE = 256
Images = NDArray[np.uint8]


def _cropped(image: Image.Image, share: float, rng: np.random.Generator, everywhere: bool = False) -> Image.Image:
    cut = max(1, round(share * image.width))
    left, top = (cut, cut) if everywhere else rng.integers(0, cut + 1, 2)
    side = image.width - (2 * cut if everywhere else cut)
    return image.crop((left, top, left + side, top + side))


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def _resized(image: Image.Image, share: float) -> Image.Image:
    side = round(image.width * share)
    return image.resize((side, side), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "resized to 60 %": lambda image, rng: _resized(image, 0.6),
    "recompressed, JPEG quality 50": lambda image, rng: _recompressed(image, 50),
    "cropped by 5 %": lambda image, rng: _cropped(image, 0.05, rng),
    "cropped by 5 % at every edge": lambda image, rng: _cropped(image, 0.05, rng, everywhere=True),
    "all": lambda image, rng: _recompressed(_resized(_cropped(image, 0.05, rng), 0.75), 60),
}


def planted(images: Images, change: str, rng: np.random.Generator) -> Images:
    """Return a changed copy of each image uint8 (N, S, S, 3), brought back to its size."""
    size = images.shape[1:3]
    changed = (CHANGES[change](Image.fromarray(image), rng) for image in images)
    return np.stack([np.asarray(one.resize(size, Image.Resampling.BILINEAR)) for one in changed])


def measure(train: Images, test: Images, copies: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return alarms, false alarms, and precision and recall for each kind of copy."""
    references, queries = perceptual_hash.thumbnails(train), perceptual_hash.thumbnails(test)
    begin = time.perf_counter()
    alarms = near_duplicates.find(queries, references)
    seconds = time.perf_counter() - begin
    mirrored = perceptual_hash.thumbnails(np.ascontiguousarray(train[:, :, ::-1]))
    found = near_duplicates.find(queries, mirrored)
    # An object that looks the same in a mirror and has a real near-duplicate finds it there, too.
    false = np.setdiff1d(found.queries, alarms.queries)
    limit = near_duplicates.limit_of(queries, references)
    chosen = rng.choice(len(train), min(copies, len(train)), replace=False)
    kinds = {}
    for change in CHANGES:
        found = near_duplicates.find(perceptual_hash.thumbnails(planted(train[chosen], change, rng)), references, limit)
        right = int((found.references == chosen[found.queries]).sum())
        kinds[change] = {"recall": right / len(chosen), "precision": right / max(1, len(found)), "n": len(chosen)}
    return {
        "training_images": len(train),
        "test_images": len(test),
        "seconds": round(seconds, 1),
        "limit": limit,
        "alarms": len(alarms),
        "false_alarms": len(false),
        "false_alarms_per_1000": 1000 * len(false) / len(test),
        "planted": kinds,
    }


def scaled(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Time a set of random structured images, a fifth of them queries and a hundredth planted copies."""
    coarse = rng.integers(0, 256, (count, 6, 6), dtype=np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in coarse])
    first = count * 4 // 5
    grey[first : first + count // 100] = np.clip(grey[: count // 100].astype(int) + rng.integers(-4, 5), 0, 255)
    sample = perceptual_hash.thumbnails(np.repeat(grey[..., None], 3, axis=3))
    begin = time.perf_counter()
    found = near_duplicates.find(sample.take(np.arange(first, count)), sample.take(np.arange(first)))
    seconds = time.perf_counter() - begin
    return {"images": count, "planted": count // 100, "found": len(found), "seconds": round(seconds, 1)}


@click.command()
@click.option("--cifar", type=click.Path(exists=True, path_type=Path), help="a folder with the sheets of CIFAR-100")
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="a folder of photos, at any depth")
@click.option("--copies", default=500, show_default=True, type=click.IntRange(1), help="planted copies of each kind")
@click.option("--scale", default=200_000, show_default=True, type=click.IntRange(0), help="images to time; 0: none")
@click.option(
    "--out", type=click.Path(path_type=Path), default=result_file.RESULTS / "near_duplicates.json", help="the result"
)
def main(cifar: Path | None, photos: Path | None, copies: int, scale: int, out: Path) -> None:
    """Measure recall, precision and false alarms."""
    rng, sets = np.random.default_rng(0), {}
    arrays = fashion.load()
    sets["fashion"] = tuple(fashion.pad_images(arrays[f"{part}_images"], 32) for part in ("train", "test"))
    if cifar is not None:
        sheets = {part: [sheet(path) for path in sorted(cifar.glob(f"{part}-*.webp"))] for part in ("train", "test")}
        sets["cifar100"] = (np.concatenate(sheets["train"]), np.concatenate(sheets["test"]))
    if photos is not None:
        files = sorted(path for path in photos.rglob("*.jpg"))
        decoded = np.stack([decode_image(path.read_bytes(), PHOTO_SIDE) for path in files])
        order = rng.permutation(len(decoded))
        sets["photos"] = (decoded[order[: len(order) * 4 // 5]], decoded[order[len(order) * 4 // 5 :]])
    named = [*(["--cifar", "FOLDER"] if cifar else []), *(["--photos", "PHOTOS"] if photos else [])]
    content: dict[str, Any] = {
        "command": " ".join(["python benchmarks/near_duplicates.py", *named]),
        "environment": result_file.environment("cpu"),
        "sets": {name: measure(train, test, copies, rng) for name, (train, test) in sets.items()},
        "scale": scaled(scale, rng) if scale else None,
    }
    result_file.write(out, content)
    for name, row in content["sets"].items():
        print(f"{name}: {row['false_alarms_per_1000']:.2f} false alarms per 1,000 images, {row['alarms']} alarms")
        for change, kind in row["planted"].items():
            print(f"  {change}: recall {kind['recall']:.3f}, precision {kind['precision']:.3f} of {kind['n']}")
    if content["scale"]:
        print(f"{scale:,} images: {content['scale']['seconds']} s, {content['scale']['found']} found")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
