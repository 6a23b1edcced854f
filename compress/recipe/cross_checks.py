"""What holds between a recipe's keys. Torch-free; positions are `recipe.py`'s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.core.errors import UsageError
from compress.models import catalog
from compress.recipe import method_checks
from compress.recipe.defaults import CANDIDATE_EPOCHS, default_epochs
from compress.recipe.error_messages import Finding, did_you_mean
from compress.recipe.schema import Candidate, Choice, Recipe, Train
from compress.recipe.yaml_tree import Keys

LARGE_PICTURES = 112  # pixels
ROOTS = {  # what data.root is
    "folder": "the folder with one sub-folder a class",
    "npz": "the .npz file",
    "imagenet": "the folder that holds train and val",
    "webdataset": "the folder with the shards",
}


def wrong_networks(data: Any, *, allow_code: bool) -> Iterator[tuple[Keys, str]]:
    """Network names that the catalogue does not have, from raw values: so they are found beside other mistakes."""
    teacher = data.get("teacher")
    listed = teacher.get("candidates") if isinstance(teacher, dict) else None
    student = data.get("student")
    places: list[tuple[Keys, Any]] = [(("student",), student)]
    if isinstance(student, dict) and student.get("choose") is None and student.get("model") is None:
        yield ("student", "model"), "missing; it has no default"
    elif isinstance(student, dict) and isinstance(student.get("choose"), dict):
        beside = [key for key in ("model", "width", "weights") if student.get(key) not in (None, "none")]
        if beside:
            yield (
                ("student", beside[0]),
                f"stands beside student.choose, which picks the network: put {beside[0]} into its list, or leave choose out",
            )
        options = student["choose"].get("from")
        places += [
            (("student", "choose", "from", number), item)
            for number, item in enumerate(options if isinstance(options, list) else [])
        ]
    places += [
        (("teacher", "candidates", number), item)
        for number, item in enumerate(listed if isinstance(listed, list) else [])
    ]
    for keys, item in places:
        name = item.get("model") if isinstance(item, dict) else None
        if isinstance(item, dict) and keys[0] == "teacher" and not name and item.get("onnx") is None:
            yield (*keys, "model"), "missing; it has no default"
        elif isinstance(item, dict) and keys[0] == "teacher" and item.get("onnx") is not None:
            beside = [key for key in ("model", "width", "weights", "train") if item.get(key) not in (None, "", "none")]
            if beside:
                yield (*keys, beside[0]), f"stands beside onnx, which is the whole teacher: leave {beside[0]} out"
            continue
        if isinstance(name, str) and catalog.is_custom(name):
            if not allow_code:
                yield (
                    (*keys, "model"),
                    f"{name} is Python code that would be run; read it, then allow it on the command line: --allow-code",
                )
        elif isinstance(name, str) and name not in catalog.NETWORKS:
            wide = f"torchvision/{name}"
            hint = f" (did you mean {wide!r}?)" if wide in catalog.NETWORKS else did_you_mean(name, catalog.NETWORKS)
            yield (*keys, "model"), f"there is no network {name!r}{hint}; `compress models` lists all"


def contradictions(recipe: Recipe) -> Iterator[Finding]:
    """Values that are right alone and wrong together."""
    size = recipe.data.side
    for keys, item in _networks(recipe):
        for below, message in _network_mistakes(item, size):
            yield Finding(
                (*keys, *below) if below[0] != "data" else below, message, sections=frozenset({str(keys[0]), "data"})
            )
        if (
            isinstance(item, Candidate)
            and item.weights == "embedded"
            and item.train is None
            and recipe.data.source != "fashion"
        ):
            message = f"embedded weights name the classes of source fashion, not those of {recipe.data.source}: leave them out, or train them further (train)"
            yield Finding((*keys, "weights"), message, sections=frozenset({"teacher", "data"}))
    if recipe.data.source in ROOTS and recipe.data.root is None:
        message = f"missing; source: {recipe.data.source} needs it: {ROOTS[recipe.data.source]}"
        yield Finding(("data", "root"), message, "key", frozenset({"data"}))
    if recipe.data.source == "fashion" and recipe.data.root is not None:
        message = "is not read, for the pictures of source: fashion are embedded; leave it out, or name the source that it belongs to"
        yield Finding(("data", "root"), message, sections=frozenset({"data"}))
    if recipe.data.source in ("imagenet", "webdataset") and recipe.data.views not in ("resized_crop", "none"):
        message = f"pictures of {recipe.data.source} are decoded in training, with resized_crop or none; {recipe.data.augment} is for decoded arrays"
        yield Finding(("data", "augment"), message, sections=frozenset({"data"}))
    if recipe.data.shards_at_once is not None and recipe.data.source != "webdataset":
        yield Finding(
            ("data", "shards_at_once"),
            f"pictures of {recipe.data.source} lie in no shards: leave it out",
            sections=frozenset({"data"}),
        )
    yield from _distortion_mistakes(recipe)
    for keys, train, epochs in _trainings(recipe):
        for below, message in _train_mistakes(train, epochs):
            excuse = (*keys, "epochs") if below[-1] == "milestones" else ()
            yield Finding((*keys, *below), message, sections=frozenset({str(keys[0])}), excuse=excuse)
        alone = keys[0] == "teacher" or recipe.distill.method in (("none",), ("simkd",))
        if train.trace_gradients is not None and alone:
            message = "compares the gradients of two losses, but this training has one loss alone"
            yield Finding((*keys, "trace_gradients"), message, sections=frozenset({str(keys[0]), "distill"}))
        if train.views is not None and recipe.data.source in ("imagenet", "webdataset"):
            message = f"lets a teacher's remembered logits come again, but of {recipe.data.source} none are remembered: leave it out"
            yield Finding((*keys, "views"), message, sections=frozenset({str(keys[0]), "data"}))
        elif train.views is not None and recipe.data.views == "none":
            yield Finding(
                (*keys, "views"),
                "limits the augmentation, but data.augment is none",
                sections=frozenset({str(keys[0]), "data"}),
            )
    for name, asked in (("min_int8_mac_share", "integer kernels"), ("min_int8_speedup", "int8")):
        if recipe.quantize.scheme == "none" and getattr(recipe.require, name) is not None:
            message = f"asks for {asked}, but quantize.scheme is none"
            yield Finding(("require", name), message, sections=frozenset({"quantize", "require"}))
    elsewhere = [method for method in recipe.distill.method if method in method_checks.SHIP_ANOTHER]
    if recipe.quantize.scheme == "qat" and elsewhere:
        message = (
            f"qat trains the network that ships, but {' and '.join(elsewhere)} compares another one with the teacher"
        )
        message += "; use scheme: static, or another method"
        yield Finding(("quantize", "scheme"), message, sections=frozenset({"quantize", "distill"}))
    if recipe.device.name.startswith("browser") and recipe.validate_.sustained_seconds:
        message = "is not run in a browser, which device.target names; leave it out"
        yield Finding(("validate", "sustained_seconds"), message, sections=frozenset({"validate", "device"}))
    for keys, message, judged in method_checks.mistakes(recipe.distill, recipe.train, _networks(recipe)):
        yield Finding(keys, message, sections=judged)
    proxy, fitnet = recipe.teacher.proxy, recipe.distill.fitnet
    if (
        recipe.teacher.select == "proxy"
        and "fitnet" in recipe.distill.method
        and fitnet.mode == "two_stage"
        and fitnet.hint_epochs >= proxy.epochs
    ):
        message = (
            f"the proxy's {proxy.epochs} epochs are all spent on fitnet's hint (hint_epochs: {fitnet.hint_epochs})"
        )
        yield Finding(("teacher", "proxy", "epochs"), message, sections=frozenset({"distill", "teacher"}))


def _distortion_mistakes(recipe: Recipe) -> Iterator[Finding]:
    """`none` means that training sees each picture in one form; jitter and RandAugment make many of it."""
    for name, asked in (("color_jitter", recipe.data.color_jitter), ("rand_augment", recipe.data.rand_augment)):
        message = ""
        if name == "color_jitter" and asked is not None and not any(asked.model_dump().values()):
            message = "changes nothing: give brightness, contrast, saturation or hue a range above 0"
        elif asked is not None and recipe.data.views == "none":
            message = "distorts training views, but data.augment is none: one view a picture, as it is; choose crop_flip, crop, flip or resized_crop"
        if message:
            yield Finding(("data", name), message, sections=frozenset({"data"}))


def _networks(recipe: Recipe) -> list[tuple[Keys, Candidate | Choice]]:
    found: list[tuple[Keys, Candidate | Choice]] = [
        (("teacher", "candidates", number), item) for number, item in enumerate(recipe.teacher.candidates)
    ]
    student: Keys = ("student",)
    return [
        *found,
        *(
            (student if recipe.student.choose is None else (*student, "choose", "from", n), item)
            for n, item in enumerate(recipe.student.networks)
        ),
    ]


def _network_mistakes(item: Candidate | Choice, size: int) -> Iterator[tuple[Keys, str]]:
    if isinstance(item, Candidate) and item.onnx is not None:
        if item.classes is not None and len(set(item.classes)) < len(item.classes):
            yield ("classes",), "a name is there twice"
    if item.taps is not None and not catalog.is_custom(item.model):
        yield (
            ("taps",),
            f"only a network of one's own names its stages; those of {item.model or 'an ONNX file'} are known, or there are none",
        )
    if item.model not in catalog.NETWORKS:
        return
    info = catalog.NETWORKS[item.model]
    own = item.image_size if isinstance(item, Candidate) else None
    if info.min_size > (own or size):
        told = f"its image_size is {own}" if own else f"data.image_size is {size}"
        yield ("model",), f"{info.name} needs pictures of at least {info.min_size} pixels, but {told}"
    if isinstance(item, Candidate):
        yield from _contract_mistakes(item)
    try:
        catalog.resolve_width(info, item.width)
    except UsageError as error:
        yield ("width",), str(error).removeprefix("width: ")
    words = ("none", "embedded") if isinstance(item, Candidate) else ("none",)
    if item.weights not in (*words, *info.pretrained) and not item.weights.endswith(catalog.CHECKPOINT_SUFFIXES):
        known = ", ".join((*words, *info.pretrained))
        hint = did_you_mean(item.weights, (*words, *info.pretrained))
        yield (
            ("weights",),
            f"expected {known} or a file ({', '.join(catalog.CHECKPOINT_SUFFIXES)}), got {item.weights!r}{hint}",
        )
    if isinstance(item, Candidate) and item.expect_top1 is not None and item.weights == "none":
        yield ("expect_top1",), "says what a checkpoint must reach, but weights is none"


def _contract_mistakes(item: Candidate) -> Iterator[tuple[Keys, str]]:
    """What a candidate says of its outputs."""
    if item.classes is None:
        return
    if item.train is not None or item.weights in ("none", "embedded"):
        yield (
            ("classes",),
            "says what a finished checkpoint's outputs are; a network that is trained here has the data's classes",
        )
    twice = next((name for name in item.classes if item.classes.count(name) > 1), None)
    if twice is not None:
        yield ("classes",), f"{twice!r} is there twice"


def _trainings(recipe: Recipe) -> list[tuple[Keys, Train, int]]:
    """Every training with its number of epochs."""
    found: list[tuple[Keys, Train, int]] = []
    for number, candidate in enumerate(recipe.teacher.candidates):
        if candidate.onnx is None and candidate.train is not None:
            default = default_epochs(pretrained=candidate.weights != "none", scratch_epochs=CANDIDATE_EPOCHS)
            found.append(
                (("teacher", "candidates", number, "train"), candidate.train, candidate.train.epochs or default)
            )
    scratch = any(one.weights == "none" for one in recipe.student.networks)
    default = default_epochs(pretrained=not scratch)
    return [*found, (("train",), recipe.train, recipe.train.epochs or default)]


def _train_mistakes(train: Train, epochs: int) -> Iterator[tuple[Keys, str]]:
    schedule = train.schedule
    if list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield ("schedule", "milestones"), f"must ascend, got {', '.join(map(str, schedule.milestones))}"
    if schedule.warmup_epochs and schedule.warmup_epochs >= epochs:
        yield (
            ("schedule", "warmup_epochs"),
            f"the warm-up ({schedule.warmup_epochs:g} epochs) must be shorter than the training ({epochs})",
        )
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if schedule.kind == "step" and late:
        yield (
            ("schedule", "milestones"),
            f"{', '.join(map(str, late))} would never act: the training has {epochs} epochs",
        )


def remarks(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """What is allowed and probably not meant."""
    if recipe.data.workers is not None and recipe.data.source not in ("imagenet", "webdataset"):
        yield (
            ("data", "workers"),
            f"data.workers is not read: pictures of {recipe.data.source} are decoded once, before training",
        )
    if recipe.data.download and recipe.data.source not in ("cifar10", "cifar100"):
        yield (
            ("data", "download"),
            f"data.download is not read: there is nothing to download for source {recipe.data.source}",
        )
    for keys, item in _networks(recipe):
        wide, size = (
            f"torchvision/{item.model}",
            (item.image_size if isinstance(item, Candidate) else None) or recipe.data.side,
        )
        file = (
            (item.onnx or (item.weights if item.weights.endswith(catalog.CHECKPOINT_SUFFIXES) else ""))
            if isinstance(item, Candidate)
            else ""
        )
        if isinstance(item, Candidate) and file and item.expect_top1 is None and item.train is None:
            known = f"say what accuracy {Path(file).name} is known to reach (expect_top1)"
            yield (
                (*keys, "onnx" if item.onnx else "weights"),
                f"{known}, so that a wrong input is noticed before hours of training",
            )
        if item.model in catalog.NETWORKS and size >= LARGE_PICTURES and catalog.NETWORKS[item.model].family == "cifar":
            hint = f"; {wide} is meant for this size" if wide in catalog.NETWORKS else ""
            yield (
                (*keys, "model"),
                f"{item.model} is a network for small pictures and costs much at {size} pixels{hint}",
            )
    if recipe.teacher.select == "proxy" and recipe.distill.plain and len(recipe.teacher.candidates) > 1:
        yield (
            ("teacher", "select"),
            "no teacher is needed (distill.method: none), so the candidates are compared by their own accuracy, not by proxy",
        )
    if recipe.distill.plain and recipe.distill.baseline:
        yield (
            ("distill", "baseline"),
            "the student is trained without a teacher already (method: none), so the baseline adds nothing",
        )
