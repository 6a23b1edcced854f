"""A model file in an onnxruntime session: `Model.load(path).run(images)`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from export.runtime.contract import (
    INPUT,
    METADATA_PREFIX,
    OUTPUT,
    Contract,
    ExportError,
    UnavailableError,
    normalize,
    read_sidecar,
    resize_matrix,
)

CPU = "CPUExecutionProvider"

# onnxruntime's exceptions share no base class of their own.
SESSION_ERRORS = tuple(
    kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)
) + (RuntimeError,)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options that an application should use: a fixed number of threads and every graph optimisation.

    Idle threads do not spin. Spinning burns the other cores of a shared or battery-powered device, and with a busy
    neighbour it was measured slower (12.8 against 7.8 ms, two threads).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


class Model:
    """An ONNX file with a contract, loaded on the CPU, or in another execution provider that falls back to the CPU."""

    def __init__(
        self, session: onnxruntime.InferenceSession, contract: Contract, target: str | None, load_ms: float
    ) -> None:
        self.session = session
        self.contract = contract
        # The instruction set that an int8 file was built for; None for float.
        self.target = target
        self.load_ms = load_ms
        self.input, self.output = session.get_inputs()[0].name, session.get_outputs()[0].name
        own = contract.own_size
        self.resize_matrix = None if own in (None, contract.image_size) else resize_matrix(contract.image_size, own)

    @staticmethod
    def load(
        path: str | Path,
        threads: int = 1,
        provider: str | None = None,
        *,
        profile: str | None = None,
        as_written: bool = False,
    ) -> Model:
        """Load a file that was exported by this product, or a foreign one with a contract beside it.

        Args:
            path: the .onnx or .ort file.
            threads: intra-op threads, at least 1.
            provider: onnxruntime's name of an execution provider; None: the CPU.
            profile: prefix of the files that a profile with the times of single nodes is written to.
            as_written: run every operator by itself, so that no integer kernel of this machine takes part.

        Raises:
            UnavailableError: there is no such file.
            ExportError: onnxruntime refuses the file, or it has no contract.
        """
        if threads < 1:
            raise ExportError(f"threads must be at least 1, not {threads}")
        if not Path(path).is_file():
            raise UnavailableError(f"{path}: no such file")
        options = session_options(threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = list(dict.fromkeys([provider or CPU, CPU]))
        start = time.perf_counter()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except SESSION_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise ExportError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load this file: {reason}"
            ) from error
        load_ms = (time.perf_counter() - start) * 1e3
        metadata = session.get_modelmeta().custom_metadata_map
        foreign = read_sidecar(Path(path))
        contract = foreign or Contract.from_metadata(metadata)
        names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
        if foreign is None and names != ([INPUT], [OUTPUT]):
            raise ExportError(
                f"{path}: expected one input {INPUT!r} and one output {OUTPUT!r}, found {names[0]} and {names[1]}"
            )
        target = metadata.get(METADATA_PREFIX + "target")
        return Model(session, contract, None if target is None else json.loads(target), load_ms)

    def feed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the session's input for images uint8 (N, H, W, 3)."""
        if self.contract.layout == "uint8_nhwc":
            return {self.input: images}
        pixels = normalize(images, self.contract)
        if self.resize_matrix is not None:
            pixels = np.matmul(np.matmul(self.resize_matrix, pixels), self.resize_matrix.T)
        if self.contract.channels == "bgr":
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if self.contract.layout == "float_nhwc":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        return {self.input: pixels}

    def check(self, images: np.ndarray) -> None:
        """Raise ExportError unless `images` is uint8 (N, image_size, image_size, 3)."""
        size = self.contract.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ExportError(f"images must be uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}")

    def run(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Return logits float32 (N, K) of images uint8 (N, H, W, 3), computed `batch` images at a time."""
        self.check(images)
        fixed = self.session.get_inputs()[0].shape[0]
        batch = fixed if isinstance(fixed, int) else batch
        parts = [np.zeros((0, len(self.contract.classes)), dtype=np.float32)]
        order = self.contract.order
        for start in range(0, len(images), batch):
            part = np.ascontiguousarray(images[start : start + batch])
            # A file with a fixed batch takes whole batches only.
            short = batch - len(part) if isinstance(fixed, int) else 0
            padded = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
            (logits,) = self.session.run([self.output], self.feed(padded))
            parts.append((logits if order is None else logits[:, list(order)])[: len(part)])
        return np.concatenate(parts)
