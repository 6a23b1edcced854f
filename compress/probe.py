"""What `compress check` proves before anything is trained: networks build, taps exist, data and weights are there. Trains nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from compress import compatible, models, recipe
from compress.data import sources
from compress.errors import CompressError, MissingError, UsageError
from compress.models import catalog
from compress.models.count import macs, params
from compress.models.hollow import shapes_only
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.recipe import Loaded
from compress.schema import KNOWN_CLASSES, Candidate, Choice, Recipe

CLASSES = 10  # where the data may not be there yet
FEW_PICTURES = 2000  # below this, training a student from scratch is a poor start


def check(loaded: Loaded) -> list[str]:
    """Notes on a recipe that is well formed: one line a network, one on the data. Raises UsageError where a network cannot be built.

    Networks are built without weights; absent data or weights are a note, not an error.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one picture keeps no second thread busy, and on a busy machine waiting for one takes longer than the arithmetic
    try:
        return _check(loaded, recipe.resolve(loaded.recipe), loaded.path.resolve().parent)
    finally:
        torch.set_num_threads(threads)


def _check(loaded: Loaded, settings: Recipe, base: Path) -> list[str]:
    size = settings.data.image_size or 32
    larger = compatible.check(loaded, settings, classes=CLASSES, image_size=size)  # before what takes seconds: a network of one's own is exported
    named = [(place, one) for place, one in compatible.places(settings) if not (isinstance(one, Candidate) and one.onnx)]
    notes = [_network(loaded, place, one, size) for place, one in named if isinstance(one, Candidate)]
    notes += [note for number, one in enumerate(settings.teacher.candidates) if one.onnx for note in _file(loaded, number, one, base, size)]
    students = settings.student.networks
    notes += [_network(loaded, place, one, size) for place, one in named if not isinstance(one, Candidate)]
    notes += larger
    if settings.student.choose is not None:
        notes.append(f"{loaded.where('student.choose')}: student.choose: picked by time on the device; see the choice with: compress plan {loaded.path}")
    places = [f"student.choose.from.{i}" for i in range(len(students))] if settings.student.choose else ["student"]
    starts = zip(places, (one.weights for one in students), strict=True)
    for key, weights in [*((f"teacher.candidates.{i}", c.weights) for i, c in enumerate(settings.teacher.candidates)), *starts]:
        if Path(weights).suffix in catalog.CHECKPOINT_SUFFIXES and not (base / Path(weights).expanduser()).is_file():
            notes.append(f"{loaded.where(f'{key}.weights')}: {key}.weights: {weights} is not there yet")
    notes += _data(loaded, base)
    return notes


def _file(loaded: Loaded, number: int, one: Candidate, base: Path, size: int) -> list[str]:
    """Another project's ONNX file: its input and output, where it is there already. Raises UsageError where they are others."""
    from export.blackbox import BlackBox, inspect, own_side
    from export.runtime import ExportError

    path, place = base / Path(one.onnx or "").expanduser(), f"teacher.candidates.{number}.onnx"
    if not path.is_file():
        return [f"{loaded.where(place)}: {place}: {one.onnx} is not there yet"]
    try:
        side = one.image_size or own_side(path) or size
        found: BlackBox = inspect(path, image_size=side, outputs=len(one.classes) if one.classes else KNOWN_CLASSES.get(loaded.recipe.data.source))
    except ExportError as error:
        raise UsageError(f"{loaded.where(place)}: {place}: {error}") from error
    resized = f", to which each view of {size}x{size} is resized" if side != size else ""
    cost = "an unknown number of" if found.macs is None else f"{found.macs:,}"
    return [f"teacher {one.title}: {found.params:,} parameters, {cost} multiply-accumulates, {found.outputs} classes, {found.layout}, {side}x{side}{resized}"]


def _network(loaded: Loaded, place: str, one: Candidate | Choice, size: int) -> str:
    """Build without weights, probe the pooled tap, count."""
    size, title = (one.image_size if isinstance(one, Candidate) else None) or size, f"{place.split('.')[0]} {one.model}"
    info = catalog.info(one.model)
    catalog.require_size(info, size)
    if info.family == "own":
        with compatible.own_at(loaded, place, one):
            return _own(title, one, size)
    model = shapes_only(one.model, classes=CLASSES, width=one.width)
    with Tapped(model, {"pooled": catalog.taps(info)["pooled"]}) as tapped, torch.no_grad():
        logits, taps = tapped(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    if taps["pooled"].ndim != 2 or logits.shape != (1, CLASSES):
        raise UsageError(f"{title}: expected a pooled vector (N, d) and logits (N, K), found {tuple(taps['pooled'].shape)} and {tuple(logits.shape)}")
    return f"{title}: {params(model):,} parameters, {macs(model, size):,} multiply-accumulates at {size}x{size} ({CLASSES} classes)"


def _own(title: str, one: Candidate | Choice, size: int) -> str:
    """A network of one's own: its logits, its maps, the vector in front of its last Linear, and whether its file answers as it does."""
    import numpy as np

    from export.convert import parity, to_onnx
    from export.runtime import Contract, ExportError

    shapes = outline(one.model, classes=CLASSES, width=None, image_size=size, stages=one.taps).shapes
    if len(shapes["pooled"]) != 1:
        raise UsageError(f"{one.model}: the input of its last Linear is {shapes['pooled']} a picture, expected a vector (d,)")
    model = models.build(one.model, classes=CLASSES, width=None).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, size, size))
    if logits.shape != (2, CLASSES):
        raise UsageError(f"{one.model}: expected logits (N, K), (2, {CLASSES}) for two pictures, found {tuple(logits.shape)}")
    pictures = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    contract = Contract(tuple(map(str, range(CLASSES))), size, (0.5,) * 3, (0.25,) * 3, "uint8_nhwc", "compress")
    try:
        with tempfile.TemporaryDirectory() as folder:
            to_onnx(model, Path(folder) / "own.onnx", contract)
            difference = parity(model, Path(folder) / "own.onnx", pictures).max_abs_diff
    except ExportError as error:
        raise UsageError(f"{one.model}: does not export to ONNX ({error})") from error
    stages = [shape for tap, shape in shapes.items() if tap.startswith("stages_post")]
    maps = f"stages {', '.join('x'.join(map(str, shape)) for shape in stages)}" if stages else "no stages named"
    return (
        f"{title}: {params(model):,} parameters, {macs(model, size):,} multiply-accumulates at {size}x{size} ({CLASSES} classes); "
        f"{maps}, pooled {shapes['pooled'][0]}; exported, onnxruntime and torch differ by {difference:.1e}"
    )


def _data(loaded: Loaded, base: Path) -> list[str]:
    config = loaded.recipe.data
    try:
        sources.fingerprint(config, base)
    except MissingError as error:
        return [f"{loaded.where('data')}: data: {error}"]
    except CompressError as error:
        raise UsageError(f"{loaded.where('data')}: data: {error}") from error
    count = sources.count_training(config, base)
    scratch = [one.model for one in loaded.recipe.student.networks if one.weights == "none"]
    if count is not None and count < FEW_PICTURES and scratch:
        return [
            f"{loaded.where('student')}: student: {count:,} training pictures are few to train {scratch[0]} from scratch; "
            "a pretrained start (student.weights) usually does better"
        ]
    return []
