"""Photo folders as people have them are read as they are meant, or refused with what was found."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import MissingError, StageError, UsageError
from compress.core.records.training import Prepared
from compress.data import load_images, load_labels
from compress.data.sources import folder, inspection, prepare
from compress.recipe import schema
from tests.support.cases import folders


def prepared(root: Path, work: Path, **keys: object) -> Prepared:
    config = schema.Data(root=str(root), **{"source": "folder", "image_size": 14, **keys})  # type: ignore[arg-type]
    return prepare.prepare_data(config, work, base=Path("/"), report=lambda line: None)


def counts(root: Path) -> tuple[tuple[str, ...], list[int], list[int] | None]:
    """Return the classes that a scan finds, with the images of each in both parts."""
    layout = folder.scan(root)
    train, test = (
        None if part is None else np.bincount([image.label for image in part]).tolist()
        for part in (layout.train, layout.test)
    )
    return layout.classes, train, test


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("names", folders.PARTS, ids="-".join)
def test_parts_are_found_by_a_word_in_any_case(tmp_path: Path, names: tuple[str, ...], nested: bool) -> None:
    root = folders.parts(tmp_path, names, nested)
    assert counts(root) == (("a", "b", "c"), [12] * 3, [4] * 3)
    assert folder.scan(root).unused == (("Valid",) if "Valid" in names else ())


def test_parts_within_a_wrapper_of_any_depth(tmp_path: Path) -> None:
    folders.parts(tmp_path / "chest" / "data", ("train", "test"))
    (tmp_path / "chest" / "readme.txt").write_text("from a hospital")
    assert counts(tmp_path)[1:] == ([12] * 3, [4] * 3)
    assert folder.scan(tmp_path).notes == ("chest/data: the only folder in its place, so it was entered",)


def test_a_test_part_without_labels_is_not_used(tmp_path: Path) -> None:
    folders.parts(tmp_path, ("train",))
    for place in ("test1", "pred"):
        folders.save(tmp_path / place / "0.jpg", 0)
    layout = folder.scan(tmp_path)
    assert layout.test is None and layout.unused == ("pred", "test1")
    assert layout.notes == ("test1: its images are in no class sub-folders, so it is not used",)


def test_a_training_part_alone_is_split(tmp_path: Path) -> None:
    assert counts(folders.parts(tmp_path, ("Train",))) == (("a", "b", "c"), [12] * 3, None)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("bus", "train", "tram"), 3),  # a class can be a train
        (("invalid", "valid"), 2),
        (("contest", "trainer", "valley"), 3),
        (("unripe", "overripe"), 2),
    ],
)
def test_classes_that_are_named_like_parts(tmp_path: Path, names: tuple[str, ...], found: int) -> None:
    for number, name in enumerate(names):
        folders.save(tmp_path / name / "0.jpg", number)
    assert len(counts(tmp_path)[0]) == found


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train/0.jpg", "test/1.jpg"], "test and train hold no class sub-folders, so the classes of their images are"),
        (["cat/0.jpg", "dog/1.jpg", "Test/2.jpg"], "'Test' is beside class sub-folders"),
        (["Testing/cat/0.jpg", "Testing/dog/1.jpg"], "there is Testing but no train sub-folder"),
        (
            ["train_a/cat/0.jpg", "train_a/dog/1.jpg", "train_b/cat/2.jpg", "train_b/dog/3.jpg"],
            "train_a and train_b are both training parts",
        ),
        (
            [f"{fold}/{name}/0.jpg" for fold in ("fold1", "fold2") for name in ("cat", "dog")],
            r"fold1, fold2 hold nothing but sub-folders of the same names \(cat, dog\), .* name the parts train",
        ),
        (
            [f"{domain}/images/{name}/0.jpg" for domain in ("amazon", "webcam") for name in ("bike", "mug")],
            r"amazon, webcam hold nothing but sub-folders of the same names \(bike, mug\)",
        ),
        (
            [f"{name}/{part}/0.jpg" for name in ("cat", "dog") for part in ("train", "test")],
            r"cat, dog hold nothing but .* \(test, train\), .* put the parts above the classes: train/CLASS",
        ),
    ],
)
def test_a_layout_that_is_no_list_of_classes_is_refused_with_what_was_found(
    tmp_path: Path, files: list[str], sentence: str
) -> None:
    for number, name in enumerate(files):
        folders.save(tmp_path / name, number)
    with pytest.raises(UsageError, match=sentence):
        folder.scan(tmp_path)


def test_images_of_each_class_may_lie_in_one_folder_below_it(tmp_path: Path) -> None:
    for number, name in enumerate(("n01", "n02")):
        folders.save(tmp_path / "train" / name / "images" / "0.jpg", number)
        (tmp_path / "train" / name / "boxes.txt").write_text("0 0 1 1")
    assert counts(tmp_path)[1] == [1, 1]


def test_one_folder_around_all_is_entered_and_what_a_mac_adds_is_left_out(tmp_path: Path) -> None:
    root = folders.wrapped(tmp_path / "set")
    made = prepared(root, tmp_path / "work")
    assert made.classes == ("cat", "dog") and made.unreadable == ()
    assert len(load_labels(made.train_labels)) + len(load_labels(made.test_labels)) == 24
    assert "PetImages: the only folder in its place, so it was entered" in made.warnings


def test_a_folder_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "again").symlink_to(".")
    with pytest.raises(UsageError, match="a classifier needs at least two"):
        folder.scan(tmp_path / "set")


def test_class_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    root = folders.unicode_names(tmp_path / "set")
    made = prepared(root, tmp_path / "work")
    assert made.classes == ("Brötchen", "Käse") == tuple(unicodedata.normalize("NFC", name) for name in made.classes)
    assert np.bincount(load_labels(made.train_labels)).tolist() == [10, 10]
    assert np.bincount(load_labels(made.test_labels)).tolist() == [10, 10]


def test_the_streaming_layout_compares_names_alike(tmp_path: Path) -> None:
    root = folders.unicode_names(tmp_path / "set")
    (root / "test").rename(root / "val")
    made = prepared(root, tmp_path / "work", source="imagenet")
    assert made.classes == ("Brötchen", "Käse") and len(load_labels(made.test_labels)) == 20


def test_names_that_differ_only_in_form_case_or_space(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Käse")
    for number, name in enumerate(("Käse", decomposed, "cat", "Cat ", "dog")):
        folders.save(tmp_path / "train" / name / "0.jpg", number)
    layout = folder.scan(tmp_path)
    assert layout.classes == ("Cat ", "Käse", "cat", "dog") and len(layout.train) == 5
    assert layout.notes == (
        f"the folders {f'train/{decomposed}'!r} and 'train/Käse' are one class: they differ only in their Unicode form",
        "the classes 'Cat ' and 'cat' differ only in case or space; if they are one class, put their images into one "
        "folder",
    )


def test_a_test_folder_may_write_a_class_in_another_case(tmp_path: Path) -> None:
    for number, name in enumerate(("train/Cat", "train/Dog", "test/cat ", "test/dog")):
        folders.save(tmp_path / name / "0.jpg", number)
    assert counts(tmp_path) == (("Cat", "Dog"), [1, 1], [1, 1])
    assert folder.scan(tmp_path).notes[0] == "test/cat : taken for class 'Cat', which differs only in case or space"


def test_every_raster_format_is_read_by_content(tmp_path: Path) -> None:
    root = folders.suffixes(tmp_path / "set")
    made = prepared(root, tmp_path / "work")
    assert len(load_labels(made.train_labels)) + len(load_labels(made.test_labels)) == 2 * (1 + len(folders.KINDS))
    assert made.unreadable == () and not any("not images" in sentence for sentence in made.warnings)


def test_a_class_that_loses_more_than_a_tenth_of_its_files_is_refused(tmp_path: Path) -> None:
    root = folders.classes(tmp_path / "set", 12)
    for number in range(2):
        (root / "a" / f"clip{number}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    config = schema.Data(source="folder", root=str(root))
    with pytest.raises(UsageError, match=r"2 of 14 files of class 'a' .*: 2 \.mp4 .*max_unreadable=0\.15$"):
        inspection.early_warnings(config, Path("/"))
    with pytest.raises(UsageError, match="2 of 14 files"):
        prepared(root, tmp_path / "work")
    made = prepared(root, tmp_path / "work", max_unreadable=0.15)
    assert any(sentence.startswith("2 files are not images") for sentence in made.warnings)


def test_what_lies_beside_images_is_no_loss(tmp_path: Path) -> None:
    root = folders.classes(tmp_path / "set", 12)
    for number in range(12):
        (root / "a" / f"{number}.xml").write_text("<box/>")
        (root / "a" / f"note{number}.txt").write_bytes("Grüße".encode("latin-1"))
        (root / "b" / f"{number}.MOV").write_bytes(bytes(100))  # of a live photo
        folders.save(root / "c" / f"{number}.NEF", 9000 + number, kind="TIFF")  # a camera's raw file begins like TIFF
    (root / "c" / "Thumbs.db").write_bytes(bytes(100))
    made = prepared(root, tmp_path / "work")
    assert len(load_labels(made.train_labels)) + len(load_labels(made.test_labels)) == 36 and made.unreadable == ()


def test_heic_photos_name_the_package_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    root = folders.classes(tmp_path / "set", 12)
    for number in range(3):
        (root / "a" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(MissingError, match=r"3 of 15 files of class 'a' .*: pip install pillow-heif$"):
        prepared(root, tmp_path / "work")
    for path in (root / "a").glob("*.jpg"):
        path.unlink()
    with pytest.raises(MissingError, match=r"all 3 files of class 'a' are HEIC images; .*: pip install pillow-heif$"):
        folder.scan(root)


def test_thumbnails_of_a_nas_are_left_out(tmp_path: Path) -> None:
    root = folders.nas(tmp_path / "set")
    made = prepared(root, tmp_path / "work")
    assert len(load_labels(made.train_labels)) + len(load_labels(made.test_labels)) == 16
    assert "2 folders of the system left out (first: cat/@eaDir)" in made.warnings
    (root / "@eaDir").mkdir()
    assert folder.scan(root).classes == ("cat", "dog")


def test_a_small_set_with_broken_files_is_read(tmp_path: Path) -> None:
    root = folders.one_broken(tmp_path / "set")
    made = prepared(root, tmp_path / "work")
    assert sorted(image.path for image in made.unreadable) == ["cat/empty.jpg", "dog/cut.jpg"]
    assert any(sentence.startswith("2 of 42 images cannot be read and are skipped") for sentence in made.warnings)
    with pytest.raises(StageError, match=r"2 of 42 images .* allows .*--set data\.max_unreadable=0\.05$"):
        prepared(root, tmp_path / "work", max_unreadable=0)


def test_a_class_of_which_more_than_a_tenth_is_broken_is_refused(tmp_path: Path) -> None:
    root = folders.classes(tmp_path / "set", 12)
    for number in range(20):
        folders.save(root / "b" / f"more{number}.jpg", 7000 + number)
    for number in range(4):
        (root / "a" / f"page{number}.jpg").write_text(f"<html>not found {number}</html>")
    with pytest.raises(StageError, match="4 of 60 images cannot be read"):
        prepared(root, tmp_path / "work")
    with pytest.raises(StageError, match=r"4 of 16 images of class 'a' .*--set data\.max_unreadable=0\.25$"):
        prepared(root, tmp_path / "work", max_unreadable=0.07)
    assert len(prepared(root, tmp_path / "work", max_unreadable=0.25).unreadable) == 4


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_more_than_8_bits_are_scaled_by_one_range_for_the_whole_set(tmp_path: Path, kind: str) -> None:
    root = folders.twelve_bit(tmp_path / "set", kind)
    made = prepared(root, tmp_path / "work")
    assert made.value_range == (0, 4096)
    assert any(
        re.match(r"\d+ training images have more than 8 bits; values from 0 to 4096 become 0 to 255", sentence)
        for sentence in made.warnings
    )
    images, labels = load_images(made.test_images), load_labels(made.test_labels)
    for label, top in enumerate((3900, 1200)):  # thick, thin
        assert abs(images[labels == label].mean() - top / 16) < 3


def test_bits_name_the_range(tmp_path: Path) -> None:
    root = folders.twelve_bit(tmp_path / "set")
    made = prepared(root, tmp_path / "work", bits=16)
    assert made.value_range == (0, 65536) and load_images(made.train_images).max() < 16
    assert any("nearly black" in sentence for sentence in (*made.warnings, *made.cautions))
    plain, named = (
        inspection.fingerprint(schema.Data(source="folder", root=str(root), bits=bits), Path("/"))
        for bits in (None, 12)
    )
    assert plain != named


def test_a_set_of_8_bits_has_no_range(tmp_path: Path) -> None:
    made = prepared(folders.classes(tmp_path / "set", 5), tmp_path / "work")
    assert made.value_range is None and not any("bits" in sentence for sentence in made.warnings)


def listed(tmp_path: Path, text: str) -> folder.FolderLayout:
    """Scan a folder whose list holds `text`, beside four images."""
    for number in range(4):
        folders.save(tmp_path / "photos" / f"{number}.jpg", number)
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8-sig"))
    return folder.scan(tmp_path, "list.csv")


def test_a_list_names_files_and_labels(tmp_path: Path) -> None:
    root = folders.listed(tmp_path / "set")
    made = prepared(root, tmp_path / "work", labels="labels.csv")
    assert made.classes == ("cat", "dog")
    assert len(load_labels(made.train_labels)) + len(load_labels(made.test_labels)) == 60
    images, labels = load_images(made.test_images).astype(int), load_labels(made.test_labels)
    red = images[..., 0] > images[..., 1] + 80
    assert red[labels == 0].all() and not red[labels == 1].any()
    with pytest.raises(UsageError, match=r"or name a list of images .*: --set data\.labels=labels\.csv$"):
        folder.scan(root)
    layout = folder.scan(root, "labels.csv")
    assert layout.columns is not None and layout.columns["patient"]["images/img000.jpg"] == "p0"
    config = schema.Data(source="folder", root=str(root), labels="labels.csv")
    before = inspection.fingerprint(config, Path("/"))
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace("img000.jpg,cat", "img000.jpg,dog"))
    assert inspection.fingerprint(config, Path("/")) != before


@pytest.mark.parametrize(
    "text",
    [
        "Label;Path\ncat;photos/0.jpg\ndog;photos/1.jpg\ncat;photos/2.jpg\ndog;photos/3.jpg\n",
        "image\tclass\r\nphotos\\0.jpg\tcat\r\nphotos/1.jpg\tdog\r\n\r\nphotos/2.jpg\tcat \r\nphotos/3.jpg\tdog\r\n",
        'file,label,note\n"photos/0.jpg",cat,"a, b"\nphotos/1.jpg,dog\nphotos/2.jpg,cat,\nphotos/3.jpg,dog,\n',
    ],
)
def test_columns_may_have_another_order_name_and_separator(tmp_path: Path, text: str) -> None:
    layout = listed(tmp_path, text)
    assert layout.classes == ("cat", "dog") and layout.test is None
    assert [(image.path, image.label) for image in layout.train] == [
        *(("photos/0.jpg", 0), ("photos/2.jpg", 0), ("photos/1.jpg", 1), ("photos/3.jpg", 1))
    ]


def test_a_list_may_name_parts(tmp_path: Path) -> None:
    rows = ["split,file,label", "Train,photos/0.jpg,a", "TRAIN,photos/1.jpg,b", "val,photos/2.jpg,a"]
    layout = listed(tmp_path, "\n".join(rows))
    assert layout.test is not None and [image.path for image in layout.test] == ["photos/2.jpg"]
    layout = listed(tmp_path, "\n".join([*rows, "test,photos/3.jpg,b"]))
    assert layout.test is not None and [image.path for image in layout.test] == ["photos/3.jpg"]
    assert layout.notes == ("part val of the list is not used: 1 images",)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("file,label\nphotos/0.jpg,a\nphotos/1.jpg,\n", UsageError, r"1 row has no label \(first: line 3\)"),
        ("name,label\nphotos/0.jpg,a\n", UsageError, r"has no column 'file' \(also accepted: path, image"),
        ("file,label\nphotos/0.jpg,a\nphotos/0.jpg,b\n", UsageError, "line 3: photos/0.jpg has label 'b' here and 'a'"),
        ("file,label\nphotos/0.jpg,a\nphotos/1.jpg,a\n", UsageError, "all rows have label 'a'"),
        ("file,label\n", UsageError, "holds no rows"),
        ("file,label\n0.jpg,a\n1.jpg,b\n", MissingError, r"2 of 2 listed files do not exist \(first: 0.jpg\)"),
        ("file,label,part\nphotos/0.jpg,a,train\nphotos/1.jpg,b,left\n", UsageError, "is in part 'left'"),
        ("file,label,part\nphotos/0.jpg,a,train\nphotos/1.jpg,b,test\n", UsageError, "class 'b' has no rows in part"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, text: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        listed(tmp_path, text)


def test_a_list_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"labels\.csv is not a file; .*--set data\.labels=FILE\.csv$"):
        folder.scan(tmp_path, "labels.csv")
