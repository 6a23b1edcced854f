"""Files for a minimal onnxruntime: the model in the `.ort` format and the list of kernels that such a build needs."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from export.graph import rewrites
from export.graph.quiet import quiet
from export.runtime import SESSION_ERRORS, TARGETS, ExportError, Model, isa, runs_on, session_options

# A minimal build has no optimiser, so the optimisations are made here and stored. On ARM int8 activations stay int8;
# elsewhere the session turns them into uint8, which is what x86 and wasm kernels compute with.
_KEEPS_INT8 = {"x86-vnni": "0", "x86-avx2": "0", "arm64": "1", "web": "0"}
# Blocked channels are stored in the width of the converting CPU; such a file would be right on this kind of CPU only.
_MACHINE_SPECIFIC = ["NchwcTransformer"]
# Limits on the difference, as a share of the largest logit: for the same kernels, and for int8 kernels that round in
# another way. A wrong file is off by more than the largest logit.
SAME_KERNELS_LIMIT, OTHER_ROUNDING_LIMIT = 1e-3, 0.25


@dataclass(frozen=True)
class Minimal:
    """What was written.

    `operators` lists each kernel that the build must contain, as "domain:operator". `max_abs_diff` is the difference of
    logits from the .onnx file, on this machine.
    """

    target: str
    bytes: int
    config_bytes: int
    operators: tuple[str, ...]
    max_abs_diff: float


def to_ort(source: Path, ort: Path, config: Path, *, target: str) -> Minimal:
    """Write an ONNX file in the .ort format, and the configuration of a build that runs it.

    The bytes of `ort` are not reproducible: onnxruntime orders its tables by addresses in memory.

    Args:
        source: the .onnx file.
        ort: the .ort file to write.
        config: the list of operators and their types to write, for onnxruntime's build options
            `--include_ops_by_config FILE --enable_reduced_operator_type_support`.
        target: the instruction set, one of TARGETS.

    Raises:
        ExportError: the file cannot be written for this target, or gives other answers.
    """
    if target not in TARGETS:
        raise ExportError(f"no .ort file can be made for {target!r}; known are {', '.join(TARGETS)}")
    model = Model.load(source)
    if model.target not in (None, target):
        raise ExportError(
            f"{source.name}: this int8 file was built for {model.target}; its .ort file would not be for {target}"
        )
    ort.parent.mkdir(parents=True, exist_ok=True)
    _convert(source, ort, target)
    operators = _operators(ort, config)
    return Minimal(target, ort.stat().st_size, config.stat().st_size, operators, _check(model, ort))


def _convert(source: Path, ort: Path, target: str) -> None:
    partial = ort.with_name(ort.name + ".partial")
    options = session_options(threads=1)
    options.optimized_model_filepath = str(partial)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", _KEEPS_INT8[target])
    try:
        onnxruntime.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=_MACHINE_SPECIFIC
        )
    except SESSION_ERRORS as error:
        raise ExportError(
            f"{source.name}: onnxruntime cannot write this file as .ort: {str(error).splitlines()[0]}"
        ) from error
    os.replace(partial, ort)


def _operators(ort: Path, config: Path) -> tuple[str, ...]:
    """Write the list of operators, without the comment that names the converted file's folder; return the operators."""
    with tempfile.TemporaryDirectory() as folder, _logging_as_it_was():
        from onnxruntime.tools.ort_format_model import create_config_from_models

        written = Path(folder) / "operators.config"
        create_config_from_models([ort], written, True)
        lines = [line for line in written.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    config.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tuple(
        f"{domain}:{name}" for line in lines for domain, _, entries in [line.split(";", 2)] for name in _names(entries)
    )


def _names(entries: str) -> Iterator[str]:
    """Yield the operators of `Add{"inputs": ...},Mul`: the words outside the braces."""
    depth, name = 0, ""
    for letter in entries:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield name
            name = ""
        elif depth == 0 and letter != "}":
            name += letter
    if name:
        yield name


def _check(model: Model, ort: Path) -> float:
    """Return the largest difference of the logits. Removes the file and raises ExportError if it is too large."""
    converted = Model.load(ort)
    images = rewrites.noise_images(model.contract)
    expected, found = model.run(images), converted.run(images)
    difference = float(np.abs(expected.astype(np.float64) - found).max())
    limit = (SAME_KERNELS_LIMIT if runs_on(model.target, isa()) else OTHER_ROUNDING_LIMIT) * float(
        np.abs(expected).max()
    )
    if converted.contract != model.contract or not difference <= limit:
        ort.unlink()
        raise ExportError(
            f"{ort.name}: the answers differ from those of the .onnx file by {difference:.3g} (limit {limit:.3g})"
        )
    return difference


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Restore the root logger, which onnxruntime's tools configure on import, and keep them quiet."""
    root = logging.root
    handlers, level = list(root.handlers), root.level
    try:
        with quiet():
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
