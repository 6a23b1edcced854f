"""An epoch's batches in order, each with what is prepared ahead of its step: the teacher's logits and the views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.data.streaming.batches import Stream
from compress.training.step import Step

# Steps whose views are cut at once, and the least that the teacher runs ahead.
PREFETCH_STEPS = {"cpu": 1, "cuda": 64}
# Bytes of views that are cut ahead at most. Cutting one step's views takes as many launches as cutting all of these.
MAX_PRECUT_BYTES = 64 * 2**20


def batches(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream | None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Generate the epoch's batches from step `first` on.

    The teacher runs ahead by many steps, so that a GPU is asked for missing logits now and then and not in every step.

    Args:
        order: the epoch's images in order, int64 (M,).
        view: the view of each, int64 (M,).
        first: the step to start at, counted from 0 in the epoch.
        size: images per batch, over all ranks.
        steps: batches per epoch.
        step: cuts the views and knows the teacher.
        stream: decodes the images, where they are not in memory.

    Yields:
        The step in the epoch; the batch's images and their views (B,); for this rank's share of them the teacher's
        logits, float16 (N, K), and the pixels, uint8 (N, H, W, 3), each None where the step itself computes them.
    """
    if stream is not None:
        yield from _streamed(order, view, first, size, steps, step, stream)
        return
    window = min(PREFETCH_STEPS.get(order.device.type, 1), steps)
    # All windows are cut ahead, or none: a recorded step either gets its views or makes them.
    precut = window > 1 and window * size * step.image_size**2 * 3 <= MAX_PRECUT_BYTES
    prefetched = window
    if window > 1 and step.teacher is not None:
        prefetched = max(window, step.teacher.prefetch_limit // size)
    for begin in range(first, steps, prefetched):
        places = [slice(at * size, (at + 1) * size) for at in range(begin, min(begin + prefetched, steps))]
        shares = [(step.group.shard(order[place]), step.group.shard(view[place])) for place in places]
        logits = _prefetch_logits(shares, step)
        for at in range(0, len(places), window):
            here = slice(at, at + window)
            pixels = _cut(shares[here], step) if precut else [None] * len(places[here])
            for number, place in enumerate(places[here]):
                yield begin + at + number, order[place], view[place], logits[at + number], pixels[number]


def _prefetch_logits(shares: list[tuple[Tensor, Tensor]], step: Step) -> Sequence[Tensor | None]:
    """Return the teacher's logits for each share (images and views), None where the teacher runs within the step."""
    index, view = map(torch.cat, zip(*shares, strict=True))
    logits = step.teacher.prefetch_logits(index, view, step.pixels) if step.teacher is not None else None
    return [None] * len(shares) if logits is None else torch.split(logits, [len(share) for share, _ in shares])


def _cut(shares: list[tuple[Tensor, Tensor]], step: Step) -> Sequence[Tensor]:
    """Return the pixels of each share, not distorted yet."""
    index, view = map(torch.cat, zip(*shares, strict=True))
    return torch.split(step.crop(index, view), [len(share) for share, _ in shares])


def _streamed(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream
) -> Iterator[tuple[int, Tensor, Tensor, None, Tensor]]:
    """Generate batches as `batches` does; this rank decodes its own share, and the teacher runs within the step.

    Logits are not cached, because a streamed image's view rarely comes again.
    """
    shard = step.group.shard
    order_cpu, view_cpu = order.cpu(), view.cpu()
    places = [slice(at * size, (at + 1) * size) for at in range(first, steps)]
    requests = stream.reading_ahead(
        ((shard(order_cpu[place]), shard(view_cpu[place])) for place in places),
        order_cpu,
        range(first * size, steps * size, size),
    )
    decoded = stream.batches(requests, -(-size // step.group.size))
    for at, place, pixels in zip(range(first, steps), places, decoded, strict=True):
        yield at, order[place], view[place], None, pixels
