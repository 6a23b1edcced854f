"""Further forms of the student's files: for one image at a time, and for a minimal onnxruntime."""

from __future__ import annotations

import export.graph.from_torch
import export.graph.ort_format
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import Extra, ModelFile, Packaged
from compress.core.store import Context, Stage
from compress.recipe.schema import Export
from export.runtime import ExportError


def run_package(
    config: Export, *, context: Context, models: tuple[ModelFile, ...], target: str, versions: dict[str, str]
) -> Packaged:
    """Write the forms that the recipe asks for, and compare each with the file that it was made from.

    Args:
        config: The recipe's `export` section.
        context: Of the stage.
        models: The shipped files.
        target: What the float .ort file is made for.
        versions: Versions of torch, onnx and onnxruntime; part of the key only.
    """
    files: list[Extra] = []
    try:
        for model in (model for model in models if model.role == "student"):
            files += _fixed(model, context) if config.fixed_batch else []
            files += _minimal(model, context, model.target or target) if config.ort else []
    except ExportError as error:
        raise StageError(f"package: {error}") from error
    return Packaged(tuple(files))


def _fixed(model: ModelFile, context: Context) -> list[Extra]:
    name = model.name.replace(".onnx", ".batch1.onnx")
    difference = export.graph.from_torch.fixed_batch(model.file.path, context.work / name)
    return [Extra(name, "batch1", model.name, File.of(context.work / name), model.target, difference, None)]


def _minimal(model: ModelFile, context: Context, target: str) -> list[Extra]:
    ort, config = model.name.replace(".onnx", ".ort"), model.name.replace(".onnx", ".operators.config")
    made = export.graph.ort_format.to_ort(model.file.path, context.work / ort, context.work / config, target=target)
    return [
        Extra(ort, "ort", model.name, File.of(context.work / ort), target, made.max_abs_diff, made.operators),
        Extra(config, "operators", model.name, File.of(context.work / config), target, None, None),
    ]


PACKAGE = Stage("package", 1, run_package, Packaged)
