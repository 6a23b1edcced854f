"""Names the mistake behind a wrong accuracy, by trying which known repair restores it. Loads no torch.

That two runtimes give equal logits cannot show that their input is wrong; an accuracy that is known beforehand can.
Each repair changes the images (channels, range, normalisation, direction, crop) or the order of the classes. A repair
is named only if the accuracy on the same images rises beyond chance and either reaches the expected one or closes at
least half of the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.verdict.intervals import mcnemar_exact, wilson

Pixels = NDArray[np.float32]
# Pixels (N, H, W, 3) on the scale 0 to 255, not always whole or inside it -> logits (N, K).
Predict = Callable[[Pixels], NDArray[np.floating]]
# Mean and standard deviation per channel, of pixels in [0, 1].
Constants = tuple[Sequence[float], Sequence[float]]

# Every repair is tried on the first number of images; the best ones are judged on the second.
SCREENING_IMAGES, JUDGING_IMAGES = 64, 400
# A rise with a larger McNemar p may be chance.
CHANCE_LEVEL = 0.01

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Words -> what the fault is called, and what the network seems to expect.
NORMALIZATIONS: dict[str, tuple[str, Constants]] = {
    "ImageNet's mean and deviation": ("normalisation", IMAGENET),
    "(x / 255 - 0.5) / 0.5": ("normalisation", ((0.5,) * 3, (0.5,) * 3)),
    "CIFAR-100's mean and deviation": ("normalisation", ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
    "pixels in [0, 1] and no normalisation": ("range", ((0.0,) * 3, (1.0,) * 3)),
    "pixels in [0, 255], not divided": ("range", ((0.0,) * 3, (1 / 255,) * 3)),
    "pixels in [0, 255] less ImageNet's mean": ("range", (IMAGENET[0], (1 / 255,) * 3)),
}


@dataclass(frozen=True)
class Fault:
    """A mistake that explains an accuracy.

    `kind`: BGR, normalisation, range, inverted, turned, swapped classes, classes, or a variant's name. `seen` and
    `repaired` are accuracies (fractions) on the same `images` images. `restores`: whether the expected one is reached.
    """

    kind: str
    repair: str
    seen: float
    repaired: float
    images: int
    restores: bool

    def sentence(self) -> str:
        """Describe which mistake it looks like and what its repair gives, for an error message."""
        looks = {
            "normalisation": "another normalisation",
            "range": "another range of pixels",
            "inverted": "inverted images",
            "turned": "turned images",
            "classes": "another order of the classes",
        }.get(self.kind, self.kind)
        rest = "" if self.restores else ", which explains only a part of it"
        gain = f"top-1 is {self.repaired:.4f} instead of {self.seen:.4f} on {self.images} images"
        return f"looks like {looks}: with {self.repair} {gain}{rest}"


@dataclass(frozen=True)
class _Repair:
    kind: str
    words: str
    # Pixels of the chosen images and their places among all -> pixels.
    apply: Callable[[Pixels, NDArray[np.intp]], Pixels]


def name_fault(
    model: Predict,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    expected_top1: float,
    *,
    normalization: Constants | None = None,
    variants: Mapping[str, NDArray[np.uint8]] | None = None,
    classes: Sequence[str] | None = None,
) -> Fault | None:
    """Find the known mistake whose repair brings `model` to an expected accuracy.

    Args:
        model: pixels -> logits, with the suspected mistake.
        images: uint8 (N, H, W, 3).
        labels: (N,).
        expected_top1: a fraction.
        normalization: what the model subtracts and divides by now; None: no other normalisation is tried.
        variants: a mistake's name ("squash for crop") -> the same images prepared without it.
        classes: names for the sentence.

    Returns:
        The mistake; None where no repair helps.
    """
    order = np.random.default_rng(0).permutation(len(images))
    screened, judged = np.sort(order[:SCREENING_IMAGES]), np.sort(order[:JUDGING_IMAGES])
    single, double = _repairs(normalization, variants or {})

    def scored(repairs: list[_Repair]) -> list[_Repair]:
        """Sort best first: by accuracy, then by how likely the labels are. Among equals the simpler one stays first."""
        scores = [
            _score(model(one.apply(images[screened].astype(np.float32), screened)), labels[screened]) for one in repairs
        ]
        return [repairs[place] for place in sorted(range(len(repairs)), key=lambda place: scores[place])]

    plain = model(images[judged].astype(np.float32))
    right = plain.argmax(axis=1) == labels[judged]

    def tried(repair: _Repair) -> Fault | None:
        logits = model(repair.apply(images[judged].astype(np.float32), judged))
        return _judged(repair.kind, repair.words, right, logits.argmax(axis=1) == labels[judged], expected_top1)

    found = [tried(one) for one in scored(single)[:2]]
    # An order of classes that is learnt from the answers can imitate a mistake in the input (red shirts for blue
    # ones), but not the other way round.
    found += [
        _classes_fault(plain, labels[judged], expected_top1, classes),
        *(tried(one) for one in scored(double)[:1]),
    ]
    named = [fault for fault in found if fault is not None]
    if not named:
        return None
    best = max(fault.repaired for fault in named)
    # Within two standard errors of the best, the simpler explanation wins: one repair, then another order of classes,
    # then two repairs.
    margin = 2 * np.sqrt(max(best * (1 - best), 1e-4) / len(judged))
    return next(
        fault for fault in sorted(named, key=lambda fault: not fault.restores) if fault.repaired >= best - margin
    )


def _repairs(
    normalization: Constants | None, variants: Mapping[str, NDArray[np.uint8]]
) -> tuple[list[_Repair], list[_Repair]]:
    """Return single repairs, and pairs of channel order and normalisation.

    It is the one pair that is common: networks from Caffe take BGR.
    """
    flip = _Repair("BGR", "red and blue exchanged", lambda pixels, _: np.ascontiguousarray(pixels[..., ::-1]))
    values = (
        [_renormalize(name, kind, normalization, constants) for name, (kind, constants) in NORMALIZATIONS.items()]
        if normalization
        else []
    )
    single = [
        flip,
        *values,
        _Repair("inverted", "black and white exchanged", lambda pixels, _: np.float32(255) - pixels),
    ]
    single += [
        _turned(words, quarter)
        for words, quarter in (("a quarter turn", 1), ("a half turn", 2), ("three quarter turns", 3))
    ]
    single += [_Repair(name, "images prepared without it", _chosen(right)) for name, right in variants.items()]
    return single, [_both(flip, one) for one in values]


def _renormalize(name: str, kind: str, now: Constants, wanted: Constants) -> _Repair:
    """Build a repair that makes the model's own normalisation act as another one."""
    mean, std, other_mean, other_std = (np.asarray(values, np.float32) for values in (*now, *wanted))
    scale, shift = std / other_std, np.float32(255) * (mean - other_mean * std / other_std)
    return _Repair(kind, name, lambda pixels, _: (pixels * scale + shift).astype(np.float32))


def _turned(words: str, quarters: int) -> _Repair:
    return _Repair("turned", words, lambda pixels, _: np.ascontiguousarray(np.rot90(pixels, quarters, axes=(1, 2))))


def _chosen(prepared: NDArray[np.uint8]) -> Callable[[Pixels, NDArray[np.intp]], Pixels]:
    return lambda _, places: prepared[places].astype(np.float32)


def _both(first: _Repair, second: _Repair) -> _Repair:
    def apply(pixels: Pixels, places: NDArray[np.intp]) -> Pixels:
        return second.apply(first.apply(pixels, places), places)

    return _Repair(f"{first.kind} and another {second.kind}", f"{first.words} and {second.words}", apply)


def _score(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> tuple[float, float]:
    """Return errors, then the mean surprise at the labels; smaller is better."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=1, keepdims=True)
    own = values[np.arange(len(labels)), labels] - np.log(np.exp(values).sum(axis=1))
    return float((values.argmax(axis=1) != labels).mean()), -float(own.mean())


def _judged(
    kind: str, words: str, before: NDArray[np.bool_], after: NDArray[np.bool_], expected: float
) -> Fault | None:
    """Return the fault if its repair lifts the accuracy beyond chance and closes at least half of the gap."""
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    seen, repaired, n = float(before.mean()), float(after.mean()), len(before)
    if gained <= lost or mcnemar_exact(lost, gained) > CHANCE_LEVEL:
        return None
    restores = wilson(int(after.sum()), n)[1] >= expected
    helps = restores or repaired - seen >= 0.5 * (expected - seen)
    return Fault(kind, words, seen, repaired, n, restores) if helps else None


def _classes_fault(
    logits: NDArray[np.floating], labels: NDArray[np.integer], expected: float, classes: Sequence[str] | None
) -> Fault | None:
    """Try another order of the classes: learn what each answer means on one half of the images, judge on the other."""
    answers, count = logits.argmax(axis=1), logits.shape[1]
    meaning = _meaning(answers[::2], labels[::2], count)
    moved = [index for index in range(count) if meaning[index] != index]
    if not moved:
        return None
    names = [str(classes[index]) if classes else str(index) for index in moved]
    swapped = len(moved) == 2 and meaning[meaning[moved[0]]] == moved[0]
    words = f"{names[0]} and {names[1]} exchanged" if swapped else f"{len(moved)} of {count} classes in another order"
    before, after = answers[1::2] == labels[1::2], meaning[answers[1::2]] == labels[1::2]
    return _judged("swapped classes" if swapped else "classes", words, before, after, expected)


def _meaning(answers: NDArray[np.integer], labels: NDArray[np.integer], count: int) -> NDArray[np.intp]:
    """Return the label that each answer (K,) mostly stands for, one to one, the most frequent pairs first.

    An answer without images keeps its own label.
    """
    pairs = np.zeros((count, count), np.int64)
    np.add.at(pairs, (answers, labels), 1)
    meaning, taken = np.full(count, -1), np.zeros(count, bool)
    for place in np.argsort(-pairs, axis=None, kind="stable"):
        answer, label = divmod(int(place), count)
        if pairs[answer, label] == 0:
            break
        if meaning[answer] < 0 and not taken[label]:
            meaning[answer], taken[label] = label, True
    free = [label for label in range(count) if not taken[label]]
    for answer in np.flatnonzero(meaning < 0).tolist():
        own = answer if answer in free else free[0]
        meaning[answer] = own
        free.remove(own)
    return meaning.astype(np.intp)


def per_tensor_layers(path: Path) -> tuple[int, int]:
    """Count an int8 file's layers whose weights have one scale for all channels, and all quantised layers with weights.

    The file is in the QDQ format.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    sizes = {value.name: int(np.prod(value.dims)) for value in graph.initializer}
    weights = {
        node.output[0]: sizes.get(node.input[1])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sizes
    }
    layers = [
        weights[node.input[1]]
        for node in graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights
    ]
    return sum(size == 1 for size in layers), len(layers)


def name_int8_fault(path: Path) -> str | None:
    """Return why an int8 file may lose accuracy, from the file alone; None where nothing is known."""
    single, layers = per_tensor_layers(path)
    if not layers or single < layers:
        return None
    scales = f"one weight scale for all channels in each of {layers} layers"
    return f"looks like per-tensor int8: {scales}; quantize.per_channel: true gives every channel its own"
