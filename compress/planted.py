"""Faults planted on purpose, to show on this machine that the verdict catches them and names them: `compress doctor --verdict`.

A small network learns eight classes in seconds: four kinds of clothes from the embedded pictures, each in red or in blue, on pictures
wider than high, so that channel order, range, crop and class order all matter. Its float file is the reference of every fault.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import export.measure
from compress import faults, verdict
from compress.data import fashion
from compress.data.pictures import decode
from compress.schema import Require
from compress.statistics import paired_drop
from export.convert import to_onnx
from export.quantize import quantize
from export.runtime import TARGETS, Contract, Model, isa, runs_on

KINDS = (1, 3, 7, 8)  # trouser, dress, sneaker, bag
COLOURS = {"red": (1.0, 0.45, 0.2), "blue": (0.2, 0.45, 1.0)}  # a tint of red, green, blue
CLASSES = tuple(f"{colour} {fashion.CLASSES[kind].lower()}" for kind in KINDS for colour in COLOURS)
SIZE, WIDE, GROUND = 32, 56, 40  # pixels; grey level behind the clothes
RIGHT, WRONG = ((0.5,) * 3, (0.5,) * 3), faults.IMAGENET  # what the network learnt with, and what is planted
TRAIN, TEST, EPOCHS = 1600, 480, 4
LIMIT = 2.0  # points of top-1
OUTLIER = 64.0  # times the weights of a dead channel
RUNS = 300


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault. `caught` is None where this machine cannot show it (no /proc/stat)."""

    name: str
    caught: bool | None
    said: str
    control: bool = False  # nothing is planted, nothing may be found


@dataclass(frozen=True)
class Ground:
    """What faults are planted into. Pictures uint8 (N, S, S, 3): prepared right, and squashed; `top1` of the float file on the right ones."""

    folder: Path
    network: nn.Module
    fp32: Path
    right: NDArray[np.uint8]
    squashed: NDArray[np.uint8]
    labels: NDArray[np.int64]
    calibration: NDArray[np.uint8]
    correct: NDArray[np.bool_]

    @property
    def top1(self) -> float:
        return float(self.correct.mean())


class _Network(nn.Module):
    """Convolution, depthwise convolutions, a residual sum, a mean: what compact networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 16, 3, 2, 1)
        self.depthwise = _block(16, 16, 3, 1, 16)
        self.pointwise = _block(16, 32, 1, 1, 1)
        self.second = _block(32, 32, 3, 2, 32)
        self.mixed = _block(32, 32, 1, 1, 1)
        self.classifier = nn.Linear(32, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.pointwise(self.depthwise(self.stem(x))))
        return self.classifier((x + self.mixed(x)).mean([2, 3]))


def _block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def run(report: Callable[[Outcome], None]) -> bool:
    """Plant every fault, one after the other; whether all were caught (what cannot be shown here does not count)."""
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        ground = prepare(Path(temporary))
        for plant in PLANTED:
            outcomes.append(plant(ground))
            report(outcomes[-1])
    return all(outcome.caught is not False for outcome in outcomes)


def prepare(folder: Path) -> Ground:
    """Draw the pictures, train the network, write its float file."""
    arrays = fashion.load()
    train, train_labels, _ = _draw(arrays["train_images"], arrays["train_labels"], TRAIN, 1)
    right, labels, squashed = _draw(arrays["test_images"], arrays["test_labels"], TEST, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _with_dead_outlier(_train(train, train_labels))
    path = folder / "student.fp32.onnx"
    to_onnx(network, path, _contract(RIGHT))
    correct = Model.load(path).run(right).argmax(axis=1) == labels
    return Ground(folder, network, path, right, squashed, labels, train[:64], correct)


def _draw(items: NDArray[np.uint8], kinds: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    """(prepared right, labels, squashed): clothes in a colour on a grey ground, WIDE x SIZE, as an application would decode them."""
    random = np.random.default_rng(seed)
    chosen = np.flatnonzero(np.isin(kinds, KINDS))[:count]
    colour = random.integers(0, len(COLOURS), len(chosen))
    tint = np.array(list(COLOURS.values()))[colour]
    scene = np.full((len(chosen), SIZE, WIDE, 3), GROUND, np.float64)
    top, left = (SIZE - fashion.SIDE) // 2, (WIDE - fashion.SIDE) // 2
    clothes = items[chosen][..., None] * tint[:, None, None, :]
    inside = scene[:, top : top + fashion.SIDE, left : left + fashion.SIDE]
    np.maximum(inside, clothes, out=inside)
    files = [_png(picture) for picture in (scene + random.normal(0, 6, scene.shape)).clip(0, 255).astype(np.uint8)]
    right = np.stack([decode(file, SIZE) for file in files])
    squashed = np.stack([np.asarray(Image.open(io.BytesIO(file)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for file in files])
    return right, np.array([KINDS.index(kind) for kind in kinds[chosen]]) * len(COLOURS) + colour, squashed


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _train(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Network:
    network = _Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * -(-len(images) // 50))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in RIGHT)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std, torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network


def _with_dead_outlier(network: _Network) -> _Network:
    """One depthwise channel of each layer becomes dead with large weights, as happens in compact networks: float answers do not need it,
    one weight scale for all channels must hold it."""
    with torch.no_grad():
        for block in (network.depthwise, network.second):
            convolution, norm = block[0], block[1]
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None and norm.running_var is not None
            least = int(norm.weight.abs().argmin())
            convolution.weight[least] *= OUTLIER * convolution.weight.abs().max() / convolution.weight[least].abs().max()
            norm.weight[least], norm.running_var[least], norm.running_mean[least] = 1.0, 1.0, 0.0
            norm.bias[least] = -1e4  # below zero for every picture
    return network


def _contract(normalization: faults.Constants) -> Contract:
    mean, std = (tuple(float(value) for value in values) for values in normalization)
    return Contract(CLASSES, SIZE, mean, std, "uint8_nhwc", "compress doctor")  # type: ignore[arg-type]


def _answers(path: Path) -> faults.Predict:
    """A file as `faults` wants it; it takes whole pixels, so others are rounded and cut."""
    model = Model.load(path)
    return lambda pixels: model.run(pixels.round().clip(0, 255).astype(np.uint8))


def _judged(ground: Ground, logits: NDArray[np.floating]) -> verdict.Requirement:
    """The verdict on answers to the test pictures, against the float file fed rightly."""
    drop = paired_drop(ground.correct, logits.argmax(axis=1) == ground.labels)
    return verdict.judge(Require(max_top1_drop=LIMIT), verdict.Facts("student", "local", drop=drop))[0]


def _outcome(name: str, row: verdict.Requirement, named: str | None, *expected: str) -> Outcome:
    """Caught: not passed, and named by all of the expected words."""
    caught = row.verdict != "passed" and named is not None and all(word in named for word in expected)
    drop = f" (drop {row.value:.1f} points)" if row.name == "max_top1_drop" and row.value is not None else ""
    return Outcome(name, caught, f"{row.verdict}{drop}; {named or 'not named'}")


def _input(
    name: str, ground: Ground, path: Path, fed: NDArray[np.uint8], normalization: faults.Constants, *expected: str, crop: NDArray[np.uint8] | None = None
) -> Outcome:
    """A fault in what the file is fed or expects. `crop`: the pictures prepared right, where `fed` was prepared otherwise."""
    answers = _answers(path)
    row = _judged(ground, answers(fed.astype(np.float32)))
    variants = {"squash for crop": crop} if crop is not None else None
    fault = faults.name_fault(answers, fed, ground.labels, ground.top1, normalization=normalization, variants=variants, classes=CLASSES)
    return _outcome(name, row, fault.sentence() if fault else None, *expected)


def nothing(ground: Ground) -> Outcome:
    """The control: right input, per-channel int8; a verdict that cries wolf is worth nothing."""
    path = ground.folder / "control.int8.onnx"
    quantize(ground.fp32, path, ground.calibration, isa=isa() if isa() in TARGETS else "x86-vnni")
    row = _judged(ground, Model.load(path).run(ground.right))
    named = faults.name_int8_fault(path)
    fault = faults.name_fault(_answers(ground.fp32), ground.right, ground.labels, ground.top1, normalization=RIGHT, classes=CLASSES)
    named = named or (fault.sentence() if fault else None)
    good = row.verdict == "passed" and named is None
    return Outcome("nothing planted", good, f"{row.verdict} (drop {row.value:.1f} points); {named or 'no fault named'}", control=True)


def itself(ground: Ground) -> Outcome:
    """A model against a copy of itself: no speed-up, no drop."""
    # so small a network needs many runs: one takes 20 millionths of a second
    copy = ground.folder / "copy.onnx"
    shutil.copyfile(ground.fp32, copy)
    timed = export.measure.latency({"model": ground.fp32, "copy": copy}, ground.right[:64], repeats=10 * RUNS, rounds=40, attempts=3)
    ratio, low, high = export.measure.ratio(timed, "model", "copy")
    drop = paired_drop(ground.correct, Model.load(copy).run(ground.right).argmax(axis=1) == ground.labels)
    # 95 in 100 intervals hold the truth; one that misses it by less than a hundredth is no error of the measurement
    same = (low <= 1 <= high or abs(ratio - 1) < 0.01) and drop.lost == drop.gained == 0
    return Outcome("a model against itself", same, f"{ratio:.2f}x [{low:.2f}, {high:.2f}], drop {drop.drop_points:.2f} points", control=True)


def bgr(ground: Ground) -> Outcome:
    """Red and blue exchanged."""
    return _input("BGR for RGB", ground, ground.fp32, np.ascontiguousarray(ground.right[..., ::-1]), RIGHT, "looks like BGR")


def squash(ground: Ground) -> Outcome:
    """The whole picture resized to a square, where the centre was learnt."""
    return _input("squash for crop", ground, ground.fp32, ground.squashed, RIGHT, "looks like squash for crop", crop=ground.right)


def normalization(ground: Ground) -> Outcome:
    """Another mean and deviation in the file."""
    path = ground.folder / "wrong.onnx"
    to_onnx(ground.network, path, _contract(WRONG))
    return _input("wrong mean and deviation", ground, path, ground.right, WRONG, "looks like another normalisation", "(x / 255 - 0.5) / 0.5")


def swapped(ground: Ground) -> Outcome:
    """Two classes exchanged in the list of names."""
    order = np.arange(len(CLASSES))
    order[[2, 5]] = order[[5, 2]]
    right = _answers(ground.fp32)
    row = _judged(ground, right(ground.right.astype(np.float32))[:, order])
    fault = faults.name_fault(lambda pixels: right(pixels)[:, order], ground.right, ground.labels, ground.top1, normalization=RIGHT, classes=CLASSES)
    return _outcome("swapped classes", row, fault.sentence() if fault else None, "looks like swapped classes", CLASSES[2], CLASSES[5])


def per_tensor(ground: Ground) -> Outcome:
    """One weight scale for all channels."""
    path = ground.folder / "tensor.int8.onnx"
    quantize(ground.fp32, path, ground.calibration, isa="arm64" if isa() == "arm64" else "x86-vnni", per_channel=False)
    return _outcome("per-tensor int8", _judged(ground, Model.load(path).run(ground.right)), faults.name_int8_fault(path), "looks like per-tensor int8")


def other_target(ground: Ground) -> Outcome:
    """A file for another instruction set, whose speed here says nothing."""
    path, here = ground.folder / "other.int8.onnx", isa()
    quantize(ground.fp32, path, ground.calibration, isa="x86-vnni" if here == "arm64" else "arm64")
    target = Model.load(path).target
    why = None if runs_on(target, here) else f"it is built for {target} and this machine is {here}"
    row = verdict.judge(Require(max_latency_ms=1000), verdict.Facts("student", "local", untimed=why))[0]
    return _outcome("a file for another instruction set", row, row.sentence, "built for", here)


def busy_neighbour(ground: Ground) -> Outcome:
    """Other processes on every core while the time is measured; the limit is what the machine reached without them."""
    quiet = export.measure.latency({"model": ground.fp32}, ground.right[:64], repeats=RUNS).models["model"].p50_ms
    with _neighbours():
        timed = export.measure.latency({"model": ground.fp32}, ground.right[:64], repeats=RUNS)
    if timed.contaminated is None:
        return Outcome("a busy neighbour", None, "not shown: this system does not tell what other processes use")
    value, low, high = export.measure.p50_interval(timed, "model")
    facts = verdict.Facts("student", "local", latency_ms=value, latency_ci95=(low, high), timed_runs=RUNS, disturbed="; ".join(timed.disturbances) or None)
    row = verdict.judge(Require(max_latency_ms=quiet), facts)[0]
    return _outcome("a busy neighbour", row, facts.disturbed, "other processes used")


@contextmanager
def _neighbours() -> Iterator[None]:
    """One process a core that does nothing but compute."""
    count = os.cpu_count() or 1
    started = [subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


PLANTED: tuple[Callable[[Ground], Outcome], ...] = (
    nothing, itself, bgr, squash, normalization, swapped, per_tensor, other_target, busy_neighbour,
)  # fmt: skip
