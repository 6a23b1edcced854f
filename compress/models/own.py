"""A network of one's own, `package.module:function`: Python code that is run, so a recipe may name one only where it is allowed to."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path

from torch import nn

from compress.errors import MissingError, UsageError
from compress.results import sha256_of


def build(name: str, classes: int) -> nn.Module:
    """What the function gives for `classes=`; activations are switched to out-of-place, so that a tap keeps what it saw.

    Raises MissingError where the module is not found, UsageError where it has no such function or that gives no module.
    """
    path, function = name.split(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise _not_found(name, f"there is no module {error.name!r}") from error
    make = getattr(module, function, None)
    if not callable(make) or "classes" not in inspect.signature(make).parameters:
        raise UsageError(f"model: {name}: {path} has no function {function}(classes); it is called with the number of classes and gives an nn.Module")
    model = make(classes=classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model: {name} gives a {type(model).__name__}, not an nn.Module")
    for part in model.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return model


def source(name: str) -> str:
    """sha256 (hex) of the code: all of the package's Python files, or the one file. Nothing is run."""
    top = name.split(":")[0].split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise _not_found(name, f"there is no module {top!r}")
    roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [(path.relative_to(root).as_posix(), path) for root in roots for path in sorted(root.rglob("*.py"))]
    files = files or [(Path(spec.origin or "").name, Path(spec.origin or ""))]
    return sha256_of([[shown, path.read_text(encoding="utf-8", errors="replace")] for shown, path in files])


def head(model: nn.Module, name: str) -> str:
    """The path of the last Linear, whose input is read as the pooled vector. Raises UsageError where there is none."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise UsageError(f"model: {name} has no Linear layer to give the logits; end it with one")
    return paths[-1]


def _not_found(name: str, reason: str) -> MissingError:
    return MissingError(f"model: {name}: {reason}; it is looked for beside the recipe, in the working folder and among installed packages: ls")
