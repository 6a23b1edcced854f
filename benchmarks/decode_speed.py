"""Decoding for training: images a second of our decode processes and of torchvision's transforms in a DataLoader.

    python benchmarks/decode_speed.py photos --workers 1 --workers 2

Runs on the CPU, with as many workers on both sides. Every JPEG below the folder is first written again with its short
side at --short pixels, so that its size is ImageNet's (about 500 x 375). Both sides then do the same: random crop,
antialiased resize to --size, flip, uint8 batches. They take turns after an untimed round; the medians, their ratio and
the size of the memory that the decode processes share are printed.
"""

from __future__ import annotations

import importlib.metadata
import io
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import result_file
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from compress.data.sources.imagenet import scan
from compress.data.streaming.listing import ListingSpec, write_listing
from compress.data.streaming.workers import Decoders
from export.runtime import host

SOURCES = (".jpg", ".jpeg")


class Transformed(Dataset):
    """A dataset with torchvision's transforms, one image at a time."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.make = v2.Compose(
            [
                v2.RandomResizedCrop(size, interpolation=InterpolationMode.BILINEAR, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.paths[number].read_bytes())) as image:
            return torch.from_numpy(np.array(self.make(image.convert("RGB"))))


def layout(photos: Path, root: Path, short: int) -> int:
    """Write the photos again in two classes, as train and as val; return how many there are."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SOURCES)
    for number, path in enumerate(found):
        with Image.open(path) as image:
            scale = short / min(image.size)
            resized = image.convert("RGB").resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
            )
        for part in ("train", "val") if number < 2 else ("train",):
            folder = root / part / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            resized.save(folder / f"{number:06d}.JPEG", quality=92)
    return len(found)


def ours(decoders: Decoders, count: int, batch: int, epoch: int) -> float:
    """Return the images a second of one pass in random order."""
    random = np.random.default_rng(epoch)
    order, views = random.permutation(count), random.integers(0, 8192, count)

    def asked() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, count, batch):
            yield order[start : start + batch], views[start : start + batch]

    begin = time.perf_counter()
    seen = sum(len(pixels) for pixels in decoders.batches(asked(), batch))
    return seen / (time.perf_counter() - begin)


def theirs(loader: DataLoader) -> float:
    """Return the images a second of one pass of a DataLoader."""
    begin = time.perf_counter()
    seen = sum(len(pixels) for pixels in loader)
    return seen / (time.perf_counter() - begin)


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--workers", default=(1, 2), show_default=True, multiple=True, type=click.IntRange(1))
@click.option("--short", default=375, show_default=True, help="short side of the images in pixels")
@click.option("--size", default=224, show_default=True, help="side of the views in pixels")
@click.option("--batch", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--out", default=result_file.RESULTS / "decode_speed.json", type=click.Path(path_type=Path))
def main(photos: Path, workers: tuple[int, ...], short: int, size: int, batch: int, repeats: int, out: Path) -> None:
    """Measure, print and write."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, work = Path(folder) / "set", Path(folder)
        count = layout(photos, root, short)
        begin = time.perf_counter()
        part = scan(root).train
        listed = time.perf_counter() - begin
        index, _, paths = write_listing(part, np.arange(count), work, "train")
        files = [root / path for path in part.paths]
        mean_bytes = statistics.mean(path.stat().st_size for path in files)
        print(f"{count} images, short side {short}, {mean_bytes / 1e3:.0f} kB each; listed in {listed:.3f} s")
        for number in workers:
            decoders = Decoders(ListingSpec(root, index.path, paths.path, size), augment="resized_crop", workers=number)
            loader = DataLoader(
                Transformed(files, size),
                batch,
                shuffle=True,
                num_workers=number,
                persistent_workers=True,
                multiprocessing_context="spawn",
            )
            speeds: dict[str, list[float]] = {"decoders": [], "dataloader": []}
            for turn in range(repeats + 1):
                pair = {"decoders": ours(decoders, count, batch, turn), "dataloader": theirs(loader)}
                for name, speed in pair.items() if turn else ():
                    speeds[name].append(speed)
            assert decoders.job is not None
            ring = decoders.job.ring().nbytes
            decoders.close()
            del loader
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            ratio = medians["decoders"] / medians["dataloader"]
            print(
                f"{number} process{'es' if number > 1 else ''}: "
                f"{medians['decoders']:.0f} images/s {sorted(map(round, speeds['decoders']))}, "
                f"DataLoader {medians['dataloader']:.0f} {sorted(map(round, speeds['dataloader']))}: {ratio:.2f}x; "
                f"shared memory {ring / 1e6:.0f} MB"
            )
            rows.append(
                {"workers": number, "pictures_per_second": medians, "each": speeds, "ratio": ratio, "ring_bytes": ring}
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    settings = {
        "pictures": count,
        "short": short,
        "size": size,
        "batch": batch,
        "repeats": repeats,
        "mean_bytes": round(mean_bytes),
    }
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "torch", "torchvision")}
    counts = " ".join(f"--workers {number}" for number in workers)
    command = f"python benchmarks/decode_speed.py PHOTOS {counts} --short {short} --size {size}"
    environment = {**host(), **versions}
    content = {"command": command, **settings, "rows": rows, "peak_bytes": peak, "environment": environment}
    result_file.write(out, content)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
