"""A teacher that is an ONNX file: it runs in onnxruntime and returns logits, no features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.core.errors import StageError


class OnnxNetwork(nn.Module):
    """Normalized RGB (N, 3, S, S) on any device -> float32 (N, K) on the same device, without gradient.

    The module has no torch parameters.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        import onnxruntime  # not needed to train with other teachers

        from export.runtime import session_options

        self.session = onnxruntime.InferenceSession(
            str(path), session_options(threads), providers=["CPUExecutionProvider"]
        )
        value = self.session.get_inputs()[0]
        self.input, self.channels_last = value.name, value.shape[3] == 3
        self.batch = value.shape[0] if isinstance(value.shape[0], int) else None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K). If the file takes a fixed batch size, the last batch is padded."""
        pixels = x.float().cpu().numpy()
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if self.channels_last else pixels)
        step = self.batch or max(len(pixels), 1)
        parts = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            short = (self.batch or len(part)) - len(part)
            fed = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
            parts.append(self.session.run(None, {self.input: fed})[0][: len(part)])
        return torch.from_numpy(np.concatenate(parts)).to(x.device)


def check_finite(model: str, logits: Tensor) -> None:
    """Raise StageError where a teacher answers a training image with NaN or infinity."""
    bad = int((~torch.isfinite(logits).all(dim=1)).sum())
    if bad:
        raise StageError(
            f"teacher {model}: its logits are not finite (NaN or infinite) for {bad:,} of {len(logits):,} views of "
            "training images, so it cannot teach; check the file, and what it expects: normalize, channels, output"
        )
