"""`data.unlabelled`: a folder of photos for which the teacher answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import data
from compress.cli import main
from compress.core.errors import MissingError, RecipeError, UsageError
from compress.data.sources import inspection
from compress.recipe import loader, schema
from tests.support.small_arrays import prepared


def photo(path: Path, seed: int, side: int = 40) -> None:
    """Write a small image of coarse noise, so that no two are near-duplicates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for number in range(12):
            part = "test" if number < 4 else "train"
            photo(tmp_path / "photos" / part / name / f"{number}.png", 100 * label + number)
    for number in range(6):
        photo(tmp_path / "more" / "phone" / f"{number}.png", 900 + number)
    shutil.copy(tmp_path / "photos/test/cat/0.png", tmp_path / "more/again.png")
    (tmp_path / "more" / "notes.txt").write_text("none of these has been looked at")
    return tmp_path


def config(folder: Path, **changes: object) -> schema.Data:
    settings = {"source": "folder", "root": "photos", "unlabelled": "more", "image_size": 32}
    return schema.Data.model_validate({**settings, **changes})


def test_its_images_join_the_training_part_without_a_label(folder: Path) -> None:
    made, lines = prepared(config(folder), folder / "work", base=folder)
    labels, names = np.load(made.train_labels.path), np.load(made.train_names.path)
    assert (labels == -1).sum() == 6 and len(data.load_images(made.train_images)) == 16 + 6
    assert [name for name, label in zip(names, labels, strict=True) if label < 0] == [
        f"../more/phone/{number}.png" for number in range(6)
    ]
    assert np.load(made.test_labels.path).min() == 0
    said = [str(one) for one in made.run_warnings]
    assert any("1 image has the bytes of a labelled image and is left out" in line for line in said)
    assert any("1 file is not an image" in line and ".txt" in line for line in said)
    assert any(line.startswith("data: 22 train images of 2 classes, 6 of them without a label") for line in lines)


def test_a_new_image_changes_the_fingerprint(folder: Path) -> None:
    before = inspection.fingerprint(config(folder), folder)
    photo(folder / "more" / "new.png", 5000)
    assert inspection.fingerprint(config(folder), folder) != before
    assert inspection.fingerprint(config(folder, unlabelled=None), folder) != before
    assert (
        inspection.training_labels(config(folder), folder) < 0
    ).sum() == 8  # the copy is noticed by its bytes, later


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("nowhere", MissingError, "nowhere is not a folder; name one with images"),
        ("empty", UsageError, "no images (JPEG, PNG"),
        ("photos/train/cat", UsageError, "holds images with a label (first: train/cat/"),
        ("copies", UsageError, "is a labelled one, too; leave the key out"),
    ],
)
def test_what_is_no_such_folder_is_refused(folder: Path, place: str, error: type[Exception], said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "copies").mkdir()
    shutil.copy(folder / "photos/train/dog/5.png", folder / "copies/one.png")
    with pytest.raises(error) as caught:
        prepared(config(folder, unlabelled=place), folder / "work", base=folder)
    assert said in str(caught.value)


def test_unreadable_images_count_like_others(folder: Path) -> None:
    for number in range(4):
        (folder / "more" / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]) * 40)
    with pytest.raises(Exception, match="4 of 34 images cannot be read"):
        prepared(config(folder), folder / "work", base=folder)


RECIPE = """
name: more
data: {source: folder, root: photos, unlabelled: more, image_size: 32, augment: flip, validation: 4, calibration: 8}
teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}
student: {model: resnet8}
distill: {method: kd}
train: {epochs: 2, batch_size: 8}
quantize: {scheme: none}
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("distill.method=dkd",), "adds images without a label, but dkd needs a label for every image"),
        (("data.group=parent",), "leave it or data.group out"),
        (("data.source=npz",), "is read only for source: folder"),
    ],
)
def test_what_does_not_go_with_it_is_refused(folder: Path, changes: tuple[str, ...], said: str) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        loader.load(folder / "r.yaml", changes)
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_run_trains_on_them_and_its_copy_of_the_recipe_finds_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    assert main.main(["check", "r.yaml"]) == 0
    # The copy of a test image is noticed where files are read.
    assert "data: 23 training images, 7 of them without a label" in capsys.readouterr().out
    assert main.main(["data", "r.yaml", "--artifacts", "a"]) == 0
    assert "(no label)" in capsys.readouterr().out
    assert main.main(["run", "r.yaml", "--artifacts", "a", "--device", "cpu"]) == 0
    assert "student learns 12 images with labels, and 6 images from the teacher alone" in capsys.readouterr().out
    (run,) = (folder / "a/runs/more").glob("2*")
    copied = loader.load(run / "recipe.yaml").recipe.data.unlabelled
    assert copied is not None and Path(copied).expanduser() == (folder / "more").resolve()
