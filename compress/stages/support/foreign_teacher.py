"""A teacher that is another project's ONNX file, written with logits as its only output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.core.errors import MissingError, UsageError
from compress.core.records.base import File
from compress.core.records.training import Network
from compress.data.augment import views
from compress.models.input_adapter import InputAdapter

READING = 1  # part of the teacher stage's key for ONNX files; raised when the same file is read as other logits
IMAGES = 64  # that the outputs are looked at on


def external_files(path: Path) -> tuple[File, ...]:
    """Return the files that hold the weights of an ONNX file. Raises MissingError or UsageError."""
    from export.graph import foreign_logits
    from export.runtime import ExportError, UnavailableError

    try:
        return tuple(File.of(one) for one in foreign_logits.external_files(path))
    except UnavailableError as error:
        raise MissingError(f"onnx: {error}") from error
    except ExportError as error:
        raise UsageError(f"onnx: {error}") from error


def network_input(network: Network, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images uint8 (N, S, S, 3) as the network's file takes them, (N, 3, s, s)."""
    mean, std = (torch.tensor(values) for values in (network.normalization.mean, network.normalization.std))
    adapter = InputAdapter(nn.Identity(), size=network.own_size, bgr=network.channels == "bgr", order=None)
    pixels: NDArray[np.float32] = adapter(views.to_float(torch.from_numpy(images), mean, std)).numpy()
    return pixels


def read_foreign(network: Network, source: Path, target: Path, images: NDArray[np.uint8]) -> tuple[str, ...]:
    """Write the file with logits as its only output, and return what was done, one sentence each.

    Args:
        network: The record of the file.
        source: The file.
        target: The file to write.
        images: Real images, uint8 (N, S, S, 3).

    Raises:
        UsageError: The file is not what the recipe says.
    """
    from export.graph.foreign_logits import write_logits
    from export.runtime import ExportError

    try:
        return write_logits(
            source,
            target,
            pixels=network_input(network, images[:IMAGES]),
            outputs=network.outputs or network.classes,
            output=network.output,
        ).notes
    except ExportError as error:
        raise UsageError(f"teacher {network.model}: {error}") from error
