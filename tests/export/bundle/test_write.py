"""The bundle: complete, clean and equal for equal inputs."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from export.bundle import write
from export.bundle.write import Shipped
from export.runtime import ExportError, UnavailableError


@pytest.fixture(scope="module")
def models(fp32: Path, int8: Path) -> list[Shipped]:
    return [Shipped(int8, "student", "int8", "x86-vnni"), Shipped(fp32, "student", "fp32")]


@pytest.fixture(scope="module")
def made(
    models: list[Shipped], images: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> write.Bundle:
    return write.write(tmp_path_factory.mktemp("a") / "bundle", models, images[:32], labels[:32], title="small")


def test_bundle_has_every_needed_file(made: write.Bundle) -> None:
    assert set(made.files) == {
        "README.md",
        "checksums.sha256",
        *(f"export/{name}" for name in write.RUNTIME_FILES),
        "manifest.json",
        "requirements.txt",
        "samples.npz",
        "small.fp32.onnx",
        "small.int8.onnx",
        "index.html",
        *(f"page/{name}" for name in write.PAGE_FILES),
    }
    assert len((made.folder / "README.md").read_text().splitlines()) <= 11
    assert [line.split(">=")[0] for line in (made.folder / "requirements.txt").read_text().splitlines()] == [
        "numpy",
        "onnxruntime",
    ]


def test_checksums_cover_every_file(made: write.Bundle) -> None:
    lines = [line.split("  ") for line in (made.folder / "checksums.sha256").read_text().splitlines()]

    assert {name for _, name in lines} == set(made.files) - {"checksums.sha256"}
    for digest, name in lines:
        assert hashlib.sha256((made.folder / name).read_bytes()).hexdigest() == digest


def test_manifest_describes_models_and_files(made: write.Bundle, int8: Path, contract) -> None:
    manifest = json.loads((made.folder / "manifest.json").read_text())

    assert manifest["classes"] == list(contract.classes) and manifest["samples"]["images"] == 32
    first = manifest["models"][0]
    assert (first["file"], first["role"], first["precision"], first["target"]) == (
        "small.int8.onnx",
        "student",
        "int8",
        "x86-vnni",
    )
    assert first["sha256"] == hashlib.sha256(int8.read_bytes()).hexdigest() and first["bytes"] == int8.stat().st_size
    assert set(manifest["files"]) == set(made.files) - {"checksums.sha256", "manifest.json"}


def test_manifest_lists_the_offset_of_each_sample_array(made: write.Bundle, images: np.ndarray) -> None:
    manifest = json.loads((made.folder / "manifest.json").read_text())
    content = (made.folder / manifest["samples"]["file"]).read_bytes()

    with np.load(made.folder / "samples.npz") as stored:
        assert (
            set(stored.files)
            == set(manifest["samples"]["arrays"])
            == {"images", "labels", "logits/small.int8.onnx", "logits/small.fp32.onnx"}
        )
        for name, place in manifest["samples"]["arrays"].items():
            read = np.frombuffer(content, place["dtype"], int(np.prod(place["shape"])), place["offset"]).reshape(
                place["shape"]
            )
            assert read.dtype == stored[name].dtype and (read == stored[name]).all()
    assert sorted(path.name for path in Path(write.__file__).with_name("page").iterdir()) == sorted(
        [*write.PAGE_FILES, "index.html"]
    )


def test_equal_inputs_give_equal_bytes(
    made: write.Bundle,
    models: list[Shipped],
    images: np.ndarray,
    labels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)  # another day

    again = write.write(tmp_path / "bundle", models, images[:32], labels[:32], title="small")

    assert again.archive.read_bytes() == made.archive.read_bytes() and again.archive_sha256 == made.archive_sha256


def test_no_path_of_this_machine_is_inside(made: write.Bundle) -> None:
    everything = b"".join((made.folder / name).read_bytes() for name in made.files)

    assert str(made.folder.parent).encode() not in everything and str(Path.cwd()).encode() + b"/" not in everything


def test_archive_contains_the_folder(made: write.Bundle) -> None:
    with zipfile.ZipFile(made.archive) as archive:
        assert archive.testzip() is None
        assert [name.split("/", 1)[1] for name in archive.namelist()] == list(made.files)


def test_rewriting_a_bundle_removes_old_files(
    models: list[Shipped], images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    write.write(tmp_path / "bundle", models, images[:4], labels[:4])

    again = write.write(tmp_path / "bundle", models[1:], images[:4], labels[:4])

    assert "small.int8.onnx" not in again.files and not (tmp_path / "bundle.partial").exists()


def test_invalid_arguments_are_refused(
    models: list[Shipped], fp32: Path, int8: Path, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    def attempt(ships: list[Shipped], count: int = 4) -> None:
        write.write(tmp_path / "bundle", ships, images[:4], labels[:count])

    with pytest.raises(ExportError, match="at least one model"):
        attempt([])
    with pytest.raises(UnavailableError, match="no such file"):
        attempt([Shipped(tmp_path / "absent.onnx", "student", "fp32")])
    with pytest.raises(ExportError, match="names of their own"):
        attempt([models[0], models[0]])
    with pytest.raises(ExportError, match="as many labels as images"):
        attempt(models, count=3)
    with pytest.raises(ExportError, match="int8 files name their target"):
        attempt([Shipped(int8, "student", "int8")])
    with pytest.raises(ExportError, match="built for x86-vnni, not for arm64"):
        attempt([Shipped(int8, "student", "int8", "arm64")])
    assert not (tmp_path / "bundle").exists()
