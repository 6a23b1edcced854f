"""Photos in class folders: layouts, unreadable files, duplicates, links, what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.core.errors import CompressError, MissingError, StageError, UsageError
from compress.core.records.training import Prepared
from compress.data import decode, load_images, load_labels
from compress.data.sources import folder, inspection, prepare
from compress.data.sources.folder_files import FORMATS
from compress.recipe import schema

RED, BLUE = (220, 20, 20), (20, 20, 220)


def save(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """Save an image of one colour with a little noise, so that no two files are equal."""
    noise = np.random.default_rng(seed).integers(-8, 9, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def two_classes(root: Path, part: str, count: int, seed: int = 0) -> None:
    for label, (name, colour) in enumerate({"red": RED, "blue": BLUE}.items()):
        for number in range(count):
            save(root / part / name / f"{number}.png", colour, seed + 100 * label + number)


def prepared(root: Path, work: Path, **keys: object) -> tuple[Prepared, list[str]]:
    lines: list[str] = []
    config = schema.Data(source="folder", root=str(root), **{"image_size": 14, **keys})  # type: ignore[arg-type]
    return prepare.prepare_data(config, work, base=Path("/"), report=lines.append), lines


def test_train_and_test_folders(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 6)
    two_classes(tmp_path / "set", "val", 3, seed=50)
    made, lines = prepared(tmp_path / "set", tmp_path / "work")
    train, test = load_images(made.train_images), load_images(made.test_images)
    assert made.classes == ("blue", "red") and made.augment == "resized_crop" and made.unreadable == ()
    assert train.shape == (12, 16, 16, 3) and test.shape == (6, 14, 14, 3)  # 16 = 14 * 256 / 224: room for crops
    assert load_labels(made.train_labels).tolist() == [0] * 6 + [1] * 6
    assert np.all(train[:6, ..., 2] > 180) and np.all(train[6:, ..., 0] > 180)
    assert made.normalization.mean == pytest.approx(train.reshape(-1, 3).mean(0) / 255, abs=1e-4)
    assert made.normalization.std == pytest.approx(train.reshape(-1, 3).std(0) / 255, abs=1e-4)
    assert made.warnings == ("class 'blue' has only 6 images",)
    assert lines == ["data: 12 train images of 2 classes, 16x16", "data: 6 test images of 2 classes, 14x14"]


def test_a_test_folder_beside_classes_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path, ".", 4)
    save(tmp_path / "test" / "red" / "0.png", (255, 0, 0), 0)
    with pytest.raises(UsageError, match="'test' is beside class sub-folders"):
        prepared(tmp_path, tmp_path / "work")


def test_evaluation_is_the_centre_of_what_is_stored(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RED, 0, (72, 48))
    stored = decode.decode_image((tmp_path / "a.png").read_bytes(), 16)
    with Image.open(tmp_path / "a.png") as image:
        # Short side to 16, then the centre.
        expected = image.resize((24, 16), Image.Resampling.BILINEAR).crop((4, 0, 20, 16))
    assert np.array_equal(stored, np.asarray(expected))
    two_classes(tmp_path / "set", "train", 2)
    two_classes(tmp_path / "set", "test", 1, seed=9)
    made, _ = prepared(tmp_path / "set", tmp_path / "work")
    whole = decode.decode_image((tmp_path / "set/test/blue/0.png").read_bytes(), 16)
    assert np.array_equal(load_images(made.test_images)[0], whole[1:15, 1:15])


def test_a_test_part_is_carved_by_content(tmp_path: Path) -> None:
    two_classes(tmp_path / "a", "", 30)
    first, _ = prepared(tmp_path / "a", tmp_path / "work_a", test=0.3)
    for path in sorted((tmp_path / "a").rglob("*.png")):  # the same images under other names
        target = tmp_path / "b" / path.parent.name / f"{29 - int(path.stem)}_renamed.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    second, _ = prepared(tmp_path / "b", tmp_path / "work_b", test=0.3)
    assert 9 <= len(load_labels(first.test_labels)) <= 27  # 0.3 of 60, give or take four standard deviations

    def contents(made: Prepared) -> set[bytes]:
        return {image.tobytes() for image in load_images(made.test_images)}

    assert contents(first) == contents(second)
    other, _ = prepared(tmp_path / "a", tmp_path / "work_c", test=0.3, split_seed=1)
    assert contents(other) != contents(first)
    smaller, _ = prepared(tmp_path / "a", tmp_path / "work_d", test=0.1)
    assert contents(smaller) < contents(first)
    for number in range(30):
        save(tmp_path / "a" / "red" / f"new{number}.png", RED, 5000 + number)
    grown, _ = prepared(tmp_path / "a", tmp_path / "work_e", test=0.3)
    assert contents(first) < contents(grown)  # no image has moved


def test_the_carved_part_is_the_same_at_every_image_size_and_in_every_lossless_format(tmp_path: Path) -> None:
    two_classes(tmp_path / "a", "", 12)
    first, _ = prepared(tmp_path / "a", tmp_path / "work_a", test=0.4)
    for path in sorted((tmp_path / "a").rglob("*.png")):
        target = (tmp_path / "b" / path.parent.name / path.name).with_suffix(".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    second, _ = prepared(tmp_path / "b", tmp_path / "work_b", test=0.4, image_size=28)

    def stems(made: Prepared) -> list[str]:
        assert made.test_names is not None
        return sorted(name.rpartition(".")[0] for name in np.load(made.test_names.path))

    assert stems(first) == stems(second)


def test_a_class_with_few_test_images_is_named_with_what_fixes_it(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "", 8)
    made, _ = prepared(tmp_path / "set", tmp_path / "work", test=0.25)
    (warning,) = (text for text in made.cautions if "fewer than 5 test images" in text)
    assert "'blue'" in warning and "test/CLASS" in warning and "data.labels" in warning


def test_an_empty_test_part_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "", 3)
    with pytest.raises(UsageError, match="data.split_seed"):
        for seed in range(20):  # a few of them leave all six images on one side
            prepared(tmp_path / "set", tmp_path / f"work{seed}", test=0.34, split_seed=seed)


def break_some(folder: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:4000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image", encoding="utf-8")


def test_unreadable_images_are_named_counted_and_skipped(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 12)
    two_classes(tmp_path / "set", "test", 2, seed=50)
    break_some(tmp_path / "set/train/red")
    made, _ = prepared(tmp_path / "set", tmp_path / "work", max_unreadable=0.2)
    reasons = {image.path: image.reason for image in made.unreadable}
    assert set(reasons) == {"train/red/cut.png", "train/red/empty.jpg", "train/red/text.jpg"}
    assert reasons["train/red/empty.jpg"] == "the file is empty"
    assert reasons["train/red/text.jpg"] == "not an image that Pillow can read"
    assert "truncated" in reasons["train/red/cut.png"]
    assert (
        np.bincount(load_labels(made.train_labels)).tolist() == [12, 12] and len(load_images(made.train_images)) == 24
    )
    assert made.warnings[-1].startswith("3 of 31 images cannot be read and are skipped (train/red/cut.png: ")


def test_too_many_unreadable_images_stop_the_stage(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 12)
    two_classes(tmp_path / "set", "test", 2, seed=50)
    break_some(tmp_path / "set/train/red")
    (tmp_path / "set/train/blue/more.png").write_bytes(b"")  # three files are always tolerated
    with pytest.raises(
        StageError,
        match=r"^data: 4 of 32 images cannot be read, more than data\.max_unreadable 0\.05 allows "
        r"\(train/blue/more\.png: .*; repair or remove them, or leave them out: --set data\.max_unreadable=0\.13$",
    ) as caught:
        prepared(tmp_path / "set", tmp_path / "work", max_unreadable=0.05)
    assert caught.value.exit_code == 4


def test_a_class_without_a_readable_image_stops_the_stage(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 3)
    two_classes(tmp_path / "set", "test", 1, seed=50)
    (tmp_path / "set/test/red/0.png").write_bytes(b"")
    with pytest.raises(StageError, match="none of the test images of class 'red' can be read"):
        prepared(tmp_path / "set", tmp_path / "work", max_unreadable=0.5)


def test_a_decompression_bomb_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(tmp_path / "set", "train", 3)
    two_classes(tmp_path / "set", "test", 3, seed=50)
    # Pillow warns above its limit, and refuses above twice of it.
    for number, size in enumerate([(60, 60), (90, 90)]):
        save(tmp_path / f"set/train/red/huge{number}.png", RED, 99, size)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    made, _ = prepared(tmp_path / "set", tmp_path / "work", max_unreadable=0.5)
    assert [(image.path, image.reason) for image in made.unreadable] == [
        ("train/red/huge1.png", "more than 178 megapixels"),
    ]


def test_the_same_image_in_train_and_test_is_dropped_from_training(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 4)
    two_classes(tmp_path / "set", "test", 2, seed=50)
    for number in range(2):
        (tmp_path / f"set/train/blue/copy{number}.png").write_bytes((tmp_path / "set/test/blue/0.png").read_bytes())
    made, _ = prepared(tmp_path / "set", tmp_path / "work")
    assert np.bincount(load_labels(made.train_labels)).tolist() == [4, 4] and len(load_labels(made.test_labels)) == 4
    assert "2 training images are also in the test part (same bytes); left out of training" in made.warnings


def test_copies_of_an_image_stay_on_one_side_of_a_carved_split(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "", 10)
    for number in range(10):
        (tmp_path / f"set/red/copy{number}.png").write_bytes((tmp_path / f"set/red/{number}.png").read_bytes())
    made, _ = prepared(tmp_path / "set", tmp_path / "work", test=0.4, image_size=28)
    train = {image[2:-2, 2:-2].tobytes() for image in load_images(made.train_images)}
    assert load_images(made.train_images).shape[1:3] == (32, 32)
    assert not train & {image.tobytes() for image in load_images(made.test_images)}
    assert np.bincount(load_labels(made.test_labels))[1] % 2 == 0
    assert not any("also in the test part" in said for said in made.warnings)


def test_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 20)
    two_classes(tmp_path / "set", "test", 1, seed=50)
    for name in ("notes.txt", "b.heic", "A.HEIC", "Makefile", ".DS_Store", "._0.png"):
        (tmp_path / "set/train/red" / name).write_text("x", encoding="utf-8")
    save(tmp_path / "set/train/red/deeper/more.png", RED, 77)
    save(tmp_path / "set/val/red/unused.png", RED, 78)
    (tmp_path / "set/.hidden").mkdir()
    made, _ = prepared(tmp_path / "set", tmp_path / "work")
    assert np.bincount(load_labels(made.train_labels)).tolist() == [20, 21]
    found = "2 .heic, 1 without a suffix, 1 .txt (first: train/red/A.HEIC)"
    assert (
        made.warnings[0]
        == f"4 files are not images ({FORMATS}), left out: {found}; to read HEIC: pip install pillow-heif"
        and "sub-folders not used: val" in made.warnings
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_links_and_pipes_among_the_images(tmp_path: Path) -> None:
    """A link upwards would merge all classes, a pipe would block, and a broken link is an unreadable image."""
    two_classes(tmp_path / "set", "train", 30)
    two_classes(tmp_path / "set", "test", 3, seed=500)
    red = tmp_path / "set" / "train" / "red"
    (red / "up").symlink_to("..")
    (red / "self").symlink_to(".")
    (tmp_path / "beside").mkdir()
    save(tmp_path / "beside" / "more.png", RED, 900)
    (red / "there").symlink_to(tmp_path / "beside")
    os.mkfifo(red / "pipe.jpg")
    (red / "gone.jpg").symlink_to("nowhere.jpg")
    inspection.fingerprint(schema.Data(source="folder", root=str(tmp_path / "set")), Path("/"))

    made, _ = prepared(tmp_path / "set", tmp_path / "work", max_unreadable=0.1)
    assert load_labels(made.train_labels).tolist() == [0] * 30 + [1] * 31
    assert [one.path for one in made.unreadable] == ["train/red/gone.jpg"]
    assert (
        f"1 file is not an image ({FORMATS}), left out: 1 pipe or device (first: train/red/pipe.jpg)" in made.warnings
    )


def test_a_link_into_another_classs_folder_is_not_followed(tmp_path: Path) -> None:
    """Images count for the class whose folder holds them, at any depth, and once if two classes link to them."""
    two_classes(tmp_path / "set", "train", 12)
    two_classes(tmp_path / "set", "test", 3, seed=500)
    save(tmp_path / "set/train/red/deep/0.png", RED, 800)
    save(tmp_path / "beside" / "more.png", RED, 900)
    config = schema.Data(source="folder", root=str(tmp_path / "set"))
    before = inspection.fingerprint(config, Path("/"))
    (tmp_path / "set/train/blue/loop").symlink_to("../red")
    assert inspection.fingerprint(config, Path("/")) != before  # else a reused result would not report the link
    (tmp_path / "set/train/blue/into").symlink_to("../red/deep")
    (tmp_path / "set/train/red/back").symlink_to("../blue")
    for name in ("blue", "red"):
        (tmp_path / "set/train" / name / "same").symlink_to(tmp_path / "beside")
    made, _ = prepared(tmp_path / "set", tmp_path / "work")
    assert np.bincount(load_labels(made.train_labels)).tolist() == [13, 13]
    assert made.warnings == (
        "4 folders lead to images of another class, which count only there (first: train/blue/into, to class 'red')",
    )


def test_two_classes_in_one_folder_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "", 4)
    (tmp_path / "set" / "ruby").symlink_to("red")
    with pytest.raises(
        UsageError,
        match=r"set/ruby: is a link to the folder of class 'red', so its images would count for both classes; "
        r"remove the link",
    ):
        folder.scan(tmp_path / "set")
    (tmp_path / "set" / "ruby").rename(tmp_path / "set" / "apple")
    with pytest.raises(UsageError, match=r"set/apple: is a link to the folder of class 'red'"):
        folder.scan(tmp_path / "set")
    (tmp_path / "set" / "apple").unlink()
    (tmp_path / "set" / "apple").mkdir()
    (tmp_path / "set" / "apple" / "loop").symlink_to("../red")
    with pytest.raises(UsageError, match=r"of class 'apple', and apple/loop leads to class 'red'; add some"):
        folder.scan(tmp_path / "set")


def test_the_same_file_in_two_classes_is_a_warning(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 12)
    two_classes(tmp_path / "set", "test", 3, seed=500)
    for name in ("blue", "red"):
        (tmp_path / "set/train" / name / "empty.png").write_bytes(b"")  # unreadable, so it is no duplicate
    alone, _ = prepared(tmp_path / "set", tmp_path / "one", max_unreadable=0.1)
    assert not any("in two classes" in said for said in alone.cautions) and not any(
        "also in the test part" in said for said in alone.warnings
    )
    (tmp_path / "set/train/red/copy.png").write_bytes((tmp_path / "set/train/blue/3.png").read_bytes())
    made, _ = prepared(tmp_path / "set", tmp_path / "two", max_unreadable=0.1)
    assert (
        "1 image is in two classes with the same bytes (first: train/blue/3.png and train/red/copy.png)"
        in made.cautions
    )
    (tmp_path / "set/test/red/copy.png").write_bytes((tmp_path / "set/train/blue/4.png").read_bytes())
    made, _ = prepared(tmp_path / "set", tmp_path / "three", max_unreadable=0.1)
    assert (
        "2 images are in two classes with the same bytes (first: train/blue/3.png and train/red/copy.png)"
        in made.cautions
    )


def test_limits_are_stratified(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 8)
    two_classes(tmp_path / "set", "test", 4, seed=50)
    made, _ = prepared(tmp_path / "set", tmp_path / "work", limit_train=6, limit_test=4)
    assert np.bincount(load_labels(made.train_labels)).tolist() == [3, 3]
    assert np.bincount(load_labels(made.test_labels)).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("files", "kind", "sentence"),
    [
        ([], MissingError, r"is not a folder; .*: compress run RECIPE --set data\.root=FOLDER$"),
        (["red/0.png"], UsageError, "1 class sub-folder, but a classifier needs at least two"),
        (["loose.png"], UsageError, "0 class sub-folders, but a classifier needs at least two"),
        (
            ["red/0.png", "blue/1.mp4"],
            UsageError,
            r"no images \(JPEG, .*\) of class 'blue', only 1 .mp4 \(first: blue/1.mp4\); add some",
        ),
        (["train/red/0.png", "train/blue/1.png", "test/red/2.png"], UsageError, "no sub-folder for class 'blue'"),
        (
            ["train/red/0.png", "train/blue/1.png", "test/red/2.png", "test/blue/3.png", "test/green/4.png"],
            UsageError,
            "class 'green' is not in",
        ),
        (["test/red/0.png", "val/red/1.png"], UsageError, "there is test and val but no train sub-folder"),
        (["red/0.png", "blue/1.png", "blue/2.png"], UsageError, "class 'red' has only one distinct image"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: list[str], kind: type[CompressError], sentence: str) -> None:
    for seed, name in enumerate(files):
        if name.endswith(".png"):
            save(tmp_path / "set" / name, RED, seed)
        else:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_text("x", encoding="utf-8")
    with pytest.raises(kind, match=sentence):
        prepared(tmp_path / "set", tmp_path / "work")


def test_two_runs_write_the_same_bytes_and_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    two_classes(tmp_path / "set", "train", 3)
    two_classes(tmp_path / "set", "test", 2, seed=50)
    first, _ = prepared(tmp_path / "set", tmp_path / "one")
    second, _ = prepared(tmp_path / "set", tmp_path / "two")
    assert (
        first.train_images.sha256 == second.train_images.sha256
        and first.test_images.sha256 == second.test_images.sha256
    )
    config = schema.Data(source="folder", root="set", image_size=14)
    before = inspection.fingerprint(config, tmp_path)
    assert before == inspection.fingerprint(config.model_copy(update={"calibration": 7, "validation": 0.3}), tmp_path)
    save(tmp_path / "set/train/red/0.png", BLUE, 1234)
    assert inspection.fingerprint(config, tmp_path) != before


@pytest.mark.parametrize("place", ["set/test", "set/train/green", "set/test/red"])
def test_a_link_that_leads_nowhere_is_not_left_out_in_silence(tmp_path: Path, place: str) -> None:
    two_classes(tmp_path / "set", "train", 6)
    if place == "set/test/red":
        two_classes(tmp_path / "set", "test", 3, seed=50)
        for path in (tmp_path / place).iterdir():
            path.unlink()
        (tmp_path / place).rmdir()
    (tmp_path / place).symlink_to(tmp_path / "unmounted")
    with pytest.raises(MissingError, match="is a link to .*unmounted, which is not there; mount it, or remove"):
        folder.scan(tmp_path / "set")


def test_parts_of_unknown_names_are_seen_though_their_classes_differ_in_case(tmp_path: Path) -> None:
    for number, place in enumerate(("Lernen/Katze", "Lernen/Hund", "Pruefung/katze", "Pruefung/hund")):
        save(tmp_path / place / "0.png", RED, number)
    with pytest.raises(UsageError, match="they look like parts of the set rather than classes"):
        folder.scan(tmp_path)


def test_a_jpeg_named_like_heic_is_an_image(tmp_path: Path) -> None:
    two_classes(tmp_path, "train", 6)
    content = io.BytesIO()
    Image.new("RGB", (30, 30), RED).save(content, "JPEG")
    (tmp_path / "train/red/phone.HEIC").write_bytes(content.getvalue())
    assert "train/red/phone.HEIC" in [one.path for one in folder.scan(tmp_path).train]


def test_float_images_are_carved_by_their_values(tmp_path: Path) -> None:
    for label, name in enumerate(("nok", "ok")):
        (tmp_path / name).mkdir()
        for number in range(20):
            values = np.random.default_rng(100 * label + number).random((12, 12), dtype=np.float32)
            Image.fromarray(values, "F").save(tmp_path / name / f"{number}.tif")
    from compress.data.sources.folder_split import split_folder

    split = split_folder(tmp_path, folder.scan(tmp_path), 0.25, 0)
    assert len(split.train) + len(split.test) == 40 and 3 <= len(split.test) <= 20
