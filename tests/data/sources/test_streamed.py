"""ImageNet's layout and shards: what is listed, what is decoded, what is refused."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import MissingError, StageError, UsageError
from compress.core.records.training import Prepared
from compress.data import load_images, load_labels
from compress.data.sources import imagenet, inspection, prepare
from compress.data.streaming.listing import Listing, ListingSpec, decode_evaluation_view
from compress.recipe import schema
from tests.support import image_stand_in


def config(source: str, root: Path, **keys: object) -> schema.Data:
    return schema.Data(source=source, root=str(root), image_size=28, **keys)  # type: ignore[arg-type]


def prepared(source: str, root: Path, work: Path, **keys: object) -> tuple[Prepared, Listing]:
    made = prepare.prepare_data(config(source, root, **keys), work, base=Path("/"), report=lambda text: None)
    assert made.root is not None and made.paths is not None
    return made, Listing(ListingSpec(made.root, made.train_images.path, made.paths.path, 28))


def fingerprint_of(source: str, root: Path) -> str:
    return inspection.fingerprint(config(source, root), Path("/"))


def test_imagenet_lists_training_images_and_decodes_the_test_part(tmp_path: Path) -> None:
    root = image_stand_in.folders(tmp_path / "set", train=5, val=2)
    made, listing = prepared("imagenet", root, tmp_path / "work")
    assert (
        made.classes == image_stand_in.WNIDS
        and made.augment == "resized_crop"
        and made.normalization.mean == (0.485, 0.456, 0.406)
    )
    assert load_labels(made.train_labels).tolist() == [0] * 5 + [1] * 5 + [2] * 5 and len(listing) == 15
    assert listing.path(7) == root / "train" / "n01443537" / "n01443537_train_002.JPEG"
    assert load_images(made.test_images).shape == (6, 28, 28, 3) and load_labels(made.test_labels).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert [root / path for path in imagenet.paths(root, "train")] == [listing.path(number) for number in range(15)]
    expected = decode_evaluation_view((root / "val" / "n02102040" / "n02102040_val_001.JPEG").read_bytes(), 28)
    assert np.array_equal(load_images(made.test_images)[5], expected)
    assert np.array_equal(
        listing[np.array([7])][0], decode_evaluation_view(listing.path(7).read_bytes(), 28)
    ) and listing[np.array([], int)].shape == (0, 28, 28, 3)


def test_shards_give_the_same_images_as_folders(tmp_path: Path) -> None:
    folders, listing = prepared("imagenet", image_stand_in.folders(tmp_path / "set", train=5, val=2), tmp_path / "a")
    root = image_stand_in.shards(tmp_path / "shards", train=5, val=2, each=4)
    (root / "classes.txt").write_text("tench\ngoldfish\nspaniel\n")
    sharded, other = prepared("webdataset", root, tmp_path / "b")
    assert sharded.classes == ("tench", "goldfish", "spaniel") and len(list(root.glob("train-*.tar"))) == 4
    assert np.array_equal(load_labels(folders.train_labels), load_labels(sharded.train_labels))
    every = np.arange(15)
    assert np.array_equal(listing[every], other[every])
    assert np.array_equal(load_images(folders.test_images), load_images(sharded.test_images))
    measured = listing[every].reshape(-1, 3).mean(0) / 255
    assert sharded.normalization.mean == pytest.approx(measured, abs=1e-4)  # no published constants for shards


def test_limits_are_stratified(tmp_path: Path) -> None:
    made, listing = prepared(
        "imagenet",
        image_stand_in.folders(tmp_path / "set", train=5, val=3),
        tmp_path / "w",
        limit_train=6,
        limit_test=3,
    )
    assert load_labels(made.train_labels).tolist() == [0, 0, 1, 1, 2, 2] and load_labels(made.test_labels).tolist() == [
        0,
        1,
        2,
    ]
    assert [listing.path(place).parent.name for place in (0, 2, 4)] == list(image_stand_in.WNIDS)


def test_a_touched_image_is_listed_again_but_retrains_nothing(tmp_path: Path) -> None:
    root = image_stand_in.folders(tmp_path / "set", train=3, val=1)
    before, (made, listing) = fingerprint_of("imagenet", root), prepared("imagenet", root, tmp_path / "a")
    path = listing.path(0)
    os.utime(path, ns=(1, 1))
    assert (
        fingerprint_of("imagenet", root) != before
        and prepared("imagenet", root, tmp_path / "b")[0].train_images.sha256 == made.train_images.sha256
    )
    path.write_bytes(path.read_bytes() + b"more")
    assert prepared("imagenet", root, tmp_path / "c")[0].train_images.sha256 != made.train_images.sha256
    shards = image_stand_in.shards(tmp_path / "shards", train=3, val=1)
    first = fingerprint_of("webdataset", shards)
    os.utime(shards / "val-000000.tar", ns=(1, 1))
    assert fingerprint_of("webdataset", shards) != first


def flat(root: Path) -> None:
    for path in list((root / "val").glob("*/*.JPEG")):
        path.rename(root / "val" / path.name)
    for wnid in image_stand_in.WNIDS:
        (root / "val" / wnid).rmdir()


def packed(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "ILSVRC2012_img_val.tar").write_bytes(b"")


def other_class(root: Path) -> None:
    (root / "val" / image_stand_in.WNIDS[0]).rename(root / "val" / "n09999999")


def empty_class(root: Path) -> None:
    (root / "train" / "n00000001").mkdir()
    (root / "val" / "n00000001").mkdir()


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (
            flat,
            UsageError,
            r"val: its images are not in class sub-folders.*move each into val/<class>/",
        ),
        (
            packed,
            MissingError,
            r"val does not exist, but ILSVRC2012_img_val.tar does; unpack it first: "
            r"mkdir .*val && tar -xf .*val.tar -C .*val$",
        ),
        (
            lambda root: shutil.rmtree(root / "train"),
            MissingError,
            r"train does not exist; data.root is the folder that holds train/<class>",
        ),
        (shutil.rmtree, MissingError, r"set does not exist; data.root is"),
        (other_class, UsageError, r"val: no sub-folder for class 'n01440764'"),
        (empty_class, UsageError, r"train.n00000001: no images"),
    ],
)
def test_a_wrong_imagenet_folder_is_refused(spoil, error, sentence, tmp_path: Path) -> None:
    spoil(image_stand_in.folders(tmp_path / "set", train=2, val=1))
    with pytest.raises(error, match=sentence):
        fingerprint_of("imagenet", tmp_path / "set")


def written(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            image_stand_in.add(shard, name, content)


@pytest.mark.parametrize(
    ("members", "error", "sentence"),
    [
        ({"a.jpg": b"x"}, UsageError, r"train-000001.tar: a has no label"),
        ({"a.cls": b"1"}, UsageError, r"train-000001.tar: a has no image"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, UsageError, r"train-000001.tar: a.cls: b'cat' is not a class number"),
        ({"a.jpg": b"x", "a.cls": b"4"}, UsageError, r"class 3 \(3\) has no image in the training shards"),
        (None, MissingError, r"train-000001.tar cannot be read as a tar file"),
    ],
)
def test_a_wrong_shard_is_refused(members, error, sentence, tmp_path: Path) -> None:
    root = image_stand_in.shards(tmp_path / "set", train=3, val=1)
    if members is None:
        (root / "train-000001.tar").write_bytes(b"\0garbage" * 200)
    else:
        written(root / "train-000001.tar", members)
    with pytest.raises(error, match=sentence):
        prepared("webdataset", root, tmp_path / "work")


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_a_shard_truncated_between_two_members_is_refused(members: int, tmp_path: Path) -> None:
    """tar reports nothing, and training would silently run on fewer images."""
    root = image_stand_in.shards(tmp_path / "set", train=12, val=1)
    with tarfile.open(root / "train-000001.tar") as shard:
        end = shard.getmembers()[members].offset
    os.truncate(root / "train-000001.tar", end)
    with pytest.raises(
        MissingError,
        match=r"train-000001.tar cannot be read as a tar file \(its end mark is missing, so it was cut short\); "
        r"fetch it again",
    ):
        prepared("webdataset", root, tmp_path / "work")


def test_missing_and_compressed_shards_are_refused_before_any_is_read(tmp_path: Path) -> None:
    root = image_stand_in.shards(tmp_path / "set", train=12, val=1)
    (root / "train-000001.tar").unlink()
    with pytest.raises(MissingError, match=r"train-000001.tar is missing between its neighbours"):
        fingerprint_of("webdataset", root)
    (root / "train-000001.tar.gz").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"train-000001.tar.gz: a compressed shard cannot be read in random order; unpack it"
    ):
        fingerprint_of("webdataset", root)
    (root / "val-000000.tar").unlink()
    (root / "train-000001.tar.gz").unlink()
    with pytest.raises(MissingError, match=r"holds no shard of the test part"):
        fingerprint_of("webdataset", root)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    root = image_stand_in.folders(tmp_path / "set", train=2, val=1)
    _, listing = prepared("imagenet", root, tmp_path / "work")
    content = listing.path(3).read_bytes()
    listing.path(3).write_bytes(content[:100])
    with pytest.raises(
        StageError,
        match=r"n01443537_train_001.JPEG cannot be read \(only 100 of [\d,]+ bytes exist\); repair or replace it",
    ):
        listing[np.array([3])]
    listing.path(3).write_bytes(b"?" * len(content))
    with pytest.raises(
        StageError, match=r"n01443537_train_001.JPEG cannot be read \(not an image that Pillow can read\)"
    ):
        listing[np.array([3])]
    shards = image_stand_in.shards(tmp_path / "shards", train=2, val=1)
    _, sharded = prepared("webdataset", shards, tmp_path / "w")
    raw = bytearray((shards / "train-000000.tar").read_bytes())
    offset, size = int(sharded.rows[4, 1]), int(sharded.rows[4, 2])
    raw[offset : offset + size] = b"?" * size
    (shards / "train-000000.tar").write_bytes(bytes(raw))
    with pytest.raises(StageError, match=r"train-000000.tar: n02102040_train_000.jpg cannot be read"):
        sharded[np.array([4])]
