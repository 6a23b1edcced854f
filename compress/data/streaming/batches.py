"""Training pictures that stay in their files, as batches of uint8 on the training's device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.data.streaming.listing import Listing
from compress.data.streaming.readahead import ReadAhead
from compress.data.streaming.workers import Decoders, default_workers


@dataclass(frozen=True)
class ShardMixing:
    """The shard that each of P pictures lies in, int64 (P,) on the CPU, and of how many shards pictures are mixed at a time."""

    shard_of: Tensor
    at_once: int


class Stream:
    """Stands for the images (P, S, S, 3) of a training. Indexed by positions (n,) it answers as in evaluation; `batches` gives training views.

    `workers`: decode processes; None: one a core. They start with the first batch and end with `close`. `shards_at_once`: see `ShardMixing`.
    """

    def __init__(
        self, listing: Listing, *, augment: str, workers: int | None, device: str, shards_at_once: int | None = None
    ) -> None:
        self.listing, self.device = listing, torch.device(device)
        self.shards = (
            ShardMixing(torch.from_numpy(np.array(listing.rows[:, 0])), shards_at_once) if shards_at_once else None
        )
        self.decoders = Decoders(listing.spec, augment=augment, workers=workers or default_workers())

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.listing[index.cpu().numpy()]).to(self.device)

    def reading_ahead(
        self, asked: Iterable[tuple[Tensor, Tensor]], order: Tensor, places: Iterable[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`asked`, while the shards that the pictures of `order` (n,) lie in are read ahead; `places`: where in `order` each of `asked` begins."""
        if (
            self.shards is None or os.environ.get("LOCAL_RANK", "0") != "0" or not self._pays(order)
        ):  # processes of one machine share its memory
            yield from asked
            return
        shards, first = np.unique(self.shards.shard_of[order].numpy(), return_index=True)
        turns = np.argsort(first)
        begun = [
            int(count) for count in np.searchsorted(first[turns], list(places), side="right")
        ]  # shards, at each place
        files, at_once = [self.listing.file(int(number)) for number in shards[turns]], self.shards.at_once
        with ReadAhead(files) as ahead:
            for count, one in zip(begun, asked, strict=True):
                ahead.set_window(max(count - at_once, 0), count + at_once)  # those in use and the next ones
                yield one

    def _pays(self, order: Tensor) -> bool:
        """Whether the pictures of `order` are at least half of the shards that they lie in."""
        rows = self.listing.rows[order.numpy()]
        try:
            whole = sum(self.listing.file(int(number)).stat().st_size for number in np.unique(rows[:, 0]))
        except OSError:  # whoever asks for its pictures says so
            return False
        return 2 * int(rows[:, 2].sum()) >= whole

    def batches(self, asked: Iterable[tuple[Tensor, Tensor]], rows: int) -> Iterator[Tensor]:
        """uint8 (n, S, S, 3) on the device for each (index, view) on the CPU, n <= rows; decoded ahead. One is whole until the next is asked for."""
        for pixels in self.decoders.batches(((index.numpy(), view.numpy()) for index, view in asked), rows):
            yield self._moved(pixels)

    def _moved(self, pixels: np.ndarray) -> Tensor:
        """Through pinned memory, so that the copy waits for no step that is under way; on the CPU the decoders' own memory."""
        shared = torch.from_numpy(pixels)
        return (
            shared.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else shared.to(self.device)
        )

    def close(self) -> None:
        """End the decode processes."""
        self.decoders.close()
