"""The peak rates of this machine: large matrix products, large dense convolutions, and a large copy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch.nn import functional

SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
# Images, channels, side.
MAPS = {
    "cpu": ((64, 64, 32), (64, 128, 32), (64, 256, 16), (16, 256, 32)),
    "cuda": ((1024, 128, 32), (1024, 256, 32), (1024, 512, 16), (256, 1024, 32)),
}
# Bytes, beyond any cache.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def wait(device: str) -> None:
    """Wait until the device has done all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def times(run: Callable[[], object], device: str, count: int, before: int = 2) -> list[float]:
    """Return the seconds of each call, after some untimed ones."""
    found = []
    for number in range(count + before):
        wait(device)
        begin = time.perf_counter()
        run()
        wait(device)
        if number >= before:
            found.append(time.perf_counter() - begin)
    return found


@torch.no_grad()
def rates(device: str, precision: str) -> dict[str, float]:
    """Return the FLOP/s of each kernel by its name, two operations for a multiply-accumulate.

    float32 is as torch computes it by default: on CUDA, convolutions in TF32.
    """
    kind, dtype = device.split(":")[0], DTYPES[precision]
    found = {}
    for side in SIDES[kind]:
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        seconds = min(times(functools.partial(torch.matmul, matrix, matrix), device, 6))
        found[f"product of {side} x {side} matrices"] = 2 * side**3 / seconds
    for images, channels, side in MAPS[kind]:
        shapes = ((images, channels, side, side), (channels, channels, 3, 3))
        x, weight = (
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last) for shape in shapes
        )
        seconds = min(times(functools.partial(functional.conv2d, x, weight, padding=1), device, 6))
        name = f"3x3 convolution of {channels} channels, {images} maps of {side} x {side}"
        found[name] = 2 * 9 * channels**2 * images * side**2 / seconds
    return found


def copying(device: str) -> float:
    """Return the bytes/s that a large copy reads and writes."""
    source = torch.ones(COPY_BYTES[device.split(":")[0]], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / min(times(lambda: target.copy_(source), device, 6))
