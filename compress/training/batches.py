"""An epoch's batches in their order, each with what is known of it ahead of its step: the teacher's logits, the views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.data.streaming.batches import Stream
from compress.training.step import Step

PREFETCH_STEPS = {"cpu": 1, "cuda": 64}  # steps whose views are cut at once, and that the teacher runs ahead at least
MAX_PRECUT_BYTES = (
    64 * 2**20
)  # bytes of views that are cut ahead at most; cutting a step's own takes as many launches as cutting a window's


def batches(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream | None
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor | None]]:
    """(step in the epoch, pictures (B,), of this process's share the teacher's logits or None, its views or None) from step `first` on.

    The teacher runs ahead by many steps, so that a GPU is asked seldom for what it does not know, and not in every step.
    """
    if stream is not None:
        yield from _streamed(order, view, first, size, steps, step, stream)
        return
    window = min(PREFETCH_STEPS.get(order.device.type, 1), steps)
    cut = (
        window > 1 and window * size * step.image_size**2 * 3 <= MAX_PRECUT_BYTES
    )  # of all windows or of none: a recorded step is given its views or makes them
    far = max(window, step.teacher.prefetch_limit // size) if window > 1 and step.teacher is not None else window
    for begin in range(first, steps, far):
        parts = [order[at * size : (at + 1) * size] for at in range(begin, min(begin + far, steps))]
        shares = [step.group.shard(batch) for batch in parts]
        known = _known(shares, view, step)
        for at in range(0, len(parts), window):
            here = slice(at, at + window)
            pixels = _cut(shares[here], view, step) if cut else [None] * len(parts[here])
            yield from zip(
                range(begin + at, begin + at + len(parts[here])), parts[here], known[here], pixels, strict=True
            )


def _known(shares: list[Tensor], view: Tensor, step: Step) -> Sequence[Tensor | None]:
    """Of each batch's share the teacher's logits, None where it answers within the step."""
    index = torch.cat(shares)
    ahead = step.teacher.prefetch_logits(index, view[index], step.pixels) if step.teacher is not None else None
    return [None] * len(shares) if ahead is None else ahead.split([len(share) for share in shares])


def _cut(shares: list[Tensor], view: Tensor, step: Step) -> Sequence[Tensor]:
    """Of each batch's share its views, not distorted yet."""
    index = torch.cat(shares)
    return step.cut(index, view[index]).split([len(share) for share in shares])


def _streamed(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream
) -> Iterator[tuple[int, Tensor, None, Tensor]]:
    """As `batches`: this process decodes its share alone, and the teacher answers within the step, for the same view rarely comes again."""
    places, numbers = order.cpu(), view.cpu()
    shares = (step.group.shard(places[at * size : (at + 1) * size]) for at in range(first, steps))
    asked = stream.reading_ahead(
        ((share, numbers[share]) for share in shares), places, range(first * size, steps * size, size)
    )
    decoded = stream.batches(asked, -(-size // step.group.size))
    for at, pixels in zip(range(first, steps), decoded, strict=True):
        yield at, order[at * size : (at + 1) * size], None, pixels
