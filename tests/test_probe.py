"""`compress check`: with the data's own classes, and what is not there yet said at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import cli

RECIPE = """
data: {{source: {source}, root: {root}, image_size: 32}}
teacher: {{candidates: [{{model: resnet20, weights: {weights}}}]}}
student: {{model: mobilenet_v2, width: 0.5}}
"""


def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, root: str, weights: str = "none") -> tuple[int, str]:
    """(exit code, everything said)."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(source=source, root=root, weights=weights))
    code = cli.main(["check", str(path)])
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
    assert code == 0 and said.count("(3 classes)") == 2 and "note: data: 12 training pictures\n" in said
    assert said.splitlines()[-1].endswith("recipe.yaml: ok")


def test_networks_are_counted_with_the_files_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, labels = np.zeros((4, 32, 32), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mine.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels, class_names=np.array(["a", "b"]))
    code, said = check(tmp_path, capsys, "npz", "mine.npz")
    assert code == 0 and said.count("(2 classes)") == 2 and said.splitlines()[-1].endswith("recipe.yaml: ok")


def test_what_is_not_there_yet_is_counted_in_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, said = check(tmp_path, capsys, "folder", "photos", weights="teacher.pt")
    assert code == 0 and "networks are counted with 10 classes until the data is listed" in said
    assert "teacher.candidates.0.weights: teacher.pt is not there yet" in said and "photos is not a folder" in said
    assert said.splitlines()[-1].endswith("recipe.yaml: ok, but 2 things that a run needs are not there yet")
    (tmp_path / "teacher.pt").touch()
    _, said = check(tmp_path, capsys, "folder", "photos", weights="teacher.pt")
    assert said.splitlines()[-1].endswith("recipe.yaml: ok, but 1 thing that a run needs is not there yet")


def test_a_layout_that_is_wrong_is_an_error_even_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos(tmp_path / "photos", classes=1, each=3)
    code, said = check(tmp_path, capsys, "folder", "photos")
    assert code == 2 and "1 class sub-folder, but a classifier needs at least two" in said and "ok" not in said.splitlines()[-1]
