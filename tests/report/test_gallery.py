"""File names of the images that a report shows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.core.records.base import File
from compress.report import gallery, run_folder
from compress.report.page import render
from compress.report.sections.images import LONGEST_NAME, file_name
from compress.verdict.slices import class_rows, mistakes, slice_images
from tests.support import report_example as example

LONG = "Käfer/" + "deep/" * 20 + "IMG_0001.jpg"


def test_each_image_has_the_name_of_its_file_also_where_images_are_equal() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    images[30:] = images[:30]  # every image twice, with the same class and the same answers
    labels = np.tile(np.arange(30) % 3, 2)
    teacher = np.eye(3)[labels] * 5
    student = np.tile(rng.normal(size=(30, 3)), (2, 1))
    rows = class_rows(labels, teacher, student, None, ("a", "b", "c"))
    chosen = {
        **mistakes(images, labels, teacher, student),
        **slice_images(images, labels, teacher, student, [{**row, "worse": True} for row in rows]),
    }
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    found = gallery.with_names(chosen, {"sha256": hashes, "labels": labels}, [f"x/{n}.jpg" for n in range(60)])
    for names, shown, right in (("names", "images", "labels"), ("slice_names", "slice_images", "slice_labels")):
        positions = [int(name[2:-4]) for name in found[names]]
        assert len(positions) == len(found[shown]) > 10
        assert (images[positions] == found[shown]).all() and (labels[positions] == found[right]).all()
    for group in set(found["slice_name"].tolist()):
        in_group = found["slice_names"][found["slice_name"] == group].tolist()
        assert len(set(in_group)) == len(in_group)  # twins are two files


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("files", [True, False])
def test_the_run_folder_has_names_and_no_pixel_that_it_may_not_have(tmp_path: Path, shown: bool, files: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    labels, hashes = np.arange(6) % 2, [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    chosen = {"images": images[[4, 1]], "labels": labels[[4, 1]], "student": labels[[1, 4]], "index": np.array([4, 1])}
    np.savez(tmp_path / "gallery.npz", **chosen)
    np.savez(tmp_path / "predictions.npz", sha256=np.array(hashes), labels=labels)
    np.save(tmp_path / "names.npy", np.array([f"x/{number}.jpg" for number in range(6)]))
    evidence: Any = SimpleNamespace(
        recipe=SimpleNamespace(shows_images=shown),
        prepared=SimpleNamespace(test_names=File.of(tmp_path / "names.npy") if files else None),
        measured=SimpleNamespace(
            gallery=File.of(tmp_path / "gallery.npz"), predictions=File.of(tmp_path / "predictions.npz")
        ),
    )
    run_folder._write_gallery(evidence, tmp_path / "pictures.npz")
    with np.load(tmp_path / "pictures.npz") as stored:
        names = {(True, True): ["x/4.jpg", "x/1.jpg"], (True, False): None, (False, True): ["x/4.jpg", "x/1.jpg"]}
        expected = names.get((shown, files), ["test image 4", "test image 1"])
        assert (stored["names"].tolist() if "names" in stored.files else None) == expected
        assert ("images" in stored.files) == shown and stored["labels"].tolist() == [0, 1]


def test_the_page_names_the_files_of_mistakes(tmp_path: Path) -> None:
    example.build(tmp_path, n=400)
    with np.load(tmp_path / "pictures.npz") as stored:
        arrays = dict(stored)
    names = [f"cat/{number}.jpg" for number in range(len(arrays["images"]))]
    names[:2] = [LONG, "<script>alert(1)</script>.jpg"]
    np.savez_compressed(tmp_path / "pictures.npz", **arrays, names=np.array(names))
    page = render(tmp_path).read_text(encoding="utf-8")
    section = page.partition('<section id="pictures"')[2].partition("</section>")[0]
    assert all(f">{name}</code>" in section for name in names[2:])
    assert f'title="{LONG}">' in section and f">{LONG}<" not in section and "IMG_0001.jpg</code>" in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg</code>" in section and "<script>" not in section
    assert "predictions.csv" in section


def test_a_report_without_images_names_the_files_and_says_why(tmp_path: Path) -> None:
    report = example.build(tmp_path, n=400)
    rng = np.random.default_rng(1)
    with np.load(tmp_path / "pictures.npz") as stored:
        arrays = dict(stored)
    names = np.array([f"cat/{number}.jpg" for number in range(len(arrays["images"]))])
    slices = {
        "slice_images": arrays["images"][:2],
        "slice_labels": np.array([3, 4]),
        "slice_student": np.array([4, 3]),
        "slice_margin": np.array([0.1, 0.3]),
        "slice_name": np.array(["least sure tenth", "class Dress"]),
        "slice_names": np.array(["cat/s1.jpg", "cat/s2.jpg"]),
    }
    pairs = {
        "first": rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8),
        "second": rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8),
        "first_name": np.array(["cat/near1.jpg", "cat/near2.jpg"]),
        "second_name": np.array(["cat/near3.jpg", "cat/near4.jpg"]),
    }
    report["images_shown"] = False
    report["per_class"][3] |= {"worse": True, "float_worse": False}
    report["near_duplicates"] = {"test": 2, "test_images": 400, "validation": 0, "validation_images": 40}
    (tmp_path / "report.json").write_text(json.dumps(report))
    kept = gallery.without_images({**arrays, "names": names, **slices})
    assert {"images", "slice_images"}.isdisjoint(kept) and {"labels", "names", "slice_names"} <= set(kept)
    np.savez_compressed(tmp_path / "pictures.npz", **kept)
    np.savez_compressed(tmp_path / "near_duplicates.npz", **gallery.without_images(pairs))
    page = render(tmp_path).read_text(encoding="utf-8")
    assert "data:image" not in page and "<img" not in page
    assert page.count("report.images: false") == 3  # mistakes, slices, near-duplicates
    for name in (*names[:24], "cat/s1.jpg", "cat/s2.jpg", *pairs["first_name"], *pairs["second_name"]):
        assert f">{name}</code>" in page


def test_a_long_path_keeps_its_beginning_and_its_end() -> None:
    short = file_name("a" * LONGEST_NAME)
    assert (short.text, short.title) == ("a" * LONGEST_NAME, "")
    name = file_name(LONG)
    head, tail = name.text.split("\u2026")
    assert len(name.text) == LONGEST_NAME and LONG.startswith(head) and LONG.endswith(tail) and len(tail) > len(head)
    assert name.title == LONG
