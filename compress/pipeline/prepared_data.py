"""The data of a run: decoded once for every recipe, and the part of it that training may read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress.core.records.training import DecodedValidation, NearDuplicates, Prepared, TrainingData
from compress.core.store import Store
from compress.data.sources import inspection
from compress.pipeline.networks import normalized
from compress.recipe.schema import Data
from compress.stages import data
from compress.stages.data import DECODE_VALIDATION, FIND_OVERLAP, PREPARE


def prepare(config: Data, base: Path, store: Store) -> tuple[Prepared, TrainingData]:
    """Decode the data of a recipe, or find it in the store.

    Args:
        config: The recipe's `data` section.
        base: The recipe's folder, which its paths are relative to.
        store: Of the run.

    Returns:
        The decoded data, and what training may read.
    """
    found = {name: absolute(base, getattr(config, name)) for name in ("root", "unlabelled")}
    # The recipe's folder is no part of the key, so its paths are absolute from here on.
    config = config.model_copy(update={name: str(path) if path else None for name, path in found.items()})
    fingerprint = inspection.fingerprint(config, Path())
    # What does not change the decoded arrays stays out of the key.
    keyed = config.model_copy(
        update={
            "validation": 0.1,
            "calibration": 512,
            "normalize": None,
            "download": False,
            "workers": None,
            "labelled": None,
        }
    )
    keyed = keyed.model_copy(update={"color_jitter": None, "rand_augment": None, "shards_at_once": None})
    keyed = keyed.model_copy(update={"crop_scale": None})
    prepared: Prepared = store.run(PREPARE, keyed, fingerprint=fingerprint)
    training = data.training(prepared, config)
    if training.streamed is not None:
        held: DecodedValidation = store.run(
            DECODE_VALIDATION, None, label="validation", data=training.evaluated, fingerprint=fingerprint
        )
        training = data.training(prepared, config, held)
    if config.normalize is not None:
        prepared = replace(prepared, normalization=normalized(config.normalize))
    return prepared, training


def absolute(base: Path, path: str | None) -> Path | None:
    """Return a path of the recipe in the folder `base`, `~` expanded and links resolved; None without one."""
    return (base / Path(path).expanduser()).resolve() if path else None


def near_duplicates(prepared: Prepared, training: TrainingData, store: Store) -> NearDuplicates | None:
    """Count near-duplicates across parts; None for published sets and for those that stay in their files."""
    if prepared.source not in ("folder", "npz"):
        return None
    found: NearDuplicates = store.run(
        FIND_OVERLAP, None, label="near-duplicates", prepared=prepared, training=training.evaluated
    )
    return found
