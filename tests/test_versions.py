"""A stage's version is raised when its numbers change: its source is pinned, so that a change cannot be overlooked.

`python tests/test_versions.py --pin` writes the digests of the source as it is now.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from compress.stages import convert, data, device, distill, proxy, quantize, ship_float, strip, teacher, tune, validate
from compress.training.teacher.signals import LOGITS_VERSION

ROOT = Path(__file__).parents[1]
PINS = Path(__file__).parent / "golden" / "stages.json"

DATA, IMAGES = "compress/data", "export/runtime/images.py"
MODELS, RANDOM = "compress/models", "compress/core/stateless_random.py"
TRAINING = ("compress/training", "compress/methods", "compress/core/distributed.py", DATA, IMAGES, MODELS, RANDOM)
FOREIGN = (
    "compress/stages/support/foreign_teacher.py",
    "export/graph/foreign_logits.py",
    "export/graph/foreign_outputs.py",
)
VERDICT, RUNTIME, GRAPH, INT8 = "compress/verdict", "export/runtime", "export/graph", "export/int8"

# What decides the numbers of each stage, beside its inputs: files, and folders with all that is in them.
# "logits" is the disk copy of a teacher's answers.
SOURCES: dict[str, tuple[int, tuple[str, ...]]] = {
    "data": (data.PREPARE.version, ("compress/stages/data.py", DATA, IMAGES)),
    "teacher": (teacher.TEACHER.version, ("compress/stages/teacher.py", *FOREIGN, *TRAINING)),
    "logits": (
        LOGITS_VERSION,
        ("compress/training/build.py", "compress/training/teacher", DATA, IMAGES, MODELS, RANDOM),
    ),
    "distill": (distill.DISTILL.version, ("compress/stages/distill.py", *TRAINING)),
    "proxy": (proxy.PROXY.version, ("compress/stages/proxy.py", *TRAINING)),
    "strip": (strip.STRIP.version, ("compress/stages/strip.py", *TRAINING)),
    "convert": (convert.CONVERT.version, ("compress/stages/convert.py", DATA, MODELS, GRAPH, RUNTIME)),
    "quantize": (quantize.QUANTIZE.version, ("compress/stages/quantize.py", DATA, GRAPH, INT8, RUNTIME)),
    "tune": (tune.TUNE.version, ("compress/stages/tune.py", *TRAINING, GRAPH, INT8)),
    "validate": (
        validate.VALIDATE.version,
        (
            "compress/stages/validate.py",
            "compress/stages/support",
            VERDICT,
            DATA,
            GRAPH,
            RUNTIME,
            "export/bundle",
            "export/verify.py",
        ),
    ),
    "settle": (ship_float.SHIP_FLOAT.version, ("compress/stages/ship_float.py", VERDICT, DATA, IMAGES)),
    "device": (device.DEVICE.version, ("compress/stages/device.py",)),
}
SUFFIXES = (".py", ".c", ".h")


def files(places: tuple[str, ...]) -> list[str]:
    """Return the source files at `places`, relative to the root, sorted."""
    found = {ROOT / place for place in places if (ROOT / place).is_file()}
    for place in places:
        found.update(path for path in (ROOT / place).rglob("*") if path.suffix in SUFFIXES)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def normal(node: Any) -> Any:
    """Return a syntax tree as plain lists, without positions, docstrings and annotations of functions."""
    if isinstance(node, list):
        return [normal(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = {
        name: value
        for name, value in ast.iter_fields(node)
        if value not in (None, []) and name not in ("type_ignores", "kind", "ctx")
    }
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.arg)):
        parts.pop("returns", None)
        parts.pop("annotation", None)
    body = parts.get("body")
    if (
        isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and body
        and ast.get_docstring(node) is not None
    ):
        parts["body"] = body[1:]
    return [type(node).__name__, *([name, normal(value)] for name, value in sorted(parts.items()))]


def digest(source: str) -> str:
    return hashlib.sha256(json.dumps(normal(ast.parse(source))).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return digest(text) if path.suffix == ".py" else hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def current() -> dict[str, dict[str, Any]]:
    return {
        stage: {"version": version, "modules": {name: digest_of(ROOT / name) for name in files(places)}}
        for stage, (version, places) in SOURCES.items()
    }


@pytest.mark.parametrize("stage", SOURCES)
def test_a_changed_stage_has_a_new_version_or_a_new_pin(stage):
    pinned, now = json.loads(PINS.read_text()).get(stage), current()[stage]
    assert pinned is not None, f"{stage} is not pinned: python tests/test_versions.py --pin"
    names = pinned["modules"].keys() | now["modules"].keys()
    changed = sorted(name for name in names if pinned["modules"].get(name) != now["modules"].get(name))
    assert not changed and pinned["version"] == now["version"], (
        f"{stage}: {', '.join(changed) or 'its version'} changed since version {pinned['version']} was pinned "
        f"(it is {now['version']} now); where the same inputs may now give other numbers, raise the stage's version; "
        "then pin: python tests/test_versions.py --pin"
    )


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('def f(a, b=2):\n    """Other words."""\n    return a + b  # and a comment\n', True),
        ("def f(a: int, b: int = 2) -> int:\n    return (a +\n            b)\n", True),
        ("def f(a, b=3):\n    return a + b\n", False),
        ("def f(a, b=2):\n    return a - b\n", False),
        ("def f(a, b=2):\n    'a'\n    'b'\n    return a + b\n", False),
    ],
)
def test_a_digest_sees_code_and_not_words(other, same):
    assert (digest(other) == digest('def f(a, b=2):\n    """Words."""\n    return a + b\n')) is same


def test_stage_names_are_those_of_the_store():
    kinds = (
        data.PREPARE,
        teacher.TEACHER,
        distill.DISTILL,
        proxy.PROXY,
        strip.STRIP,
        convert.CONVERT,
        tune.TUNE,
        quantize.QUANTIZE,
        validate.VALIDATE,
        device.DEVICE,
        ship_float.SHIP_FLOAT,
    )
    assert {stage.name for stage in kinds} == SOURCES.keys() - {"logits"}


if __name__ == "__main__":
    if sys.argv[1:] != ["--pin"]:
        sys.exit("usage: python tests/test_versions.py --pin")
    PINS.write_text(json.dumps(current(), indent=1) + "\n")
    print(f"{PINS}: {len(SOURCES)} stages pinned")
