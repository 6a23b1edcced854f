"""Checks of the distillation methods against a recipe's other keys. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.core.plural import agree
from compress.models import catalog
from compress.recipe.schema import Candidate, Choice, Distill, Train
from compress.recipe.yaml_parser import Keys

# The weights of each method's losses, the cross-entropy's first.
WEIGHTS = {
    "dhkd": ("gamma", "alpha"),
    "kd": ("ce", "kd"),
    "dkd": ("ce", "alpha", "beta"),
    "dist": ("ce", "inter", "intra"),
    "fitnet": ("ce", "hint"),
    "at": ("ce", "at"),
    "rkd": ("ce", "distance", "angle"),
    "crd": ("ce", "crd"),
    "ofd": ("ce", "ofd"),
    "reviewkd": ("ce", "weight"),
}
# Methods that ship another form of the student than the one that is trained.
SHIP_ANOTHER = frozenset({"simkd", "catkd"})
# Methods whose losses need a label for every image.
NEED_LABELS = frozenset({"dkd", "crd"})
# Methods that read more than logits and the pooled vector.
READ_MAPS = frozenset({"fitnet", "at", "ofd", "reviewkd", "simkd", "catkd"})


def unlabelled_mistake(distill: Distill) -> str | None:
    """Return what is wrong with training this method on images without a label; None: nothing."""
    readers = [method for one in distill.candidates for method in one.method if method in NEED_LABELS]
    if not readers:
        return None
    return f"{' and '.join(readers)} {agree(len(readers), 'needs', 'need')} a label for every image"


def has_task_loss(distill: Distill) -> bool:
    """Return whether the cross-entropy on the labels, which is the first method's, counts in training."""
    first = distill.method[0]
    return first == "none" or getattr(distill.settings(first), WEIGHTS.get(first, ("ce",))[0], 0) > 0


def mistakes(
    distill: Distill, train: Train, networks: Sequence[tuple[Keys, Candidate | Choice]]
) -> Iterator[tuple[Keys, str, frozenset[str]]]:
    """Find settings of the methods that cannot work; `compatibility.check_pairs` checks built networks.

    Args:
        distill: the methods and their settings.
        train: the student's training.
        networks: the named networks, each with its key.

    Yields:
        The key, the message, and the sections that it was judged from.
    """
    for one in distill.candidates:
        yield from _mistakes(one, train, networks)


def _mistakes(
    distill: Distill, train: Train, networks: Sequence[tuple[Keys, Candidate | Choice]]
) -> Iterator[tuple[Keys, str, frozenset[str]]]:
    methods = distill.method
    named = [
        (method, names if place == 0 else names[1:])
        for place, method in enumerate(methods)
        for names in [WEIGHTS.get(method, ())]
    ]
    if all(names and all(getattr(distill.settings(method), name) == 0 for name in names) for method, names in named):
        names = [name if len(methods) == 1 else f"{method}.{name}" for method, names in named for name in names]
        yield (
            ("distill",),
            f"{' and '.join(names)} are {'both' if len(names) == 2 else 'all'} 0: nothing would be learnt",
            frozenset({"distill"}),
        )
    readers = [method for method in methods if method in READ_MAPS]
    for keys, item in networks:
        info = catalog.NETWORKS.get(item.model)
        if readers and info is not None and info.roles is None:
            read = f"{' and '.join(readers)} {agree(len(readers), 'reads', 'read')} feature maps"
            message = f"{read}, which the catalogue does not name for {item.model}"
            yield (*keys, "model"), f"{message}; choose another network or method", frozenset({str(keys[0]), "distill"})
    fitnet, epochs = distill.fitnet, train.epochs
    if "fitnet" in methods and fitnet.mode == "two_stage" and epochs is not None and fitnet.hint_epochs >= epochs:
        message = f"{fitnet.hint_epochs} epochs of the hint alone leave none of train.epochs ({epochs}) for the rest"
        yield ("distill", "fitnet", "hint_epochs"), message, frozenset({"distill", "train"})
