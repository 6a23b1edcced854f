"""Groups of images: how they are named, that no split divides one, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.core.errors import UsageError
from compress.core.records.training import Prepared
from compress.data import groups, load_groups, load_images, training_arrays
from compress.data.sources import inspection, prepare
from compress.data.splits import carve
from compress.recipe import group_setting, loader, schema
from compress.stages import data as stage
from tests.support.clip_folders import CLIP, write_clips

PATHS = ("good/clip00_000.png", "good/clip00_001.png", "good/clip01_000.png", "bad/clip00_000.png")


def named(setting: str, paths: tuple[str, ...] = PATHS, **more: object) -> list[str]:
    return list(groups.group_images(setting, Path("/nowhere"), paths, **more).names)  # type: ignore[arg-type]


def test_a_pattern_names_groups_by_its_first_group_or_the_whole_match() -> None:
    assert named(CLIP) == ["good/clip00", "good/clip00", "good/clip01", "bad/clip00"]
    assert named(r"clip\d+") == ["clip00", "clip00", "clip01", "clip00"]
    assert named(r"clip(99)?(\d+)") == ["clip00", "clip00", "clip01", "clip00"]  # the first group took no part


def test_an_image_without_a_match_is_a_group_of_its_own_and_said() -> None:
    found = groups.group_images(r"clip\d+", Path(), (*PATHS, "bad/other.png", "bad/third.png"))
    assert len(set(found.names)) == 4
    assert found.warnings[0].affects_verdict
    assert "2 of 6 images are a group of their own" in str(found.warnings[0]) and "bad/other.png" in str(
        found.warnings[0]
    )
    with pytest.raises(UsageError, match="matches no path below data.root"):
        named("patient")


def test_parent_is_the_innermost_folder() -> None:
    assert named("parent", ("train/cat/p7/a.jpg", "test/cat/p7/b.jpg", "cat/c.jpg")) == ["p7", "p7", "cat"]


def test_a_column_needs_a_list_of_labels() -> None:
    with pytest.raises(UsageError, match="data.labels"):
        named("column:patient")
    columns = {"patient": ("p1", "p1", "", "p2")}
    assert named("column:patient", columns=columns) == ["p1", "p1", "alone: good/clip01_000.png", "p2"]
    with pytest.raises(UsageError, match="no column 'clip'; there are patient"):
        named("column:clip", columns=columns)


def photo(path: Path, time: str | None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if time:
        exif.get_ifd(0x8769)[0x9003] = time
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path.name


def test_a_time_gap_cuts_a_series(tmp_path: Path) -> None:
    times = ["2026:05:01 10:00:00", "2026:05:01 10:00:08", "2026:05:01 10:00:16", "2026:05:01 10:01:00", None]
    paths = [photo(tmp_path / f"{number}.jpg", time) for number, time in enumerate(times)]
    found = groups.group_images("time_gap:10", tmp_path, paths)
    assert found.names[0] == found.names[1] == found.names[2] and len(set(found.names)) == 3
    assert "no EXIF time" in str(found.warnings[0])
    assert len(set(groups.group_images("time_gap:5", tmp_path, paths).names)) == 5
    with pytest.raises(UsageError, match="no image below"):
        groups.group_images("time_gap:5", tmp_path, [photo(tmp_path / "x.jpg", None)])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("clip(", "not a regular expression"),
        ("time_gap:soon", "number of seconds"),
        ("time_gap:0", "above 0"),
        ("column:", "name of a column"),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(tmp_path: Path, setting: str, words: str) -> None:
    assert words in (group_setting.mistake(setting) or "")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"data: {{source: folder, root: ., group: '{setting}'}}\n"
        "teacher: {candidates: [{model: resnet20}]}\nstudent: {model: mobilenet_v2}\n"
    )
    with pytest.raises(Exception, match=f"r.yaml:1:.*data.group: .*{words}"):
        loader.load(recipe, ())


def test_other_sources_have_no_groups(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {source: fashion, group: parent}\n"
        "teacher: {candidates: [{model: resnet20}]}\nstudent: {model: mobilenet_v2}\n"
    )
    with pytest.raises(Exception, match="data.group: only source: folder"):
        loader.load(recipe, ())


def prepared(root: Path, work: Path, **keys: object) -> tuple[Prepared, schema.Data]:
    config = schema.Data(source="folder", root=str(root), image_size=28, **keys)  # type: ignore[arg-type]
    return prepare.prepare_data(config, work, base=Path("/"), report=lambda line: None), config


def test_clips_stay_on_one_side_of_every_split(tmp_path: Path) -> None:
    made, config = prepared(write_clips(tmp_path / "clips"), tmp_path / "work", group=CLIP)
    assert made.train_groups is not None and made.test_groups is not None and made.test_names is not None
    train, test = load_groups(made.train_groups), load_groups(made.test_groups)
    assert not set(train) & set(test) and len(set(train) | set(test)) == 20
    assert len(test) == 20 * len(set(test)) and 1 <= len(set(test)) <= 9  # a fifth of 20 clips, by their names' hashes
    record = stage.training(made, config)
    _, labels, train_index, validation_index = training_arrays(record)
    assert not set(train[train_index]) & set(train[validation_index])
    assert set(labels[validation_index]) == {0, 1}
    assert len(train_index) + len(validation_index) == len(train)
    names = np.load(made.test_names.path)
    assert [name.rpartition("_")[0] for name in names] == test.tolist()
    assert stage.test(made).groups == made.test_groups


def test_clips_without_a_group_lie_on_both_sides(tmp_path: Path) -> None:
    """The reason for all this."""
    made, _ = prepared(write_clips(tmp_path / "clips"), tmp_path / "work")
    clips = [{name.rpartition("_")[0] for name in np.load(file.path)} for file in (made.train_names, made.test_names)]  # type: ignore[union-attr]
    assert len(clips[0] & clips[1]) >= 18 and made.train_groups is None and made.test_groups is None


def test_a_clip_in_two_named_parts_is_said_beside_the_verdict(tmp_path: Path) -> None:
    made, _ = prepared(write_clips(tmp_path / "c", parts=("train", "test")), tmp_path / "work", group=CLIP)
    assert any("20 groups are in the training and the test part" in text for text in made.cautions)
    assert len(load_images(made.test_images)) == 200  # as the folders say


def test_groups_enter_a_key_only_where_they_are_set(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "clips", clips=2, frames=2)
    plain, grouped = (
        schema.Data(source="folder", root=str(root), group=group)  # type: ignore[arg-type]
        for group in (None, CLIP)
    )
    assert inspection.fingerprint(plain, Path()) != inspection.fingerprint(grouped, Path())


def test_whole_groups_are_drawn_near_the_share() -> None:
    labels = np.repeat([0, 1], 300)
    member = np.array([f"g{number // 15}" for number in range(600)])
    train, validation = carve(labels, 0.2, 0, groups=member)
    assert not set(member[train]) & set(member[validation]) and len(train) + len(validation) == 600
    assert np.abs(np.bincount(labels[validation]) - 60).max() <= 15
    again, other = carve(labels, 0.2, 0, groups=member), carve(labels, 0.2, 1, groups=member)
    assert again[1].tolist() == validation.tolist() != other[1].tolist()


def test_groups_with_images_of_several_classes_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 3, 900), rng.integers(0, 60, 900).astype(str)
    train, validation = carve(labels, 0.1, 0, groups=patients)
    assert not set(patients[train]) & set(patients[validation])
    assert 60 <= len(validation) <= 120 and set(labels[validation]) == {0, 1, 2}


def test_a_class_in_one_group_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="class 'dog' are in one group"):
        carve(np.array([0, 0, 1, 1]), 0.5, 0, ("cat", "dog"), np.array(["a", "b", "c", "c"]))


def test_a_pattern_in_the_names_is_suggested() -> None:
    paths = [f"{name}/clip{clip:02d}_{frame:03d}.png" for name in "ab" for clip in range(5) for frame in range(8)]
    pairs = list(zip(paths[::8], paths[1::8], strict=True))
    setting = groups.suggest(pairs, paths)
    assert setting is not None and len(set(groups.group_images(setting, Path(), paths).names)) == 10
    below = [f"{name}/visit{clip}/{frame}x.png" for name in "ab" for clip in range(5) for frame in range(8)]
    assert groups.suggest(list(zip(below[::8], below[1::8], strict=True)), below) == "parent"


def test_no_pattern_is_suggested_where_names_only_count() -> None:
    paths = [f"{name}/IMG_{number:04d}.jpg" for name in ("cat", "dog") for number in range(50)]
    assert groups.suggest([(paths[0], paths[7]), (paths[60], paths[61])], paths) is None


def test_a_pattern_that_is_the_class_is_not_suggested() -> None:
    """Names as `bluebell/image_0241.jpg`: what stands before the number is one group a class."""
    paths = [f"{name}/image_{number:04d}.jpg" for name in "abcdef" for number in range(20)]
    assert groups.suggest([(paths[0], paths[7]), (paths[60], paths[61])], paths, "abcdef") is None
