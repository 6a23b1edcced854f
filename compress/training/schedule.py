"""A training's schedule: learning rate, batch size and order of images, functions of (seed, epoch, step) alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.data.streaming.batches import ShardMixing
from compress.recipe.schema import ResolvedTrain


def learning_rate(train: ResolvedTrain, epoch: int, progress: float) -> float:
    """Return the learning rate at a point of training.

    step: times gamma for every milestone m with epoch > m, as in the papers' code (of 150 the first reduced epoch is
    151). cosine: lr/2 (1 + cos(pi t)), where t is the share of training done after warm-up. Warm-up: linear from 0.

    Args:
        train: the resolved settings.
        epoch: 1-based.
        progress: within the epoch, in [0, 1).
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
    """Return 2 if one of the network's BatchNorms sees one value per channel and image (1x1 maps), else 1.

    Args:
        student: the network, on the device; it is left in evaluation mode.
        image_size: side of its input in pixels.
        device: where it is.
    """
    values: list[int] = []
    layers = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: values.append(args[0][0, 0].numel())) for layer in layers]
    student.eval()
    student(torch.zeros(1, 3, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    return 2 if 1 in values else 1


def batch_size(size: int, images: int, smallest: int) -> int:
    """Return the batch size in use, at most all images.

    Args:
        size: what the recipe asks for.
        images: how many are trained on.
        smallest: the smallest batch that method, student and number of processes take.

    Raises:
        UsageError: the batch is smaller than that.
    """
    if min(size, images) < smallest:
        raise UsageError(
            f"train.batch_size: batches of at least {smallest} are needed, got {min(size, images)} "
            "(the method, or a BatchNorm over one value)"
        )
    return min(size, images)


def steps(images: int, size: int, smallest: int) -> int:
    """Return the batches per epoch; a last one of fewer than `smallest` images waits for another epoch's order.

    Args:
        images: how many are trained on.
        size: images per batch.
        smallest: the smallest batch that is trained on.
    """
    full, rest = divmod(images, size)
    return full + (rest >= max(smallest, 1) and rest > 0)


def balanced_places(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw M of M images so that every class comes equally often: positions, int64 (M,), sorted by class.

    Numbers of draws differ by at most one between the classes, and between the images of one class; which get one more
    is drawn anew each time. An unlabelled image comes once.

    Args:
        labels: int64 (M,) on the CPU, -1 for an unlabelled image.
        generator: draws.
    """
    places = [torch.nonzero(labels == number).squeeze(1) for number in torch.unique(labels[labels >= 0])]
    drawn = [torch.nonzero(labels < 0).squeeze(1)]
    share, rest = divmod(int((labels >= 0).sum()), max(len(places), 1))
    more = torch.randperm(len(places), generator=generator)[:rest].tolist()
    for number, own in enumerate(places):
        rounds, some = divmod(share + (number in more), len(own))
        drawn += [own] * rounds
        drawn.append(own[torch.randperm(len(own), generator=generator)[:some]])
    return torch.cat(drawn)


def occurrences(order: Tensor) -> Tensor:
    """Return, for each entry of int64 (M,), how often the same number stands before it: int64 (M,) on the CPU."""
    order = order.cpu()
    _, number, counts = torch.unique(order, return_inverse=True, return_counts=True)
    together = torch.argsort(number, stable=True)
    first = counts.cumsum(0) - counts
    found = torch.empty_like(order)
    found[together] = torch.arange(len(order)) - first[number[together]]
    return found


def order(
    index: Tensor, seed: int, epoch: int, shards: ShardMixing | None = None, labels: Tensor | None = None
) -> Tensor:
    """Return the images `index` (M,) in the epoch's order, a function of seed and epoch alone.

    Args:
        index: int64 (M,).
        seed: of the training.
        epoch: 1-based.
        shards: puts the shards into random order too, so many at a time, and mixes the images of these.
        labels: int64 (M,), -1 for an unlabelled image; with them M images are drawn, see `balanced_places`.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    if labels is not None:
        index = index[balanced_places(labels.cpu(), generator).to(index.device)]
    mixed = index[torch.randperm(len(index), generator=generator).to(index.device)]
    if shards is None:
        return mixed
    # `used` are the shards that hold any of the images.
    used, place = torch.unique(shards.shard_of[mixed.cpu()], return_inverse=True)
    block = torch.randperm(len(used), generator=generator)[place] // shards.at_once
    return mixed[torch.sort(block, stable=True).indices.to(index.device)]
