"""What may be loaded: each promise in a process of its own in which every other package cannot be imported.

Who may import whom is said in pyproject.toml and checked by `make lint` (import-linter).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "matplotlib",
    "PIL",
    "scipy",
    "pandas",
    "sklearn",
    "timm",
)

# A process in which only the standard library and the packages named in argv[1] can be imported.
ALONE = """
import sys
allowed = {*sys.argv.pop(1).split(","), *sys.stdlib_module_names}
class Only:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed and not name.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not to be loaded here", name=name)
        return next((spec for one in self.finders if (spec := one.find_spec(name, path, target)) is not None), None)
sys.meta_path[:] = [Only(list(sys.meta_path))]
"""
# A process in which these packages, each a second or more to load, cannot be imported.
HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "scipy", "pandas", "sklearn", "timm")
LIGHT = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))"


def modules_in(folder: str) -> list[str]:
    """Return the dotted names of all modules in a folder of the checkout."""
    names = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / folder).rglob("*.py"))]
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


def test_what_travels_needs_numpy_and_onnxruntime_alone():
    names = ["export", "export.verify", *modules_in("export/runtime")]
    assert len(names) >= 11
    done = python(f"{ALONE}\nimport {', '.join(names)}", "export,numpy,onnxruntime")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["core", "recipe", "report", "verdict"])
def test_a_folder_loads_without_torch_and_onnx(folder):
    done = python(f"{LIGHT}\nimport {', '.join(modules_in(f'compress/{folder}'))}")
    assert done.returncode == 0, done.stderr


def test_help_and_a_wrong_recipe_load_neither_torch_nor_onnx(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("data: {source: fashion}\nteacher: {candidates: []}\n")
    code = f"{LIGHT}\nfrom compress.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    assert python(code, "--help").returncode == 0
    done = python(code, "check", str(wrong))
    assert done.returncode == 2 and "wrong.yaml:" in done.stderr, done.stderr


@pytest.mark.slow
def test_every_module_loads_without_what_only_unix_has():
    """Windows has none of these; filelock, which is loaded first, has its own way there."""
    hidden = ("fcntl", "grp", "pwd", "resource", "termios")
    names = [name for folder in ("compress", "export") for name in modules_in(folder) if not name.endswith("__main__")]
    assert len(names) > 200
    done = python(f"import sys, filelock\nsys.modules.update(dict.fromkeys({hidden!r}))\nimport {', '.join(names)}")
    assert done.returncode == 0, done.stderr


def test_no_file_shadows_a_package():
    names = {path.name for folder in ("compress", "export") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {f"{name}.py" for name in (*OPTIONAL, "torch", "numpy", "rich", "click", "yaml")}


BLOCKED = f"""
import sys
from importlib.abc import MetaPathFinder
class Without(MetaPathFinder):
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            return None
        return next((spec for one in self.finders if (spec := one.find_spec(name, path, target)) is not None), None)
sys.meta_path[:] = [Without(list(sys.meta_path))]
import importlib.metadata
found = importlib.metadata.version
def version(name):
    if name in {OPTIONAL!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_training_stages_import_without_optional_packages():
    names = "compress.pipeline.run, " + ", ".join(
        f"compress.stages.{name}" for name in ("data", "teacher", "distill", "strip")
    )
    done = python(f"{BLOCKED}\nimport {names}\nprint(sorted(set(sys.modules) & set({OPTIONAL!r})))")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.slow
def test_until_strip_runs_with_torch_and_a_few_small_packages_alone(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "data: {source: fashion, limit_train: 60, limit_test: 20, validation: 0.2}\n"
        "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\n"
        "student: {model: shufflenet_v2, width: 0.5}\ntrain: {epochs: 1}\n"
    )
    call = "sys.exit(main(['check', sys.argv[1]]) or main(['run', *sys.argv[1:]]))"
    code = f"{BLOCKED}\nfrom compress.cli.main import main\n{call}"
    done = python(code, str(recipe), "--artifacts", str(tmp_path / "a"), "--until", "strip")
    assert done.returncode == 0, done.stderr
    assert "tiny.yaml: ok\n" in done.stdout and "stopped after strip, as asked" in done.stdout
