"""How many images run in one forward pass."""

from __future__ import annotations

import torch

# Images of REFERENCE_SIDE pixels in one forward pass. Larger batches leave a CPU's caches: half the speed at 512
# (measured).
FORWARD_BATCH = {"cpu": 64, "cuda": 1024}
OTHER_DEVICE_BATCH = 256
# A GPU with at least LARGE_GPU_BYTES of memory gets LARGE_GPU_FACTOR times as many. On an H200, 1,024 images take
# ResNet-56 7.9 ms and ResNet-32x4, which has nine times the arithmetic, 10.4 ms: both wait for launches.
LARGE_GPU_BYTES, LARGE_GPU_FACTOR = 30 * 2**30, 4
# Pixels. A GPU gets fewer of larger images, in proportion to their area, because their maps fill its memory.
REFERENCE_SIDE = 32


def rows_at_once(device: str | torch.device, image_size: int) -> int:
    """Return how many images of a side to run in one forward pass; more on a GPU with much memory."""
    kind = torch.device(device).type
    most = FORWARD_BATCH.get(kind, OTHER_DEVICE_BATCH)
    if kind == "cpu":
        return most
    if kind == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU_BYTES:
        most *= LARGE_GPU_FACTOR
    return max(most * REFERENCE_SIDE**2 // max(image_size, REFERENCE_SIDE) ** 2, 1)
