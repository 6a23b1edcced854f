"""Checks that hold between a recipe's keys. Loads no torch; `loader.py` adds the positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.models import catalog
from compress.recipe import group_setting, method_checks
from compress.recipe.defaults import CANDIDATE_EPOCHS, default_epochs
from compress.recipe.error_messages import Finding
from compress.recipe.method_checks import has_task_loss
from compress.recipe.network_checks import network_mistakes, networks_of
from compress.recipe.schema import Candidate, Choice, Data, Recipe, Train
from compress.recipe.yaml_parser import Keys

# A network for small images is slow from this image size on, in pixels.
LARGE_IMAGES = 112
STREAMED = ("imagenet", "webdataset")  # sources whose images are decoded in training
# What `data.root` is for the sources that need it.
ROOTS = {
    "folder": "the folder with one sub-folder for each class",
    "npz": "the .npz file",
    "imagenet": "the folder that holds train and val",
    "webdataset": "the folder with the shards",
}


def contradictions(recipe: Recipe) -> Iterator[Finding]:
    """Find values that are right alone and wrong together."""
    yield from _network_contradictions(recipe)
    yield from _data_contradictions(recipe)
    yield from _distortion_mistakes(recipe)
    yield from _training_contradictions(recipe)
    yield from _deployment_contradictions(recipe)
    for keys, message, judged in method_checks.mistakes(recipe.distill, recipe.train, list(networks_of(recipe))):
        yield Finding(keys, message, sections=judged)
    yield from _proxy_contradictions(recipe)


def _network_contradictions(recipe: Recipe) -> Iterator[Finding]:
    for keys, item in networks_of(recipe):
        for below, message in network_mistakes(item, recipe.data.side):
            yield Finding((*keys, *below), message, sections=frozenset({str(keys[0]), "data"}))
        embedded = isinstance(item, Candidate) and item.weights == "embedded" and item.train is None
        if embedded and recipe.data.source != "fashion":
            classes = f"embedded weights know the classes of source fashion, not those of {recipe.data.source}"
            message = f"{classes}: leave them out, or train them further (train)"
            yield Finding((*keys, "weights"), message, sections=frozenset({"teacher", "data"}))


def _data_contradictions(recipe: Recipe) -> Iterator[Finding]:
    data, judged = recipe.data, frozenset({"data"})
    if data.source in ROOTS and data.root is None:
        message = f"missing; source: {data.source} needs it: {ROOTS[data.source]}"
        yield Finding(("data", "root"), message, "key", judged)
    if data.source == "fashion" and data.root is not None:
        message = "is not read, because the images of source: fashion are embedded"
        yield Finding(("data", "root"), f"{message}; leave it out, or name another source", sections=judged)
    if data.source in STREAMED and data.views not in ("resized_crop", "none"):
        message = f"images of {data.source} are decoded in training, with resized_crop or none"
        yield Finding(("data", "augment"), f"{message}; {data.augment} is for decoded arrays", sections=judged)
    yield from _unlabelled_mistakes(recipe)
    if data.group is not None:
        wrong = "only source: folder has paths to group images by; leave it out" if data.source != "folder" else None
        if wrong := wrong or group_setting.mistake(data.group):
            yield Finding(("data", "group"), wrong, sections=judged)
    if wrong := _crop_scale_mistake(data):
        yield Finding(("data", "crop_scale"), wrong, sections=judged)
    for name in ("bits", "labels"):
        if getattr(data, name) is not None and data.source != "folder":
            message = f"is read only for source: folder, not for {data.source}: leave it out"
            yield Finding(("data", name), message, sections=judged)
    if data.shards_at_once is not None and data.source != "webdataset":
        message = f"images of {data.source} are not in shards: leave it out"
        yield Finding(("data", "shards_at_once"), message, sections=judged)


def _unlabelled_mistakes(recipe: Recipe) -> Iterator[Finding]:
    data, judged = recipe.data, frozenset({"data", "distill"})
    wrong = method_checks.unlabelled_mistake(recipe.distill)
    if data.labelled is not None:
        if data.source in STREAMED:
            wrong = f"images of {data.source} are decoded in training, where all have their label"
        if wrong:
            yield Finding(("data", "labelled"), f"leaves images without a label, but {wrong}", sections=judged)
    if data.unlabelled is not None:
        if data.source != "folder":
            message = f"is read only for source: folder, not for {data.source}: leave it out"
            yield Finding(("data", "unlabelled"), message, sections=judged)
        elif data.group is not None:
            message = "adds images whose group is not known, so they may show what a test image shows"
            yield Finding(("data", "unlabelled"), f"{message}; leave it or data.group out", sections=judged)
        elif wrong:
            yield Finding(("data", "unlabelled"), f"adds images without a label, but {wrong}", sections=judged)


def _crop_scale_mistake(data: Data) -> str | None:
    if data.crop_scale is None:
        return None
    if data.views != "resized_crop":
        return f"is of resized_crop, but data.augment is {data.views}; leave it out, or choose augment: resized_crop"
    low, high = data.crop_scale
    return f"the smallest part must not exceed the largest, got {low:g} and {high:g}" if low > high else None


def _distortion_mistakes(recipe: Recipe) -> Iterator[Finding]:
    """Check jitter and RandAugment, which make many forms of an image, while `augment: none` allows one."""
    for name, asked in (("color_jitter", recipe.data.color_jitter), ("rand_augment", recipe.data.rand_augment)):
        message = ""
        if name == "color_jitter" and asked is not None and not any(asked.model_dump().values()):
            message = "changes nothing: give brightness, contrast, saturation or hue a range above 0"
        elif asked is not None and recipe.data.views == "none":
            one = "distorts training views, but data.augment is none, so each image has one view"
            message = f"{one}; choose crop_flip, crop, flip or resized_crop"
        if message:
            yield Finding(("data", name), message, sections=frozenset({"data"}))


def _training_contradictions(recipe: Recipe) -> Iterator[Finding]:
    for keys, train, epochs, scratch in _trainings(recipe):
        section = str(keys[0])
        if train.batch_norm == "frozen" and scratch:
            message = "keeps the statistics of pretrained weights, but this training starts from scratch (weights)"
            yield Finding((*keys, "batch_norm"), message, sections=frozenset({section, "student"}))
        if train.probe is True and scratch:
            message = "fits a layer to the features of pretrained weights, but this training starts from scratch"
            yield Finding((*keys, "probe"), f"{message} (weights)", sections=frozenset({section, "student"}))
        for below, message in _train_mistakes(train, epochs):
            excuse = (*keys, "epochs") if below[-1] == "milestones" else ()
            yield Finding((*keys, *below), message, sections=frozenset({section}), excuse=excuse)
        alone = section == "teacher" or any(one.method in (("none",), ("simkd",)) for one in recipe.distill.candidates)
        if train.trace_gradients is not None and alone:
            message = "compares the gradients of two losses, but this training has only one loss"
            yield Finding((*keys, "trace_gradients"), message, sections=frozenset({section, "distill"}))
        if train.class_weights not in (None, "none") and section == "train" and not has_task_loss(recipe.distill):
            message = f"weighs the cross-entropy, which {recipe.distill.method[0]} leaves out; leave the weights out"
            yield Finding((*keys, "class_weights"), message, sections=frozenset({section, "distill"}))
        if train.sampling == "balanced":
            yield from _sampling_mistakes(keys, train, recipe)
        message = ""
        if train.views is not None and recipe.data.source in STREAMED:
            message = (
                f"lets cached teacher logits be reused, but none are cached for {recipe.data.source}: leave it out"
            )
        elif train.views is not None and recipe.data.views == "none":
            message = "limits the augmentation, but data.augment is none"
        if message:
            yield Finding((*keys, "views"), message, sections=frozenset({section, "data"}))


def _sampling_mistakes(keys: Keys, train: Train, recipe: Recipe) -> Iterator[Finding]:
    section = str(keys[0])
    if train.class_weights == "balanced":
        message = "balances the classes, as train.sampling: balanced does already; choose one of the two"
        yield Finding((*keys, "class_weights"), message, sections=frozenset({section}))
    if section == "train" and "crd" in recipe.distill.method:
        message = "shows an image several times in a batch, but crd remembers one embedding of each"
        both = frozenset({section, "distill"})
        yield Finding((*keys, "sampling"), f"{message}; use class_weights, or another method", sections=both)


def _deployment_contradictions(recipe: Recipe) -> Iterator[Finding]:
    for name, asked in (("min_int8_mac_share", "integer kernels"), ("min_int8_speedup", "int8")):
        if recipe.quantize.scheme == "none" and getattr(recipe.require, name) is not None:
            message = f"asks for {asked}, but quantize.scheme is none"
            yield Finding(("require", name), message, sections=frozenset({"quantize", "require"}))
    elsewhere = [method for method in recipe.distill.method if method in method_checks.SHIP_ANOTHER]
    if recipe.quantize.scheme == "qat" and elsewhere:
        other = f"{' and '.join(elsewhere)} compares another network with the teacher"
        message = f"qat trains the network that ships, but {other}; use scheme: static, or another method"
        yield Finding(("quantize", "scheme"), message, sections=frozenset({"quantize", "distill"}))
    if recipe.device.name.startswith("browser") and recipe.validate_.sustained_seconds:
        message = "is not run in a browser, which device.target names; leave it out"
        yield Finding(("validate", "sustained_seconds"), message, sections=frozenset({"validate", "device"}))


def _proxy_contradictions(recipe: Recipe) -> Iterator[Finding]:
    distill, judged = recipe.distill, frozenset({"distill", "teacher"})
    chosen_by_proxy = recipe.teacher.select == "proxy"
    if chosen_by_proxy and recipe.train.metric not in (None, "top1"):
        message = f"{recipe.train.metric} cannot choose the teacher by proxy, which compares image by image; use "
        both = frozenset({"train", "teacher"})
        yield Finding(("train", "metric"), f"{message}teacher.select: best, or metric: top1", sections=both)
    if distill.method == ("auto",) and recipe.train.metric not in (None, "top1"):
        message = f"{recipe.train.metric} cannot choose the method, whose trials are compared image by image; use "
        both = frozenset({"train", "distill"})
        yield Finding(("train", "metric"), f"{message}metric: top1, or name the method", sections=both)
    if chosen_by_proxy and distill.method == ("auto",) and len(recipe.teacher.candidates) > 1:
        message = "distils with the recipe's method, but distill.method: auto chooses it for a given teacher"
        yield Finding(("teacher", "select"), f"{message}; use select: best, or name a method", sections=judged)
    tried = any("fitnet" in one.method for one in distill.candidates) and distill.fitnet.mode == "two_stage"
    hint, spent = distill.fitnet.hint_epochs, f"fitnet's hint (hint_epochs: {distill.fitnet.hint_epochs})"
    if chosen_by_proxy and tried and hint >= recipe.teacher.proxy.epochs:
        message = f"the proxy's {recipe.teacher.proxy.epochs} epochs are all spent on {spent}"
        yield Finding(("teacher", "proxy", "epochs"), message, sections=judged)
    trial = distill.trials.epochs
    if distill.method == ("auto",) and tried and trial is not None and hint >= trial:
        message = f"the {trial} epochs of a trial are all spent on {spent}"
        yield Finding(("distill", "auto", "epochs"), message, sections=frozenset({"distill"}))


def _trainings(recipe: Recipe) -> list[tuple[Keys, Train, int, bool]]:
    """Return every training with its number of epochs, and whether it may start from scratch."""
    found: list[tuple[Keys, Train, int, bool]] = []
    for number, candidate in enumerate(recipe.teacher.candidates):
        if candidate.onnx is None and candidate.train is not None:
            default = default_epochs(pretrained=candidate.weights != "none", scratch_epochs=CANDIDATE_EPOCHS)
            keys: Keys = ("teacher", "candidates", number, "train")
            found.append((keys, candidate.train, candidate.train.epochs or default, candidate.weights == "none"))
    scratch = any(one.weights == "none" for one in recipe.student.networks)
    epochs = recipe.train.epochs or default_epochs(pretrained=not scratch)
    return [*found, (("train",), recipe.train, epochs, scratch)]


def _train_mistakes(train: Train, epochs: int) -> Iterator[tuple[Keys, str]]:
    schedule = train.schedule
    if train.optimizer == "adamw" and train.nesterov:
        yield ("nesterov",), "is a setting of sgd, but train.optimizer is adamw; leave it out"
    if list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield ("schedule", "milestones"), f"must ascend, got {', '.join(map(str, schedule.milestones))}"
    if schedule.warmup_epochs and schedule.warmup_epochs >= epochs:
        message = f"the warm-up ({schedule.warmup_epochs:g} epochs) must be shorter than the training ({epochs})"
        yield ("schedule", "warmup_epochs"), message
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if schedule.kind == "step" and late:
        message = f"{', '.join(map(str, late))} would have no effect: the training has {epochs} epochs"
        yield ("schedule", "milestones"), message


def remarks(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Find what is allowed and probably not meant."""
    data = recipe.data
    if data.workers is not None and data.source not in STREAMED:
        message = f"images of {data.source} are decoded once, before training"
        yield ("data", "workers"), f"data.workers is not read: {message}"
    if data.download and data.source not in ("cifar10", "cifar100"):
        message = f"there is nothing to download for source {data.source}"
        yield ("data", "download"), f"data.download is not read: {message}"
    for keys, item in networks_of(recipe):
        yield from _network_remarks(keys, item, data.side)
    if recipe.teacher.select == "proxy" and recipe.distill.plain and len(recipe.teacher.candidates) > 1:
        compared = "the candidates are compared by their own accuracy, not by proxy"
        yield ("teacher", "select"), f"no teacher is needed (distill.method: none), so {compared}"
    if recipe.distill.plain and recipe.distill.baseline:
        message = "the student is trained without a teacher already (method: none), so the baseline adds nothing"
        yield ("distill", "baseline"), message
    yield from _image_remarks(recipe)


def _image_remarks(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Find where images leave the machine after all, or where a number of them is not read."""
    if not recipe.shows_images and recipe.bundles_images:
        message = "the report holds no image, but the bundle beside it holds test images; bundle.images: synthetic"
        yield ("report", "images"), f"{message} draws some instead"
    if not recipe.bundles_images and recipe.device.photos and "photos" in recipe.device.model_fields_set:
        message = "the bundle holds no image of yours (bundle.images: synthetic)"
        yield ("device", "photos"), f"device.photos is not read: {message}"


def _network_remarks(keys: Keys, item: Candidate | Choice, size: int) -> Iterator[tuple[Keys, str]]:
    if isinstance(item, Candidate) and item.expect_top1 is None and item.train is None:
        file = item.onnx or (item.weights if catalog.is_checkpoint(item.weights) else "")
        if file:
            known = f"say what accuracy {Path(file).name} is known to reach (expect_top1)"
            message = f"{known}, so that a wrong input is noticed before hours of training"
            yield (*keys, "onnx" if item.onnx else "weights"), message
    size = (item.image_size if isinstance(item, Candidate) else None) or size
    if item.model in catalog.NETWORKS and size >= LARGE_IMAGES and catalog.NETWORKS[item.model].family == "cifar":
        wide = f"torchvision/{item.model}"
        hint = f"; {wide} is meant for this size" if wide in catalog.NETWORKS else ""
        yield (*keys, "model"), f"{item.model} is a network for small images and slow at {size} pixels{hint}"
