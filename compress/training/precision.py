"""The arithmetic of a training: float32 or bfloat16, chosen by CPU and GPU features and never by a clock.

Imports nothing from the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The largest finite float16.
LARGEST_LOGIT = 65504.0


def resolve_precision(precision: str, device: str) -> str:
    """Resolve `auto` to "bf16" or "float32"; other values are returned as they are.

    bf16 is chosen on GPUs and CPUs that compute it natively, for depthwise convolutions too (`kernels/depthwise.py`).
    """
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        # Asks the current GPU, which is the one that trains. Before Ampere, bf16 is emulated and slower than float32.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if cpu_has_bf16() else "float32"


def gpu_name(device: str) -> str | None:
    """Return the name of the GPU that trains, None on a CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 (AVX512-BF16 or AMX); False where /proc/cpuinfo is missing."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def round_logits(logits: Tensor) -> Tensor:
    """Return logits as the cache stores them, float16.

    Larger ones are clamped to the largest float16, because a student cannot learn from an infinite logit.
    """
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).to(torch.float16)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Return a context that autocasts to bfloat16, or one that does nothing for float32."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute convolutions in full float32.

    By default torch lets cuDNN round their factors to the ten bits of TF32. A network is judged as its ONNX file
    computes.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
