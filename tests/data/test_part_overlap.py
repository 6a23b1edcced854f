"""Near-duplicates across the parts of a prepared set: counts, names, the pattern that would separate them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.core.records.training import NearDuplicates
from compress.data.part_overlap import find_overlap, overlap_warnings
from compress.data.sources import prepare
from compress.recipe import schema
from compress.stages import data as stage
from tests.support.clip_folders import CLIP, write_clips


def searched(root: Path, work: Path, **keys: object) -> NearDuplicates:
    config = schema.Data(source="folder", root=str(root), image_size=32, **keys)  # type: ignore[arg-type]
    made = prepare.prepare_data(config, work, base=Path("/"), report=lambda line: None)
    return find_overlap(made, stage.training(made, config), work)


def test_clips_on_both_sides_are_found_and_the_pattern_is_named(tmp_path: Path) -> None:
    found = searched(write_clips(tmp_path / "clips"), tmp_path / "work")
    assert found.test == found.test_images > 40 and found.validation == found.validation_images > 20
    assert found.group == r"([^/]+/[^/]+)_\d+"
    (warning,) = overlap_warnings(found)
    assert warning.affects_verdict and found.group in str(warning) and "accuracy may be too high" in str(warning)
    with np.load(found.examples.path) as shown:
        assert shown["first"].shape == shown["second"].shape and len(shown["first"]) == len(shown["first_name"]) == 12
        for first, second in zip(shown["first_name"], shown["second_name"], strict=True):
            assert first != second and first.rpartition("_")[0] == second.rpartition("_")[0]
        assert np.abs(shown["first"].astype(int) - shown["second"]).mean() < 5


def test_the_named_pattern_leaves_none(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips")
    first = searched(root, tmp_path / "first")
    for name, group in (("own", CLIP), ("suggested", first.group)):
        found = searched(root, tmp_path / name, group=group)
        assert (found.test, found.validation, found.group) == (0, 0, None) and found.test_images > 0
        assert overlap_warnings(found) == []


def test_few_copies_of_photos_without_a_pattern_are_to_be_removed() -> None:
    found = NearDuplicates(3, 500, 0, 100, None, examples=None)  # type: ignore[arg-type]
    (warning,) = overlap_warnings(found)
    assert "3 of 500 test images have a near-duplicate" in str(warning) and "remove them" in str(warning)
