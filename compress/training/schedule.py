"""What happens when in a training: learning rate, batch, order of pictures; functions of (seed, epoch, step) alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.data.streaming.batches import ShardMixing
from compress.recipe.schema import ResolvedTrain

ROWS = {
    "cpu": 64,
    "cuda": 1024,
}  # of a network's forward pass alone; larger batches leave a CPU's caches (measured: half the speed at 512)
# Bytes from which on a card takes so many times more: on an H200 1,024 rows take ResNet-56 7.9 ms and ResNet-32x4, which has nine times the arithmetic, 10.4:
# they wait for launches.
LARGE_CARD, TIMES = 30 * 2**30, 4
SIDE = 32  # pixels: of larger pictures a card gets fewer at once in proportion to their area, for their maps fill its memory


def learning_rate(train: ResolvedTrain, epoch: int, progress: float) -> float:
    """The rate at a point of training: 1-based `epoch`, `progress` in [0, 1) within it.

    step: x gamma for every milestone m with epoch > m, as in the papers' code (the first reduced epoch of 150 is 151).
    cosine: lr/2 (1 + cos(pi t)), t the share of training done after warm-up. warm-up: linear from 0.
    """
    schedule, done = train.schedule, epoch - 1 + progress
    warmup = schedule.warmup_epochs
    if done < warmup:
        return train.lr * done / warmup
    if schedule.kind == "step":
        return train.lr * schedule.gamma ** sum(epoch > milestone for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        return train.lr / 2 * (1 + math.cos(math.pi * (done - warmup) / max(train.epochs - warmup, 1e-9)))
    return train.lr


@torch.no_grad()
def smallest_batch(student: nn.Module, image_size: int, device: str) -> int:
    """2 where a BatchNorm of the network sees a single value a channel of one picture (maps of one pixel), else 1."""
    values: list[int] = []
    layers = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: values.append(args[0][0, 0].numel())) for layer in layers]
    student.eval()
    student(torch.zeros(1, 3, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    return 2 if 1 in values else 1


def batch_size(size: int, pictures: int, smallest: int) -> int:
    """The batch that is used: at most all pictures. Raises UsageError where it is too small for the method or a BatchNorm."""
    if min(size, pictures) < smallest:
        raise UsageError(
            f"train.batch_size: batches of at least {smallest} are needed, got {min(size, pictures)} (the method, or a BatchNorm over one value)"
        )
    return min(size, pictures)


def steps(pictures: int, size: int, smallest: int) -> int:
    """Batches an epoch; a last batch too small for the method waits for another epoch's order."""
    full, rest = divmod(pictures, size)
    return full + (rest >= max(smallest, 1) and rest > 0)


def order(index: Tensor, seed: int, epoch: int, shards: ShardMixing | None = None) -> Tensor:
    """The epoch's order of the pictures `index`, a function of seed and epoch alone.

    With `shards`, these come in a random order, too, so many at a time, and within these their pictures in a random order.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    mixed = index[torch.randperm(len(index), generator=generator).to(index.device)]
    if shards is None:
        return mixed
    there, place = torch.unique(shards.shard_of[mixed.cpu()], return_inverse=True)  # shards that pictures are asked of
    block = torch.randperm(len(there), generator=generator)[place] // shards.at_once
    return mixed[torch.sort(block, stable=True).indices.to(index.device)]


def rows_at_once(device: str | torch.device, image_size: int) -> int:
    """Pictures of a side in a network's forward pass alone; more on a card with much memory."""
    kind = torch.device(device).type
    most = ROWS.get(kind, 256)
    if kind == "cpu":
        return most
    if kind == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_CARD:
        most *= TIMES
    return max(most * SIDE**2 // max(image_size, SIDE) ** 2, 1)
