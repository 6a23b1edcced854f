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
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor | None]]:
    """Generate the epoch's batches from step `first` on.

    The teacher runs ahead by many steps, so that a GPU is asked for missing logits now and then and not in every step.

    Args:
        order: the epoch's images in order, int64 (M,).
        view: the epoch's view of each image, int64 (P,).
        first: the step to start at, counted from 0 in the epoch.
        size: images per batch, over all ranks.
        steps: batches per epoch.
        step: cuts the views and knows the teacher.
        stream: decodes the images, where they are not in memory.

    Yields:
        The step in the epoch; the batch's images (B,); for this rank's share of them the teacher's logits, float16
        (N, K), and the views, uint8 (N, H, W, 3), each None where the step itself computes them.
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
        parts = [order[at * size : (at + 1) * size] for at in range(begin, min(begin + prefetched, steps))]
        shares = [step.group.shard(batch) for batch in parts]
        logits = _prefetch_logits(shares, view, step)
        for at in range(0, len(parts), window):
            here = slice(at, at + window)
            pixels = _cut(shares[here], view, step) if precut else [None] * len(parts[here])
            yield from zip(
                range(begin + at, begin + at + len(parts[here])), parts[here], logits[here], pixels, strict=True
            )


def _prefetch_logits(shares: list[Tensor], view: Tensor, step: Step) -> Sequence[Tensor | None]:
    """Return the teacher's logits for each share, None where the teacher runs within the step."""
    index = torch.cat(shares)
    logits = step.teacher.prefetch_logits(index, view[index], step.pixels) if step.teacher is not None else None
    return [None] * len(shares) if logits is None else torch.split(logits, [len(share) for share in shares])


def _cut(shares: list[Tensor], view: Tensor, step: Step) -> Sequence[Tensor]:
    """Return the views of each share, not distorted yet."""
    index = torch.cat(shares)
    return torch.split(step.crop(index, view[index]), [len(share) for share in shares])


def _streamed(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream
) -> Iterator[tuple[int, Tensor, None, Tensor]]:
    """Generate batches as `batches` does; this rank decodes its own share, and the teacher runs within the step.

    Logits are not cached, because a streamed image's view rarely comes again.
    """
    places, numbers = order.cpu(), view.cpu()
    shares = (step.group.shard(places[at * size : (at + 1) * size]) for at in range(first, steps))
    requests = stream.reading_ahead(
        ((share, numbers[share]) for share in shares), places, range(first * size, steps * size, size)
    )
    decoded = stream.batches(requests, -(-size // step.group.size))
    for at, pixels in zip(range(first, steps), decoded, strict=True):
        yield at, order[at * size : (at + 1) * size], None, pixels
