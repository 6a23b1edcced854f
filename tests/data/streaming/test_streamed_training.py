"""Training from images that stay in their files: resuming in the middle of an epoch, signals, broken images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.core.errors import Interrupted, StageError
from compress.core.records.base import key_content, sha256_of
from compress.core.records.training import Distortion, TrainingData
from compress.data import training_arrays
from compress.data.augment import views
from compress.data.augment.crops import decode_training_view
from compress.data.augment.distort import distort_views
from compress.data.sources import prepare
from compress.data.streaming.batches import Stream
from compress.data.streaming.listing import Listing
from compress.recipe.schema import Data, Dhkd, Distill
from compress.stages import data
from compress.training import build, loop, schedule
from compress.training.teacher.logit_cache import TeacherCache
from tests.support import image_stand_in
from tests.support.streamed_set import NORMALIZATION, SIDE, listing_spec
from tests.support.tiny_training import (
    Net,
    PowerCut,
    RecordingProgress,
    cut_power,
    press_ctrl_c,
    same,
    settings,
    state_of,
    student_and_method,
)


def fit(
    folder: Path, training: TrainingData, *, progress: RecordingProgress | None = None, epochs: int = 2
) -> tuple[list[torch.Tensor], loop.FitResult]:
    """Train DHKD with a teacher that runs on every batch; return all trained state and the result."""
    student, method = student_and_method(Distill(dhkd=Dhkd(hidden=12, dropout=0.3, head="nonlinear", align="all")))
    torch.manual_seed(11)
    net = Net().eval().requires_grad_(False)
    teacher = TeacherCache(
        lambda raw: net(views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std)).float(),
        images=45,
        views=8192,
        classes=3,
        device="cpu",
        folder=folder,
        warn=lambda text: None,
        remember=False,
    )
    loaded = build.load_images(training, "cpu")
    fitted = loop.fit(
        student,
        method,
        loaded,
        train=settings(epochs=epochs, batch_size=8),
        normalization=NORMALIZATION,
        taps={"pooled": "fc:in"},
        teacher=teacher,
        device="cpu",
        folder=folder,
        progress=progress or RecordingProgress(),
    )
    assert isinstance(loaded.images, Stream) and loaded.images.decoders.pool is None  # the processes have ended
    assert not (folder / "logits.npz").exists() and teacher.used == 0  # nothing is cached
    return state_of(student, method), fitted


@pytest.mark.parametrize("at_once", [None, 1])
def test_an_epoch_resumed_in_its_middle_gives_the_same_bits(training, tmp_path, monkeypatch, at_once):
    training = replace(training, shards_at_once=at_once)
    monkeypatch.setattr(loop, "CHECK_EVERY_STEPS", 2)  # check the clock every two steps ...
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)  # ... and always find that a checkpoint is due
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    expected, whole = fit(tmp_path / "whole", training)
    assert (
        [row["epoch"] for row in whole.history] == [1, 2]
        and whole.history[1]["ce"] > 0
        and 0 <= whole.history[1]["top1_validation"] <= 1
    )

    with pytest.raises(PowerCut):
        fit(tmp_path / "broken", training, progress=RecordingProgress(4, cut_power))  # five steps an epoch
    stopped = RecordingProgress(6, press_ctrl_c)
    with pytest.raises(Interrupted, match="epoch 2 of 2, checkpoint kept"):
        fit(tmp_path / "broken", training, progress=stopped)
    resumed = RecordingProgress()
    found, fitted = fit(tmp_path / "broken", training, progress=resumed)
    assert stopped.started == (1, 2)  # the checkpoint of the second step
    assert resumed.started == (2, 3) and len(resumed.steps) == 2 and same(found, expected)
    for before, after in zip(whole.history, fitted.history, strict=True):
        assert (
            after["ce"] == pytest.approx(before["ce"], rel=1e-5)
            and after["top1_validation"] == before["top1_validation"]
        )


def test_shards_at_once_is_in_the_cache_key_only_if_set(training):
    assert (
        sha256_of(training)
        == sha256_of(replace(training, shards_at_once=None))
        != sha256_of(replace(training, shards_at_once=4))
    )
    assert "shards_at_once" not in key_content(training)
    # Stages that train nothing are unaffected.
    assert sha256_of(replace(training, shards_at_once=4, distortion=Distortion(hue=0.1)).evaluated) == sha256_of(
        training
    )
    # The data stage's key before recipes had shards_at_once.
    key = "60beddf56f2935d22c05918d6a2f39b11179b276efd535a7e63637e726854f9e"
    assert sha256_of(["data", 1, Data(source="fashion"), {}]) == key
    assert sha256_of(["data", 1, Data(source="webdataset", shards_at_once=4), {}]) != sha256_of(
        ["data", 1, Data(source="webdataset"), {}]
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_signal_to_every_process_stops_training_between_two_steps(training, tmp_path, sent):
    """Schedulers and `timeout` do this. Workers carry on; if they were killed too, the stop is just as orderly."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    expected, _ = fit(tmp_path / "whole", training)

    def told() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, sent)
        time.sleep(1)  # until the pool has noticed the dead workers

    with pytest.raises(Interrupted, match="epoch 1 of 2, checkpoint kept"):
        fit(tmp_path / "broken", training, progress=RecordingProgress(1, told))
    resumed = RecordingProgress()
    found, _ = fit(tmp_path / "broken", training, progress=resumed)
    assert resumed.started == (1, 1) and same(found, expected)


def test_decoded_views_are_distorted_on_the_training_device(training, tmp_path):
    asked = Distortion(hue=0.3, operations=2, magnitude=9)
    loaded = build.load_images(replace(training, distortion=asked), "cpu")
    seen: list[torch.Tensor] = []
    cache = TeacherCache(
        lambda raw: seen.append(raw.clone()) or torch.zeros(len(raw), 3),
        images=45,
        views=8192,
        classes=3,
        device="cpu",
        folder=None,
        warn=pytest.fail,
        remember=False,
    )
    student, method = student_and_method(Distill(method="kd"))
    loop.fit(
        student,
        method,
        loaded,
        train=settings(epochs=1, batch_size=8),
        normalization=NORMALIZATION,
        taps={"pooled": "fc:in"},
        teacher=cache,
        device="cpu",
        folder=tmp_path,
        progress=RecordingProgress(),
    )
    order = schedule.order(loaded.train_index, settings().seed or 0, 1)[:8]
    numbers = views.views_of_epoch(45, 1, settings().seed or 0, "resized_crop", None, SIDE, distorted=True)[order]
    listing = Listing(listing_spec(training))
    crops = [
        listing.decoded(int(p), lambda content, v=v: decode_training_view(content, int(v), SIDE))
        for p, v in zip(order, numbers, strict=True)
    ]
    assert torch.equal(
        seen[0], distort_views(torch.from_numpy(np.stack(crops)), numbers, asked)
    ) and not np.array_equal(seen[0].numpy(), np.stack(crops))


def test_an_unreadable_image_ends_training_with_its_name(tmp_path):
    root = image_stand_in.folders(tmp_path / "set", train=4, val=1)
    config = Data(source="imagenet", root=str(root), image_size=SIDE, validation=3, workers=1)
    (tmp_path / "work").mkdir()
    prepared = data.training(
        prepare.prepare_data(config, tmp_path / "work", base=Path("/"), report=lambda text: None), config
    )
    _, _, train_index, _ = training_arrays(prepared)
    bad = Listing(listing_spec(prepared)).path(int(train_index[5]))
    bad.write_bytes(b"?" * bad.stat().st_size)
    with pytest.raises(
        StageError, match=rf"{bad.name} cannot be read \(not an image that Pillow can read\); repair or replace it"
    ):
        fit(tmp_path, prepared, epochs=1)
