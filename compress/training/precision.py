"""Which arithmetic a training uses: by CPU flags, never by a clock. Imports nothing of the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST_LOGIT = 65504.0  # of float16


def resolve_precision(precision: str, device: str) -> str:
    """`auto` by flags, never by a clock: bf16 on CUDA cards and CPUs that multiply it, for depthwise convolutions too (`kernels/depthwise.py`)."""
    if precision != "auto":
        return precision
    if device.startswith(
        "cuda"
    ):  # of the current card: the one that trains. Before Ampere bf16 is emulated, slower than float32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if cpu_has_bf16() else "float32"


def card(device: str) -> str | None:
    """The name of the CUDA card that trains; None where none does."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX512-BF16 or AMX); False where /proc does not tell."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def rounded(logits: Tensor) -> Tensor:
    """Logits as they are remembered, float16; beyond its largest number they are that number, for an infinite logit would teach nothing."""
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).to(torch.float16)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing for float32."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def exact() -> Iterator[None]:
    """float32 is float32: torch lets cuDNN round what convolutions multiply to TF32, ten bits, and a network is judged as its ONNX file computes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
