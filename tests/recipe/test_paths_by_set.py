"""Paths given by --set count from where the command is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.core.errors import RecipeError
from compress.recipe import loader

TEXT = """
data: {source: folder, root: photos}
teacher: {candidates: [{model: resnet8, weights: teacher.pt}]}
student: {model: resnet8}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a folder of its own; the working folder is another."""
    for folder in ("project/photos", "work/mine", "work/both", "project/both"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project" / "r.yaml").write_text(TEXT)
    (tmp_path / "work" / "own.pt").touch()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "project" / "r.yaml"


@pytest.mark.parametrize("name", ["mine", "both", "nowhere", "../project/photos"])
def test_a_path_counts_from_the_working_folder(recipe: Path, name: str) -> None:
    loaded = loader.load(recipe, [f"data.root={name}"])
    assert loaded.recipe.data.root == str(Path.cwd() / name)
    assert loader.load(recipe).recipe.data.root == "photos"


def test_a_path_in_a_section_or_a_list_counts_alike(recipe: Path) -> None:
    loaded = loader.load(
        recipe, ["teacher.candidates.0={model: resnet8, weights: own.pt}", "data={source: folder, root: mine}"]
    )
    assert loaded.recipe.teacher.candidates[0].weights == str(Path.cwd() / "own.pt")
    assert loaded.recipe.data.root == str(Path.cwd() / "mine")
    loaded = loader.load(recipe, ["teacher.candidates.0={onnx: own.onnx}"])
    assert loaded.recipe.teacher.candidates[0].onnx == str(Path.cwd() / "own.onnx")


@pytest.mark.parametrize("root", ["~/photos", "/photos"])
def test_a_path_from_the_home_folder_or_the_root_stays(recipe: Path, root: str) -> None:
    assert loader.load(recipe, [f"data.root={root}"]).recipe.data.root == root


def test_names_of_weights_are_no_paths(recipe: Path) -> None:
    loaded = loader.load(recipe, ["student.model=torchvision/resnet18", "student.weights=IMAGENET1K_V1"])
    assert loaded.recipe.student.weights == "IMAGENET1K_V1"


def test_a_path_that_exists_only_beside_the_recipe_is_an_error_with_both_places(recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load(recipe, ["data.root=photos"])
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"--set data.root=photos: data.root: {Path.cwd() / 'photos'} does not exist, and paths given by --set count "
        f"from the working folder; beside the recipe there is {recipe.parent / 'photos'}: give that path"
    )


def test_a_list_of_labels_counts_from_the_working_folder_only_if_it_is_there(recipe: Path) -> None:
    assert loader.load(recipe, ["data.labels=labels.csv"]).recipe.data.labels == "labels.csv"
    (Path.cwd() / "labels.csv").touch()
    assert loader.load(recipe, ["data.labels=labels.csv"]).recipe.data.labels == str(Path.cwd() / "labels.csv")


@pytest.mark.parametrize("name", ['My "Photos" (2024) #1/all', "it's #2"])
def test_a_path_may_hold_what_begins_a_comment_in_yaml(recipe: Path, name: str) -> None:
    assert loader.load(recipe, [f"data.root={name}"]).recipe.data.root == str(Path.cwd() / name)
