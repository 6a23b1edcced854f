"""An epoch's batches in their order, each with what is known of it ahead of its step: the teacher's logits, the views."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compress.step import Step
from compress.stream import Stream

WINDOW = {"cpu": 1, "cuda": 64}  # steps that the teacher runs ahead
CUT = 64 * 2**20  # bytes of views that are cut ahead at most; cutting a step's own takes as many launches as cutting a window's


def batches(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream | None
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor | None]]:
    """(step in the epoch, pictures (B,), of this process's share the teacher's logits or None, its views or None) from step `first` on.

    The teacher runs ahead by a window of steps, so that a GPU is asked for what it does not know once in a window, and not in every step.
    """
    if stream is not None:
        yield from _streamed(order, view, first, size, steps, step, stream)
        return
    window = min(WINDOW.get(order.device.type, 1), steps)
    cut = window > 1 and window * size * step.image_size**2 * 3 <= CUT  # of all windows or of none: a recorded step is given its views or makes them
    for begin in range(first, steps, window):
        parts = [order[at * size : (at + 1) * size] for at in range(begin, min(begin + window, steps))]
        shares = [step.group.share(batch) for batch in parts]
        index = torch.cat(shares)
        ahead = step.teacher.ahead(index, view[index], step.pixels, len(shares[0])) if step.teacher is not None else None
        lengths, nothing = [len(share) for share in shares], [None] * len(parts)
        known = nothing if ahead is None else ahead.split(lengths)
        pixels = step.cut(index, view[index]).split(lengths) if cut else nothing
        yield from zip(range(begin, begin + len(parts)), parts, known, pixels, strict=True)


def _streamed(
    order: Tensor, view: Tensor, first: int, size: int, steps: int, step: Step, stream: Stream
) -> Iterator[tuple[int, Tensor, None, Tensor]]:
    """As `batches`: this process decodes its share alone, and the teacher answers within the step, for the same view rarely comes again."""
    places, numbers = order.cpu(), view.cpu()
    shares = (step.group.share(places[at * size : (at + 1) * size]) for at in range(first, steps))
    asked = stream.reading_ahead(((share, numbers[share]) for share in shares), places, range(first * size, steps * size, size))
    decoded = stream.batches(asked, -(-size // step.group.size))
    for at, pixels in zip(range(first, steps), decoded, strict=True):
        yield at, order[at * size : (at + 1) * size], None, pixels
