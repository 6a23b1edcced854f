"""Training images that stay in their files, as batches of uint8 on the training device."""

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
    """How training order respects shards.

    Attributes:
        shard_of: The shard of each of P images, int64 (P,) on the CPU.
        at_once: How many shards are mixed at a time.
    """

    shard_of: Tensor
    at_once: int


class Stream:
    """A stand-in for the images (P, S, S, 3) of a training.

    Indexed by positions (n,) it returns evaluation views; `batches` gives training views. The decode processes start
    with the first batch and end with `close`.

    Args:
        listing: Where the images are.
        augment: "resized_crop" or "none".
        workers: Number of decode processes; None for one a core.
        device: Where the batches go.
        shards_at_once: How many shards are mixed at a time; None to mix all images.
        crop_scale: See `crops.decode_training_view`.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        augment: str,
        workers: int | None,
        device: str,
        shards_at_once: int | None = None,
        crop_scale: tuple[float, float] | None = None,
    ) -> None:
        self.listing, self.device = listing, torch.device(device)
        self.shards = (
            ShardMixing(torch.from_numpy(np.array(listing.rows[:, 0])), shards_at_once) if shards_at_once else None
        )
        self.decoders = Decoders(
            listing.spec, augment=augment, workers=workers or default_workers(), crop_scale=crop_scale
        )

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.listing[index.cpu().numpy()]).to(self.device)

    def reading_ahead(
        self, requests: Iterable[tuple[Tensor, Tensor]], order: Tensor, starts: Iterable[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the requests while a thread reads ahead the shards that they will need.

        Args:
            requests: Index and view of each batch.
            order: The positions that the requests go through, int64 (n,).
            starts: Where in `order` each request begins.
        """
        # The processes of one machine share its memory, so one of them reads ahead.
        if self.shards is None or os.environ.get("LOCAL_RANK", "0") != "0" or not self._pays(order):
            yield from requests
            return
        shards, first = np.unique(self.shards.shard_of[order].numpy(), return_index=True)
        turns = np.argsort(first)
        # How many shards have been started at each request.
        begun = [int(count) for count in np.searchsorted(first[turns], list(starts), side="right")]
        files, at_once = [self.listing.file(int(number)) for number in shards[turns]], self.shards.at_once
        with ReadAhead(files) as ahead:
            for count, request in zip(begun, requests, strict=True):
                # The shards in use, and as many after them.
                ahead.set_window(max(count - at_once, 0), count + at_once)
                yield request

    def _pays(self, order: Tensor) -> bool:
        """Return whether the images of `order` make up at least half of the bytes of their shards."""
        rows = self.listing.rows[order.numpy()]
        try:
            whole = sum(self.listing.file(int(number)).stat().st_size for number in np.unique(rows[:, 0]))
        except OSError:  # reported when an image of that shard is decoded
            return False
        return 2 * int(rows[:, 2].sum()) >= whole

    def batches(self, requests: Iterable[tuple[Tensor, Tensor]], rows: int) -> Iterator[Tensor]:
        """Yield a batch uint8 (n, S, S, 3) on the device for each (index, view) on the CPU, n <= rows; decoded ahead.

        A batch is valid until the next one is taken.
        """
        for pixels in self.decoders.batches(((index.numpy(), view.numpy()) for index, view in requests), rows):
            yield self._to_device(pixels)

    def _to_device(self, pixels: np.ndarray) -> Tensor:
        """Copy through pinned memory, so that the copy waits for no running step; on the CPU nothing is copied."""
        shared = torch.from_numpy(pixels)
        return (
            shared.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else shared.to(self.device)
        )

    def close(self) -> None:
        """End the decode processes."""
        self.decoders.close()
