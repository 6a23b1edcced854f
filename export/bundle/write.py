"""The bundle, a folder and a zip: models, images with expected answers, and the code that verifies them on a device."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from export import runtime
from export.runtime import FOREIGN, ExportError, Model, UnavailableError, copy_model, isa, saturates
from export.runtime.images import value_range
from export.targets import onnxruntime_web

PACKAGE = Path(__file__).parents[1]
RUNTIME_FILES = (
    "__init__.py",
    "verify.py",
    *(f"runtime/{path.name}" for path in sorted((PACKAGE / "runtime").glob("*.py"))),
)
# The bundle's own page for browsers: the folder and the files that index.html loads.
PAGE, PAGE_FILES = "page", ("page.js", "photos.js", "style.css", "timing.js", "verify.js", "view.js")
# Names that a model in a bundle cannot have.
RESERVED_NAMES = {"README.md", "samples.npz", "manifest.json", "index.html", "export", PAGE, "photos", "photos.npz"}
# Largest difference of float logits, as a share of the largest logit or of 1 if that is larger. Float kernels of two
# CPUs differ by far less, a wrong kernel by far more.
FLOAT_TOLERANCE = 1e-3
# Integer kernels round differently between instruction sets; a wrong kernel agrees at chance.
INT8_AGREEMENT = 0.95
# The zip format's first moment, so that equal contents give equal bytes.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

_README = """# {title}
An image classifier: {classes} classes, images of {size} x {size} pixels. The files beside it verify it.
1. `python -m pip install -r requirements.txt` installs numpy and onnxruntime, nothing else (Python 3.8 or newer).
2. `python -m export.verify` in this folder checks files, answers and time, and names the file for this machine.
3. Exit code 0: all answers are right; 4: changed files or wrong answers; 3: something is missing; 2: wrong usage.
4. `python -m export.verify --json ../device.json` also writes the numbers; `--preprocess CMD` checks your own photo \
decoder, see `--help`.
5. In an application: `from export.runtime import Model`, then `Model.load("{file}").run(images)`.
6. Images are RGB, uint8 (N, {size}, {size}, 3); answers are logits, float32 (N, {classes}), of the classes in \
`Model.contract.classes`.
7. In a browser: `npm install onnxruntime-web@{web}`, copy its `dist` to a folder `ort` beside this one, and serve \
the folder above both.
8. `manifest.json` lists every file with its sha256; `sha256sum -c checksums.sha256` checks them without Python.
"""
_SYNTHETIC = "9. The images are synthetic: they check a device's answers, and accuracy is not measured on them.\n"


@dataclass(frozen=True)
class Shipped:
    """A model to bundle.

    `role` is student or teacher, `precision` fp32 or int8; `target` is the instruction set that an int8 file was built
    for.
    """

    path: Path
    role: str
    precision: str
    target: str | None = None


@dataclass(frozen=True)
class Bundle:
    """The bundle as `write` left it: its folder, its zip, and the `files` in it by names relative to `folder`."""

    folder: Path
    archive: Path
    archive_sha256: str
    archive_bytes: int
    files: tuple[str, ...]


def write(
    folder: Path,
    models: Sequence[Shipped],
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    title: str = "model",
    min_runtime: str = "1.19",
    resize: int | None = None,
    own_photos: Sequence[Path] = (),
) -> Bundle:
    """Write `folder` anew, and `folder.zip` beside it; equal inputs give equal bytes.

    Expected logits come from this machine's onnxruntime. If its kernels would saturate, the operators of the file run
    one by one.

    Args:
        folder: the bundle to write.
        models: what goes in.
        images: uint8 (N, H, W, 3).
        labels: integers (N,); None: the images are synthetic and have no right class.
        title: heading of the bundle's README.
        min_runtime: the oldest onnxruntime that loads the models.
        resize: what the short side of a photo is resized to before its centre is cut out, at least H; None leaves the
            photos out.
        own_photos: image files of the user that are added to the drawn photos, byte for byte.

    Raises:
        ExportError: a model does not fit the bundle, or there are no images.
        UnavailableError: a model file is not there.
    """
    _check(models, images, labels)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "export" / "runtime").mkdir(parents=True)
    entries = [_ship(model, partial, images) for model in models]
    arrays = {"images": images} if labels is None else {"images": images, "labels": np.asarray(labels, dtype=np.int64)}
    arrays.update({f"logits/{entry['file']}": logits for entry, logits in entries})
    np.savez(partial / "samples.npz", **arrays)  # type: ignore[arg-type]
    photos = _photos(partial, models, images, resize, own_photos) if resize is not None else None
    for name in RUNTIME_FILES:
        shutil.copyfile(PACKAGE / name, partial / "export" / name)
    _page(partial)
    shipped = max(models, key=lambda model: (model.role == "student", model.precision == "int8"))
    # Not the teacher's contract: that may be a foreign file.
    contract = Model.load(shipped.path).contract
    text = _README.format(
        title=title,
        classes=len(contract.classes),
        size=contract.image_size,
        file=shipped.path.name,
        web=onnxruntime_web.VERSION,
    )
    text += _SYNTHETIC if labels is None else ""
    (partial / "README.md").write_text(text, encoding="utf-8")
    (partial / "requirements.txt").write_text(f"numpy>=1.21\nonnxruntime>={min_runtime}\n", encoding="utf-8")
    _write_manifest(partial, [entry for entry, _ in entries], contract, len(images), photos)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return _archive(folder)


def _check(models: Sequence[Shipped], images: np.ndarray, labels: np.ndarray | None) -> None:
    if not models:
        raise ExportError("a bundle needs at least one model")
    for model in models:
        if not model.path.is_file():
            raise UnavailableError(f"{model.path}: no such file")
        if (model.precision == "int8") != (model.target is not None):
            raise ExportError(f"{model.path.name}: int8 files name their target, float files have none")
    names = [model.path.name for model in models]
    if len(set(names)) != len(names) or set(names) & RESERVED_NAMES:
        raise ExportError(f"models of a bundle need names of their own, not {', '.join(names)}")
    given = len(images) if labels is None else len(labels)
    if len(images) == 0 or len(images) != given:
        raise ExportError(f"a bundle needs as many labels as images, at least one; got {given} and {len(images)}")


def _ship(shipped: Shipped, folder: Path, images: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Copy one model; return its manifest entry and its expected logits float32 (N, K)."""
    copy_model(shipped.path, folder / shipped.path.name)
    model = Model.load(shipped.path, as_written=saturates(shipped.target, isa()))
    if model.target != shipped.target:
        raise ExportError(f"{shipped.path.name}: the file was built for {model.target}, not for {shipped.target}")
    logits = model.run(images)
    foreign = ("channels", "order", "own_size") if model.contract.made_by == FOREIGN else ()
    is_float = shipped.precision == "fp32"
    tolerance = FLOAT_TOLERANCE * max(1.0, float(np.abs(logits).max()))
    entry = {
        "file": shipped.path.name,
        "role": shipped.role,
        "precision": shipped.precision,
        "target": shipped.target,
        **_described(folder / shipped.path.name),
        "normalize": {"mean": list(model.contract.mean), "std": list(model.contract.std)},
        "layout": model.contract.layout,
        **{name: getattr(model.contract, name) for name in foreign},
        "max_abs_diff": tolerance if is_float else None,
        "min_agreement": 1.0 if is_float else INT8_AGREEMENT,
    }
    return entry, logits


def _photos(
    folder: Path, models: Sequence[Shipped], images: np.ndarray, resize: int, own_photos: Sequence[Path]
) -> dict[str, Any]:
    """Write the photos, and photos.npz with right pixels, faulty pixels and logits; return the manifest entry."""
    from export.bundle import photos

    preferred = max(models, key=lambda model: model.role == "student")
    scale = value_range(Model.load(preferred.path).contract.preprocessing)
    entry, arrays = photos.write(folder, images, resize, own_photos, scale)
    loaded = {model.path.name: Model.load(model.path, as_written=saturates(model.target, isa())) for model in models}
    logits = {f"logits/{name}": model.run(arrays["pixels"]) for name, model in loaded.items()}
    np.savez_compressed(folder / entry["file"], **arrays, **logits)  # type: ignore[arg-type]
    return entry


def _page(folder: Path) -> None:
    """Copy index.html and what it loads."""
    source = Path(__file__).with_name(PAGE)
    (folder / PAGE).mkdir()
    shutil.copyfile(source / "index.html", folder / "index.html")
    for name in PAGE_FILES:
        shutil.copyfile(source / name, folder / PAGE / name)


def npz_layout(path: Path) -> dict[str, dict[str, Any]]:
    """Return where each array of an uncompressed npz lies: {name: {offset, dtype, shape}}.

    The arrays are little-endian, so that a page can read them as they are. Raises ExportError for other files.
    """
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for member in archive.infolist():
            # The local header's last two fields are the lengths of the name and of the extra field.
            stream.seek(member.header_offset + 26)
            skipped = int.from_bytes(stream.read(2), "little") + int.from_bytes(stream.read(2), "little")
            stream.seek(skipped, os.SEEK_CUR)
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            if member.compress_type != zipfile.ZIP_STORED or fortran or dtype.byteorder == ">":
                raise ExportError(f"{path.name}: {member.filename} is not stored plainly")
            found[member.filename.removesuffix(".npy")] = {
                "offset": stream.tell(),
                "dtype": dtype.name,
                "shape": list(shape),
            }
    return found


def _described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _write_manifest(
    folder: Path,
    entries: list[dict[str, Any]],
    contract: runtime.Contract,
    count: int,
    photos: dict[str, Any] | None,
) -> None:
    arrays = npz_layout(folder / "samples.npz")
    synthetic = {} if "labels" in arrays else {"synthetic": True}
    manifest = {
        "schema": 1,
        "made_by": contract.made_by,
        "classes": list(contract.classes),
        "image_size": contract.image_size,
        "preprocessing": contract.preprocessing,
        "samples": {"file": "samples.npz", "images": count, **synthetic, "arrays": arrays},
        "photos": photos,
        "onnxruntime": onnxruntime.__version__,
        "expected_on": runtime.isa(),
        "models": entries,
        "files": {name: _described(folder / name) for name in _listed(folder)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{_described(folder / name)['sha256']}  {name}\n" for name in _listed(folder)]
    (folder / "checksums.sha256").write_text("".join(lines), encoding="utf-8")


def _archive(folder: Path) -> Bundle:
    archive = folder.with_name(folder.name + ".zip")
    partial = archive.with_name(archive.name + ".partial")
    files = _listed(folder)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as stream:
        for name in files:
            entry = zipfile.ZipInfo(f"{folder.name}/{name}", date_time=_ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whatever system writes it
            entry.external_attr = 0o644 << 16
            stream.writestr(entry, (folder / name).read_bytes())
    os.replace(partial, archive)
    described = _described(archive)
    return Bundle(folder, archive, described["sha256"], described["bytes"], tuple(files))
