"""The recipes that come with the package: listed, and copied under a name that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.cli import main
from compress.core.errors import UsageError
from compress.recipe import loader, shipped

ROOT = Path(__file__).parents[2]


def test_a_checkout_ships_its_own_recipes() -> None:
    assert shipped.folder() == ROOT / "recipes"
    assert {"mobilenet", "shufflenet", "cifar100/resnet56-resnet20"} <= set(shipped.names())


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet.yaml", "cifar100/resnet56-resnet20"])
def test_a_copy_loads_and_its_comments_name_it(name: str, tmp_path: Path) -> None:
    target = shipped.copy(name, tmp_path)
    original = ROOT / "recipes" / f"{name.removesuffix('.yaml')}.yaml"
    assert loader.load(target).recipe == loader.load(original).recipe
    assert f"compress run {target.name}" in target.read_text() and "run recipes/" not in target.read_text()


def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    target = shipped.copy("mobilenet", tmp_path)
    target.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        shipped.copy("mobilenet", tmp_path)
    assert target.read_text() == "mine"


def test_the_command_copies_lists_and_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["recipes", "--copy", "mobilnet"]) == 2
    assert "did you mean 'mobilenet'?" in capsys.readouterr().err
    assert main.main(["check", "mobilenet.yaml"]) == 2
    assert "the package has one: compress recipes --copy mobilenet" in capsys.readouterr().err
    assert main.main(["recipes"]) == 0
    assert any(line.startswith("mobilenet ") for line in capsys.readouterr().out.splitlines())
    assert main.main(["recipes", "--copy", "mobilenet"]) == 0
    assert capsys.readouterr().out == "mobilenet.yaml: run it with: compress run mobilenet.yaml\n"
    assert main.main(["check", "mobilenet.yaml"]) == 0
