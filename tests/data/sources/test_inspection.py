"""Sources inspected without decoding: absent data, roots, fingerprints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import MissingError, UsageError
from compress.data.sources import inspection
from compress.recipe import schema
from tests.support.small_arrays import prepared, random_arrays

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"source": "cifar10", "root": "here"},
            r"CIFAR-10 is not in .*here \(no cifar-10-batches-py/data_batch_1\): .*compress "
            r"run RECIPE --set "
            r"data\.download=true$",
        ),
        (
            {"source": "cifar100", "root": "here"},
            r"CIFAR-100 is not in .*here \(no cifar-100-python/train\): .*--set data\.download=true$",
        ),
        (
            {"source": "npz", "root": "absent.npz"},
            r"absent\.npz is not a file; .*: compress run RECIPE --set data\.root=FILE\.npz$",
        ),
        (
            {"source": "folder", "root": "absent"},
            r"absent is not a folder; .*: compress run RECIPE --set data\.root=FOLDER$",
        ),
    ],
)
def test_absent_data_is_exit_3_with_the_command(tmp_path: Path, config: dict[str, str], sentence: str) -> None:
    for act in (
        lambda data: inspection.fingerprint(data, tmp_path),
        lambda data: prepared(data, tmp_path / "work", tmp_path),
    ):
        with pytest.raises(MissingError, match=sentence) as caught:
            act(schema.Data(**config))  # type: ignore[arg-type]
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_a_source_without_its_root_is_a_recipe_error(source: str) -> None:
    with pytest.raises(UsageError, match=rf"data\.root: source {source} needs one"):
        inspection.fingerprint(schema.Data(source=source), Path("/"))  # type: ignore[arg-type]


def test_fingerprint_follows_content_and_the_keys_that_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **random_arrays(0))
    (tmp_path / "copy.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    np.savez(tmp_path / "b.npz", **random_arrays(1))

    def made(**keys: object) -> str:
        return inspection.fingerprint(schema.Data(**{"source": "npz", "root": "a.npz", **keys}), tmp_path)  # type: ignore[arg-type]

    same = [
        {"root": "copy.npz"},
        {"image_size": 32},
        {"calibration": 5},
        {"validation": 0.5},
        {"split_seed": 1},
        {"augment": "crop_flip"},
        {"test": 0.5},
    ]
    other = [
        {"root": "b.npz"},
        {"image_size": 12},
        {"augment": "crop"},
        {"limit_train": 9},
        {"limit_train": 9, "split_seed": 1},
        {"limit_test": 9},
    ]
    other.append({"normalize": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}})
    assert {made(**keys) for keys in same} == {made()}
    assert len({made(), *(made(**keys) for keys in other)}) == len(other) + 1


def test_fingerprint_imports_neither_torch_nor_pillow() -> None:
    code = (
        "import sys; from pathlib import Path; from compress.recipe import schema\n"
        "from compress.data.sources import inspection, prepare\n"
        "inspection.fingerprint(schema.Data(source='fashion'), Path('/'))\n"
        "print([name for name in ('torch', 'PIL', 'torchvision') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_root_expands_the_home_folder_and_is_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    base = tmp_path / "recipes"
    assert inspection.locate_root(schema.Data(source="npz", root="~/x.npz"), base) == tmp_path / "home/x.npz"
    assert inspection.locate_root(schema.Data(source="npz", root="x.npz"), base) == base / "x.npz"
    assert inspection.locate_root(schema.Data(source="cifar10"), base) == tmp_path / "home/.cache/compress/data"
