"""Batches of streamed images: their device, their order, and the share of each process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compress import models
from compress.commands.analyze import features
from compress.core.distributed import Group
from compress.core.records.base import File
from compress.core.records.training import Network, TrainingData
from compress.data.augment import views
from compress.data.streaming.batches import Stream
from compress.data.streaming.listing import Listing
from compress.training import build
from compress.training.batches import batches
from tests.support.streamed_set import NORMALIZATION, SIDE, listing_spec


def test_analyze_decodes_one_batch_at_a_time(
    training: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_file(models.build("resnet8", classes=3).state_dict(), tmp_path / "a.safetensors")
    record, weights = Network("resnet8", None, 3, SIDE, NORMALIZATION), File.of(tmp_path / "a.safetensors")
    loaded, index, asked, answer = build.load_images(training, "cpu"), np.arange(45), list[int](), Stream.__getitem__
    monkeypatch.setattr(Stream, "__getitem__", lambda stream, part: asked.append(len(part)) or answer(stream, part))

    whole = features.pooled(record, weights, loaded, index)
    monkeypatch.setattr(features, "BATCH", 20)
    parts = features.pooled(record, weights, loaded, index)

    assert asked == [45, 20, 20, 5] and whole.shape == (45, 64)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_views_are_the_same_on_the_gpu(training: TrainingData) -> None:
    index, view = torch.arange(45), torch.arange(45) * 100
    found = []
    for device in ("cpu", "cuda"):
        stream = Stream(Listing(listing_spec(training)), augment="resized_crop", workers=1, device=device)
        found.append(
            torch.cat(
                [
                    pixels.cpu().clone()
                    for pixels in stream.batches(((index[at : at + 9], view[at : at + 9]) for at in range(0, 45, 9)), 9)
                ]
            )
        )
        stream.close()
    assert torch.equal(*found)


class CopyRecorder:
    """A stand-in for pixels that records how they are copied to a device."""

    def __init__(self, copies: list[tuple[bool, str, bool]], pinned: bool = False) -> None:
        self.copies, self.pinned = copies, pinned

    def pin_memory(self) -> CopyRecorder:
        return CopyRecorder(self.copies, True)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> CopyRecorder:
        self.copies.append((self.pinned, device.type, non_blocking))
        return self


def test_pixels_reach_the_gpu_through_pinned_memory(training: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[bool, str, bool]] = []
    streams = [
        Stream(Listing(listing_spec(training)), augment="none", workers=1, device=device) for device in ("cuda", "cpu")
    ]
    monkeypatch.setattr(torch, "from_numpy", lambda _: CopyRecorder(copies))
    for stream in streams:
        monkeypatch.setattr(
            stream.decoders,
            "batches",
            lambda asked, rows: (np.zeros((len(index), SIDE, SIDE, 3), np.uint8) for index, _ in asked),
        )
        assert len(list(stream.batches([(torch.arange(4), torch.arange(4))] * 2, 4))) == 2
    assert copies == [(True, "cuda", True)] * 2 + [(False, "cpu", False)] * 2


def recording(batches: Any, asked: list[int]) -> Any:
    """Wrap `batches` to record how many images each request asks for."""
    return lambda source, rows: batches((asked.append(len(one[0])) or one for one in source), rows)


def test_each_rank_decodes_only_its_share(training, monkeypatch):
    """Two ranks decode half a batch each; together these are the batch of a single process."""
    loaded = build.load_images(training, "cpu")
    order, view = loaded.train_index, views.views_of_epoch(45, 1, 0, "resized_crop", None, SIDE)
    found = []
    for group in (Group(0, 1), Group(0, 2), Group(1, 2)):
        stream = Stream(loaded.images.listing, augment="resized_crop", workers=1, device="cpu")
        asked: list[int] = []
        monkeypatch.setattr(stream.decoders, "batches", recording(stream.decoders.batches, asked))
        step = type("Step", (), {"group": group})()
        found.append([pixels.clone() for *_, pixels in batches(order, view[order], 2, 10, 4, step, stream)])
        assert asked == ([10, 6] if group.size == 1 else [5, 3])
        stream.close()
    for one, first, second in zip(*found, strict=True):
        assert torch.equal(one, torch.cat([first, second]))
