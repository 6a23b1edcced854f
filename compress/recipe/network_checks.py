"""Checks of the networks that a recipe names, against the catalogue. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compress.core.errors import UsageError
from compress.models import catalog
from compress.recipe.error_messages import did_you_mean
from compress.recipe.schema import Candidate, Choice, Recipe
from compress.recipe.yaml_parser import Keys


def wrong_networks(data: Any, *, allow_code: bool) -> Iterator[tuple[Keys, str]]:
    """Find network names that the catalogue does not have, and keys that stand beside another way to name a network.

    Raw values are checked, so that these mistakes are reported together with those of the schema.

    Args:
        data: the recipe's plain values, not yet checked.
        allow_code: whether networks may be the user's own Python code.

    Yields:
        The key and the message of each mistake.
    """
    yield from _beside_choose(data.get("student"))
    for keys, item in _named_networks(data):
        if not isinstance(item, dict):
            continue
        name = item.get("model")
        if keys[0] == "teacher" and item.get("onnx") is not None:
            beside = [key for key in ("model", "width", "weights", "train") if item.get(key) not in (None, "", "none")]
            if beside:
                yield (*keys, beside[0]), f"stands beside onnx, which is the whole teacher: leave {beside[0]} out"
        elif keys[0] == "teacher" and not name:
            yield (*keys, "model"), "missing; it has no default"
        elif isinstance(name, str) and catalog.is_custom(name):
            if not allow_code:
                allow = "read it, then allow it on the command line: --allow-code"
                yield (*keys, "model"), f"{name} is Python code that would be run; {allow}"
        elif isinstance(name, str) and name.startswith(catalog.TIMM) and "." in name:
            plain, _, tag = name.partition(".")
            yield (*keys, "model"), f"{name} names weights too: write model: {plain} and weights: {tag}"
        elif isinstance(name, str) and not catalog.is_known(name):
            wide = f"torchvision/{name}"
            hint = f" (did you mean {wide!r}?)" if wide in catalog.NETWORKS else did_you_mean(name, catalog.NETWORKS)
            yield (*keys, "model"), f"there is no network {name!r}{hint}; `compress models` lists all"


def _beside_choose(student: Any) -> Iterator[tuple[Keys, str]]:
    """Check that a student is named in exactly one way: by `model`, or by `choose`."""
    if not isinstance(student, dict):
        return
    if student.get("choose") is None and student.get("model") is None:
        yield ("student", "model"), "missing; it has no default"
    elif isinstance(student.get("choose"), dict):
        beside = [key for key in ("model", "width", "weights") if student.get(key) not in (None, "none")]
        if beside:
            message = f"put {beside[0]} into its list, or leave choose out"
            yield ("student", beside[0]), f"stands beside student.choose, which picks the network: {message}"


def _named_networks(data: Any) -> list[tuple[Keys, Any]]:
    """Return the raw sections that name a network: the student, its choices, the teacher's candidates."""
    teacher, student = data.get("teacher"), data.get("student")
    found: list[tuple[Keys, Any]] = [(("student",), student)]
    if isinstance(student, dict) and isinstance(student.get("choose"), dict):
        options = student["choose"].get("from")
        if isinstance(options, list):
            found += [(("student", "choose", "from", number), item) for number, item in enumerate(options)]
    listed = teacher.get("candidates") if isinstance(teacher, dict) else None
    if isinstance(listed, list):
        found += [(("teacher", "candidates", number), item) for number, item in enumerate(listed)]
    return found


def networks_of(recipe: Recipe) -> list[tuple[Keys, Candidate | Choice]]:
    """Return the teacher's candidates and the networks that may become the student, each with its key."""
    candidates: list[tuple[Keys, Candidate | Choice]] = [
        (("teacher", "candidates", number), item) for number, item in enumerate(recipe.teacher.candidates)
    ]
    chosen = recipe.student.choose is not None
    students: list[tuple[Keys, Candidate | Choice]] = [
        (("student", "choose", "from", number) if chosen else ("student",), item)
        for number, item in enumerate(recipe.student.networks)
    ]
    return [*candidates, *students]


def network_mistakes(item: Candidate | Choice, size: int) -> Iterator[tuple[Keys, str]]:
    """Find values that do not fit the network which they stand beside. `size`: data.image_size in pixels."""
    if isinstance(item, Candidate) and item.onnx is not None:
        if item.classes is not None and len(set(item.classes)) < len(item.classes):
            yield ("classes",), "a name is there twice"
    if item.taps is not None and not catalog.is_custom(item.model):
        known = f"those of {item.model or 'an ONNX file'} are known, or there are none"
        yield ("taps",), f"only your own network names its stages; {known}"
    if item.weights_key is not None and not catalog.is_checkpoint(item.weights):
        yield ("weights_key",), f"chooses among the weights of a file, but weights is {item.weights}: leave it out"
    if isinstance(item, Candidate) and item.output is not None and item.onnx is None:
        yield ("output",), "names a tensor of an ONNX file, but the candidate has none: leave it out"
    if not catalog.is_known(item.model):
        return
    info = catalog.info(item.model)
    own = item.image_size if isinstance(item, Candidate) else None
    if info.min_size > (own or size):
        given = f"its image_size is {own}" if own else f"data.image_size is {size}"
        yield ("model",), f"{info.name} needs images of at least {info.min_size} pixels, but {given}"
    if isinstance(item, Candidate):
        yield from _class_mistakes(item)
    try:
        catalog.resolve_width(info, item.width)
    except UsageError as error:
        yield ("width",), str(error).removeprefix("width: ")
    words = (*(("none", "embedded") if isinstance(item, Candidate) else ("none",)), *info.pretrained)
    tag = catalog.is_timm(item.model) and catalog.is_tag(item.weights)  # timm knows which there are
    if item.weights not in words and not tag and not catalog.is_checkpoint(item.weights):
        expected = f"{', '.join(words)} or a file ({', '.join(catalog.CHECKPOINT_SUFFIXES)})"
        yield ("weights",), f"expected {expected}, got {item.weights!r}{did_you_mean(item.weights, words)}"
    if isinstance(item, Candidate) and item.expect_top1 is not None and item.weights == "none":
        yield ("expect_top1",), "is the accuracy that a checkpoint must reach, but weights is none"


def _class_mistakes(item: Candidate) -> Iterator[tuple[Keys, str]]:
    """Check the names that a candidate gives to its outputs."""
    if item.classes is None:
        return
    if item.train is not None or item.weights in ("none", "embedded"):
        trained = "a network that is trained here has the data's classes"
        yield ("classes",), f"names the outputs of a finished checkpoint; {trained}"
    twice = next((name for name in item.classes if item.classes.count(name) > 1), None)
    if twice is not None:
        yield ("classes",), f"{twice!r} is there twice"
