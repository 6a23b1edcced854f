"""`compress check`: builds the networks, probes their taps, and looks for data and weights. Trains nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from compress import models
from compress.commands import limits_check
from compress.core.errors import CompressError, MissingError, UsageError
from compress.data import split_labelled
from compress.data.sources import inspection
from compress.methods import compatibility
from compress.models import catalog, checkpoints, timm_models
from compress.models.count import macs, params
from compress.models.fused import fused
from compress.models.meta import shapes_only
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.pipeline import float_layer_check
from compress.recipe.class_name_check import check_class_names
from compress.recipe.defaults import resolve
from compress.recipe.loader import Loaded
from compress.recipe.schema import KNOWN_CLASSES, Candidate, Choice, Recipe
from compress.verdict import student_warnings
from export.runtime import isa
from export.runtime.conditions import too_many_threads

# Where the data is not there yet.
ASSUMED_CLASSES = 10
# With fewer training images a student from scratch usually does worse than a pretrained one.
FEW_IMAGES = 2000
NOISE_IMAGES = 16  # that an ONNX teacher is tried on


def check(loaded: Loaded) -> tuple[list[str], list[str]]:
    """Check what a well-formed recipe names.

    Networks are built without weights, one note each. Missing data or weights are no error.

    Returns:
        Notes, and what a run needs that is not there yet.

    Raises:
        UsageError: a network cannot be built, or data or weights are not what the recipe says.
    """
    threads = torch.get_num_threads()
    # One image does not keep a second thread busy; on a busy machine waiting for it takes longer than the arithmetic.
    torch.set_num_threads(1)
    try:
        return _check(loaded, resolve(loaded.recipe), loaded.path.resolve().parent)
    finally:
        torch.set_num_threads(threads)


def _check(loaded: Loaded, settings: Recipe, base: Path) -> tuple[list[str], list[str]]:
    size, names = settings.data.image_size or 32, inspection.class_names(settings.data, base)
    known = len(names) if names else KNOWN_CLASSES.get(settings.data.source)
    classes = known or ASSUMED_CLASSES
    if names:
        check_class_names(loaded, names)
    # Before what takes seconds, such as the export of a user's own network.
    larger = compatibility.check_pairs(loaded, settings, classes=classes, image_size=size)
    named = [
        (place, one)
        for place, one in compatibility.networks_of(settings)
        if not (isinstance(one, Candidate) and one.onnx)
    ]
    files = [
        (f"teacher.candidates.{number}.onnx", one) for number, one in enumerate(settings.teacher.candidates) if one.onnx
    ]
    notes = [_network(loaded, place, one, classes, size) for place, one in named if isinstance(one, Candidate)]
    notes += [_file(loaded, place, one, base, size, known) for place, one in files if _is_there(one.onnx, base)]
    notes += [_network(loaded, place, one, classes, size) for place, one in named if not isinstance(one, Candidate)]
    if known is None:
        notes.append(f"networks are counted with {classes} classes until the data is listed")
    notes += larger
    float_layer_check.check(loaded, settings, classes=classes, image_size=size)
    narrow = None if settings.device.distant else too_many_threads(settings.validate_.threads)
    if narrow:
        notes.append(f"{loaded.where('validate.threads')}: {narrow}")
    notes += _built_for_this_host(loaded, settings)
    if settings.student.choose is not None:
        how = f"picked by time on the device; see the choice with: compress plan {loaded.path}"
        notes.append(f"{loaded.where('student.choose')}: student.choose: {how}")
    weights = [(f"{place}.weights", one.weights) for place, one in named if catalog.is_checkpoint(one.weights)]
    absent = [
        (place, path)
        for place, path in [*((place, one.onnx) for place, one in files), *weights]
        if not _is_there(path, base)
    ]
    taken = [_checkpoint(loaded, place, one, base, classes, known is not None, size) for place, one in named]
    notes += [note for note in taken if note]
    more, missing = _data(loaded, base, names or ())
    return notes + more, [
        f"{loaded.where(place)}: {place}: {path} is not there yet" for place, path in absent
    ] + missing


def _built_for_this_host(loaded: Loaded, settings: Recipe) -> list[str]:
    """Return a note where int8 is made for this machine's processor and the recipe names another device."""
    device, quantize = settings.device, settings.quantize
    if quantize.scheme == "none" or not device.distant or "auto" in quantize.targets or isa() not in quantize.targets:
        return []
    built = f"the int8 file is built for {isa()}, this machine's processor, and device.target is {device.name}"
    cure = "auto asks that device which processor it has"
    return [f"{loaded.where('quantize.target')}: quantize.target: {built}; {cure}"]


def _is_there(path: str | None, base: Path) -> bool:
    return (base / Path(path or "").expanduser()).is_file()


def _checkpoint(
    loaded: Loaded, place: str, one: Candidate | Choice, base: Path, classes: int, counted: bool, size: int
) -> str:
    """Check that weights in a file or in the package fit the network, and return what is taken from the file.

    `counted`: `classes` is the data's own number.
    """
    embedded, file = one.weights == "embedded", base / Path(one.weights).expanduser()
    tag = catalog.is_timm(one.model) and catalog.is_tag(one.weights) and one.weights != "none"
    if not embedded and not tag and not (catalog.is_checkpoint(one.weights) and file.is_file()):
        return ""
    outputs = len(one.classes) if isinstance(one, Candidate) and one.classes else classes
    try:
        if tag and (found := timm_models.published_input(one.model, one.weights)):  # nothing is downloaded
            return f"{place}.weights: {found.weights}, trained at {found.image_size} pixels"
        path = checkpoints.embedded_teacher(one.model) if embedded else file
        side = (one.image_size if isinstance(one, Candidate) else None) or size
        model = models.build(one.model, classes=outputs, width=one.width, image_size=side)
        new_head = isinstance(one, Choice) or one.train is not None or not counted
        note, _ = checkpoints.load_file(model, path, key=one.weights_key, new_head=new_head)
    except CompressError as error:
        raise UsageError(f"{loaded.where(f'{place}.weights')}: {place}.weights: {error}") from error
    return f"{place}.weights: {one.weights}: {note}" if note else ""


def _file(loaded: Loaded, place: str, one: Candidate, base: Path, size: int, known: int | None) -> str:
    """Check the input and output of another project's ONNX file. Raises UsageError where they do not fit.

    `known`: the number of the data's classes.
    """
    from export.graph.foreign_logits import write_logits
    from export.graph.foreign_model import fixed_image_size, inspect
    from export.runtime import ExportError, UnavailableError

    path = base / Path(one.onnx or "").expanduser()
    expected = len(one.classes) if one.classes else KNOWN_CLASSES.get(loaded.recipe.data.source, known)
    try:
        side = one.image_size or fixed_image_size(path) or size
        noise = np.random.default_rng(0).normal(size=(NOISE_IMAGES, 3, side, side)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / path.name
            read = write_logits(path, written, pixels=noise, outputs=expected, output=one.output)
            try:
                found = inspect(written, image_size=side, outputs=expected)
            except ExportError as error:
                raise ExportError(str(error).replace(str(written), str(path))) from error
        if not read.finite.all():
            bad = f"for {NOISE_IMAGES - read.finite.sum()} of {NOISE_IMAGES} images of noise"
            raise ExportError(f"{path}: its logits are not finite (NaN or infinite) {bad}, so it cannot teach")
    except UnavailableError as error:
        raise MissingError(f"{loaded.where(place)}: {place}: {error}") from error
    except ExportError as error:
        raise UsageError(f"{loaded.where(place)}: {place}: {error}") from error
    resized = f", to which each view of {size}x{size} is resized" if side != size else ""
    cost = "an unknown number of" if found.macs is None else f"{found.macs:,}"
    counts = f"{found.params:,} parameters, {cost} multiply-accumulates, {found.outputs} classes"
    return f"teacher {one.title}: {counts}, {found.layout}, {side}x{side}{resized}" + "".join(
        f"; {note}" for note in read.notes
    )


def _network(loaded: Loaded, place: str, one: Candidate | Choice, classes: int, size: int) -> str:
    """Build a network without weights, probe its pooled tap, and count parameters and arithmetic."""
    size, title = (one.image_size if isinstance(one, Candidate) else None) or size, f"{place.split('.')[0]} {one.model}"
    info = catalog.info(one.model)
    catalog.check_image_size(info, size)
    if info.family in ("own", "timm"):
        with compatibility.locate_errors(loaded, place, one):
            return _own(title, one, classes, size)
    model = shapes_only(one.model, classes=classes, width=one.width)
    with Tapped(model, {"pooled": catalog.taps(info)["pooled"]}) as tapped, torch.no_grad():
        logits, taps = tapped(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    if taps["pooled"].ndim != 2 or logits.shape != (1, classes):
        found = f"{tuple(taps['pooled'].shape)} and {tuple(logits.shape)}"
        raise UsageError(f"{title}: expected a pooled vector (N, d) and logits (N, K), found {found}")
    return _counts(title, model, size, classes)


def _counts(title: str, model: torch.nn.Module, size: int, classes: int) -> str:
    cost = f"{params(model):,} parameters, {macs(model, size):,} multiply-accumulates"
    return f"{title}: {cost} at {size}x{size} ({classes} classes)"


def _own(title: str, one: Candidate | Choice, classes: int, size: int) -> str:
    """Check a user's own network, or timm's: its logits, its maps, its pooled vector, and that its ONNX file agrees."""
    from export.graph.from_torch import parity, to_onnx
    from export.runtime import Contract, ExportError

    shapes = outline(one.model, classes=classes, width=None, image_size=size, stages=one.taps).shapes
    if len(shapes["pooled"]) != 1:
        raise UsageError(
            f"{one.model}: the input of its last Linear is {shapes['pooled']} an image, expected a vector (d,)"
        )
    stages = [shape for tap, shape in shapes.items() if tap.startswith("stages_post")]
    maps = f"stages {', '.join('x'.join(map(str, shape)) for shape in stages)}" if stages else "no stages named"
    maps = f"{maps}, pooled {shapes['pooled'][0]}"
    if catalog.is_timm(one.model) and isinstance(one, Candidate):  # it may be too large to export in passing
        empty = shapes_only(one.model, classes=classes, width=None, image_size=size)
        return f"{_counts(title, empty, size, classes)}; {maps}"
    model = models.build(one.model, classes=classes, width=None, image_size=size).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, size, size))
    if logits.shape != (2, classes):
        raise UsageError(
            f"{one.model}: expected logits (N, K), (2, {classes}) for two images, found {tuple(logits.shape)}"
        )
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    contract = Contract(tuple(map(str, range(classes))), size, (0.5,) * 3, (0.25,) * 3, "uint8_nhwc", "compress")
    try:
        with tempfile.TemporaryDirectory() as folder:
            to_onnx(fused(model, size).network, Path(folder) / "own.onnx", contract)
            difference = parity(model, Path(folder) / "own.onnx", images).max_abs_diff
    except ExportError as error:
        raise UsageError(f"{one.model}: does not export to ONNX ({error})") from error
    exported = f"exported, onnxruntime and torch differ by {difference:.1e}"
    return f"{_counts(title, model, size, classes)}; {maps}; {exported}"


def _data(loaded: Loaded, base: Path, names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return notes on the data and what is not there. Raises UsageError where its layout is wrong."""
    config = loaded.recipe.data
    try:
        inspection.fingerprint(config, base)
        notes = [f"data: {sentence}" for sentence in inspection.early_warnings(config, base)]
    except MissingError as error:
        return [], [f"{loaded.where('data')}: data: {error}"]
    except CompressError as error:
        raise UsageError(f"{loaded.where('data')}: data: {error}") from error
    return [*_splits(loaded, base, names), *notes], []


def _splits(loaded: Loaded, base: Path, names: tuple[str, ...]) -> list[str]:
    """Return notes on the number of images. Raises UsageError where they cannot be split as the recipe asks."""
    config = loaded.recipe.data
    try:
        labels = inspection.training_labels(config, base)
        if labels is None:
            return []
        read, trained, _ = split_labelled(labels, config.validation, config.split_seed, config.labelled, names)
    except CompressError as error:
        raise UsageError(f"{loaded.where('data')}: data: {str(error).removeprefix('data: ')}") from error
    counted = inspection.class_counts(config, base)
    notes = [f"data: {counted}"] if counted else []
    unlabelled = int((read < 0).sum())
    without = f", {unlabelled:,} of them without a label" if unlabelled else ""
    notes.append(f"data: {len(labels):,} training images{without}")
    if unlabelled and loaded.recipe.distill.plain:
        notes.append(f"{loaded.where('distill')}: distill.method: none learns nothing from images without a label")
    notes += [f"data: {warning}" for warning in student_warnings.of_imbalance(read, names)] if names else []
    if config.calibration > len(trained):
        taken = f"all {len(trained):,} training images are used"
        where = loaded.where("data.calibration")
        notes.append(f"{where}: data.calibration: {config.calibration:,} images are asked for; {taken}")
    counts, asked = limits_check.test_counts(config, base), loaded.recipe.device.samples
    tested = None if counts is None else int(counts.sum())
    if counts is not None:
        notes += limits_check.unsettled(loaded, counts, names)
    if small := limits_check.upscaled(config, base):
        notes.append(f"{loaded.where('data.image_size')}: data: {small}")
    if tested is not None and asked > tested and loaded.recipe.bundles_images:
        where = loaded.where("device.samples")
        notes.append(f"{where}: device.samples: {asked:,} images are asked for; all {tested:,} test images are used")
    scratch = [one.model for one in loaded.recipe.student.networks if one.weights == "none"]
    if len(labels) < FEW_IMAGES and scratch:
        few = f"{len(labels):,} training images are few to train {scratch[0]} from scratch"
        better = "a pretrained start (student.weights) usually does better"
        notes.append(f"{loaded.where('student')}: student: {few}; {better}")
    return notes
