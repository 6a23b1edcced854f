"""`compress check`: with the data's own classes, and what is not there yet said at the end."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress import models
from compress.cli import main
from compress.core.errors import UsageError
from compress.data.sources import npz
from export.runtime.machine import TARGETS, isa

RECIPE = """
data: {{source: {source}, root: {root}, image_size: 32}}
teacher: {{candidates: [{{model: resnet20, weights: {weights}}}]}}
student: {{model: mobilenet_v2, width: 0.5}}
"""


def check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, root: str, weights: str = "none"
) -> tuple[int, str]:
    """(exit code, everything said)."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(source=source, root=root, weights=weights))
    code = main.main(["check", str(path)])
    said = capsys.readouterr()
    return code, said.out + said.err


def photos(folder: Path, classes: int, each: int) -> None:
    for number in range(classes):
        (folder / f"class{number}").mkdir(parents=True)
        for picture in range(each):
            Image.new("RGB", (8, 8), (picture, number, 0)).save(folder / f"class{number}" / f"{picture}.png")


def test_networks_are_counted_with_the_folders_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos(tmp_path / "photos", classes=3, each=5)
    code, said = check(tmp_path, capsys, "folder", "photos")
    assert "device.samples: 64 images are asked for; all 3 test images are used" in said
    assert code == 0 and said.count("(3 classes)") == 2 and "note: data: 12 training images\n" in said
    assert said.splitlines()[-1].endswith("recipe.yaml: ok")


def test_networks_are_counted_with_the_shards_named_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\n\nc\n")
    for part in ("train", "val"):
        (tmp_path / "shards" / f"{part}-0.tar").write_bytes(bytes(10240))  # none is opened
    code, said = check(tmp_path, capsys, "webdataset", "shards")
    assert code == 0 and said.count("(3 classes)") == 2 and "until the data is listed" not in said
    (tmp_path / "shards" / "classes.txt").write_bytes("a\né\n".encode("latin-1"))
    code, said = check(tmp_path, capsys, "webdataset", "shards")
    assert (
        code == 2
        and "classes.txt: is not UTF-8 text (invalid continuation byte at byte 2); write one name a line" in said
    )


def test_networks_are_counted_with_the_files_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, labels = np.zeros((4, 32, 32), np.uint8), np.array([0, 1, 0, 1])
    np.savez(
        tmp_path / "mine.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        class_names=np.array(["a", "b"]),
    )
    code, said = check(tmp_path, capsys, "npz", "mine.npz")
    assert "device.samples: 64 images are asked for; all 4 test images are used" in said
    assert code == 0 and said.count("(2 classes)") == 2 and said.splitlines()[-1].endswith("recipe.yaml: ok")


def test_what_a_run_will_warn_of_is_said_as_far_as_no_picture_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photos(tmp_path / "photos", classes=3, each=5)
    (tmp_path / "photos" / "class0" / "loop").symlink_to("../class1")
    code, said = check(tmp_path, capsys, "folder", "photos")
    assert (
        code == 0
        and (
            "note: data: 1 folder leads to images of another class, which count only there (first: "
            "class0/loop, to class 'class1')\n"
        )
        in said
    )
    images, labels = np.zeros((4, 32, 32), np.uint8), np.array([0, 1, 0, 1])
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels * 0}
    np.savez(tmp_path / "mine.npz", **arrays, class_names=np.array(["a", "b"]))
    code, said = check(tmp_path, capsys, "npz", "mine.npz")
    assert code == 0 and "note: data: class 'b' has no test images\n" in said


def test_what_is_not_there_yet_is_counted_in_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, said = check(tmp_path, capsys, "folder", "photos", weights="teacher.pt")
    assert code == 0 and "networks are counted with 10 classes until the data is listed" in said
    assert "teacher.candidates.0.weights: teacher.pt is not there yet" in said and "photos is not a folder" in said
    assert said.splitlines()[-1].endswith("recipe.yaml: ok, but 2 things that a run needs are not there yet")
    torch.save(
        models.build("resnet20", classes=7).state_dict(), tmp_path / "teacher.pt"
    )  # how many classes there will be is not known yet
    _, said = check(tmp_path, capsys, "folder", "photos", weights="teacher.pt")
    assert said.splitlines()[-1].endswith("recipe.yaml: ok, but 1 thing that a run needs is not there yet")


def test_weights_that_are_there_are_the_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos(tmp_path / "photos", classes=3, each=5)
    for state, expected in (
        (models.build("resnet20", classes=3).state_dict(), "recipe.yaml: ok"),
        (models.build("resnet20", classes=4).state_dict(), "it is a checkpoint for another number of classes"),
        (models.build("resnet8", classes=3).state_dict(), "it is a checkpoint of another network"),
        (None, "could not be read as a PyTorch checkpoint"),
    ):
        torch.save(state, tmp_path / "teacher.pt") if state is not None else (tmp_path / "teacher.pt").write_bytes(
            b"junk"
        )
        code, said = check(tmp_path, capsys, "folder", "photos", weights="teacher.pt")
        assert expected in said.splitlines()[-1] and code == (0 if expected.endswith("ok") else 2)
        assert code == 0 or "recipe.yaml:3:" in said.splitlines()[-1] and "teacher.candidates.0.weights: " in said


def test_embedded_weights_that_do_not_exist_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "r.yaml").write_text(
        "data: {source: fashion}\nteacher: {candidates: [{model: resnet56, weights: "
        "embedded}]}\nstudent: {model: resnet8}\n"
    )
    assert (
        main.main(["check", str(tmp_path / "r.yaml")]) == 2
        and "no embedded weights for resnet56" in capsys.readouterr().err
    )


def test_more_threads_than_cores_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("export.runtime.conditions._allowed", lambda: [0, 1])
    recipe = (
        "data: {source: fashion}\nteacher: {candidates: [{model: resnet8}]}\nstudent: {model: "
        "resnet8}\nvalidate: {threads: 64}\n"
    )
    (tmp_path / "r.yaml").write_text(recipe)
    note = "r.yaml:4:12: 64 threads on 2 cores interrupt each other; lower validate.threads\n"
    assert main.main(["check", str(tmp_path / "r.yaml")]) == 0 and note in capsys.readouterr().out
    for more in ("validate.threads=2", "device.target=ssh://user@host"):  # of a distant device's cores nothing is known
        assert (
            main.main(["check", str(tmp_path / "r.yaml"), "--set", more]) == 0
            and "interrupt" not in capsys.readouterr().out
        )


@pytest.mark.slow
def test_a_float_layer_that_is_not_there_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = (
        "data: {source: fashion, limit_train: 100}\nteacher: {candidates: [{model: resnet8}]}\nstudent: "
        "{model: mobilenet_v2, width: 0.5}\n"
    )
    (tmp_path / "r.yaml").write_text(recipe + "quantize: {float_layers: [last, nosuch]}\ndistill: {baseline: true}\n")
    wrong = "r.yaml:4:12: quantize.float_layers: the network has no layer 'nosuch'; known are first, last, "
    for command in (["check"], ["run", "--artifacts", str(tmp_path / "a")]):
        assert main.main([command[0], str(tmp_path / "r.yaml"), *command[1:]]) == 2
        said = capsys.readouterr()
        assert wrong in said.err and not re.search("^(teacher|distill)", said.out, re.MULTILINE)
    known = said.err.partition(wrong)[2].split(",")[0]
    assert (
        main.main(["check", str(tmp_path / "r.yaml"), "--set", "distill.method=simkd"]) == 2
        and wrong in capsys.readouterr().err
    )  # another network ships
    for more in (f"quantize.float_layers=[{known}]", "quantize.scheme=none"):
        assert main.main(["check", str(tmp_path / "r.yaml"), "--set", more]) == 0, capsys.readouterr().err


def test_pictures_that_cannot_be_shared_out_are_said_and_what_is_taken_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = (
        "data: {{source: fashion, {keys}}}\nteacher: {{candidates: [{{model: resnet8x4, weights: "
        "embedded}}]}}\nstudent: {{model: resnet8}}\n"
    )
    for keys, code, expected in (
        ("limit_train: 3", 2, "class 'T-shirt/top' has a single training image"),
        (
            "validation: 6999",
            2,
            "data.validation: 6999 of 7000 training images cannot hold every one of 10 classes in both parts",
        ),
        (
            "limit_train: 500, calibration: 600",
            0,
            "data.calibration: 600 images are asked for; all 450 training images are used",
        ),
        ("limit_train: 500", 0, "data: 500 training images"),
        ("limit_test: 40", 0, "device.samples: 64 images are asked for; all 40 test images are used"),
    ):
        (tmp_path / "r.yaml").write_text(recipe.format(keys=keys))
        assert main.main(["check", str(tmp_path / "r.yaml")]) == code, keys
        said = capsys.readouterr()
        assert expected in said.out + said.err, keys
    photos(tmp_path / "photos", classes=2, each=1)
    code, said = check(tmp_path, capsys, "folder", "photos")
    assert code == 2 and "has only one distinct image, so no test part can be carved off" in said


PICTURES = np.zeros((6, 32, 32, 3), np.uint8)
LABELS = np.arange(6) % 2


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"train_images": PICTURES.astype(np.float32)}, "train_images is float32 6x32x32x3, but images are uint8"),
        (
            {"train_images": np.zeros((6, 3, 32, 32), np.uint8)},
            "train_images is uint8 6x3x32x32, but images are uint8",
        ),
        ({"test_images": np.zeros((0, 32, 32, 3), np.uint8)}, "test_images is uint8 0x32x32x3, but images are uint8"),
        ({"train_labels": LABELS[:4]}, "train_labels is int64 (4,), but 6 images need integers"),
        ({"train_labels": LABELS + 5}, "train_labels holds 5 to 6, but 2 class_names allow 0 to 1"),
        ({"train_labels": LABELS * 0}, "class 'b' has test images but no training images"),
        ({"class_names": np.array(["a", "a"])}, "class_names holds 'a' twice"),
        ({"class_names": np.array(["a", ""])}, "class_names holds an empty name"),
        ({"class_names": np.array(["a", 3], dtype=object)}, "cannot be read as an .npz of plain arrays"),
        ({"class_names": None}, "no class_names; the file needs train_images"),
    ],
)
def test_a_file_of_arrays_is_judged_without_reading_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changed: dict, expected: str
):
    arrays = {
        "train_images": PICTURES,
        "train_labels": LABELS,
        "test_images": PICTURES,
        "test_labels": LABELS,
        "class_names": np.array(["a", "b"]),
    }
    np.savez(tmp_path / "mine.npz", **{key: value for key, value in {**arrays, **changed}.items() if value is not None})
    with monkeypatch.context() as patch:
        patch.setattr(npz, "_images", lambda *_: pytest.fail("the pictures were read"))
        code, said = check(tmp_path, capsys, "npz", "mine.npz")
    assert code == 2 and expected in said.splitlines()[-1] and "mine.npz" in said, said
    with pytest.raises(UsageError, match=re.escape(expected)):
        npz.load(tmp_path / "mine.npz")


def test_a_layout_that_is_wrong_is_an_error_even_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos(tmp_path / "photos", classes=1, each=3)
    code, said = check(tmp_path, capsys, "folder", "photos")
    assert (
        code == 2
        and "1 class sub-folder, but a classifier needs at least two" in said
        and "ok" not in said.splitlines()[-1]
    )


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_class_that_the_data_does_not_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str):
    photos(tmp_path / "photos", classes=3, each=5)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(source="folder", root="photos", weights="none")
        + "require:\n  min_recall: {class1: 0.5, clas2: 0.5}\n"
    )
    more = ["--artifacts", str(tmp_path / "artifacts")] if command == "run" else []
    code = main.main([command, str(path), *more])
    said = capsys.readouterr().err
    assert code == 2 and "recipe.yaml:6:29: require.min_recall.clas2: no class of the data" in said
    assert "(did you mean 'class2'?)" in said and "class0, class1, class2" in said and "class1:" not in said


def test_a_weight_of_a_class_that_the_data_does_not_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos(tmp_path / "photos", classes=3, each=5)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(source="folder", root="photos", weights="none")
        + "train: {class_weights: {class1: 2, clas2: 0.5}}\n"
    )
    code = main.main(["check", str(path), "--set", "teacher.candidates.0.train={epochs: 1, class_weights: {other: 2}}"])
    said = capsys.readouterr().err
    assert code == 2 and "train.class_weights.clas2: no class of the data (did you mean 'class2'?)" in said
    assert "teacher.candidates.0.train.class_weights.other: no class of the data; there are class0, class1" in said


@pytest.mark.parametrize("value", ["1.5", "{}", "{a: 0}", "[0.5]", "true", "{a: {b: 0.5}}"])
def test_a_recall_is_a_fraction_or_fractions_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(source="folder", root="photos", weights="none") + f"require: {{min_recall: {value}}}\n"
    )
    assert main.main(["check", str(path)]) == 2
    assert "require.min_recall: expected a fraction above 0, at most 1, or such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "target", "named"),
    [
        ("ssh://pi@board.local", None, False),
        ("ssh://pi@board.local", "[auto]", False),
        ("ssh://pi@board.local", "", True),
        ("local", "", False),
    ],
)
def test_a_file_for_this_processor_and_another_device_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, target: str | None, named: bool
):
    if isa() not in TARGETS:
        pytest.skip(f"no int8 file is made for {isa()}")
    path = tmp_path / "recipe.yaml"
    asked = "" if target is None else f"quantize: {{target: {target or isa()}}}\n"
    path.write_text(
        RECIPE.format(source="fashion", root="null", weights="none") + f"device: {{target: {device}}}\n{asked}"
    )
    assert main.main(["check", str(path)]) == 0
    assert (f"built for {isa()}, this machine's processor" in capsys.readouterr().out) is named
