"""Training from images that stay in their files: the same views whoever decodes them, and an interrupted epoch ends with the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compress import models
from compress.commands.analyze import features
from compress.core.distributed import Group
from compress.core.errors import Interrupted, StageError
from compress.core.records.base import File, identity, sha256_of
from compress.core.records.training import Distortion, Network, Normalization, TrainingData
from compress.data import training_arrays
from compress.data.augment import views
from compress.data.augment.crops import decode_training_view
from compress.data.augment.distort import distort_views
from compress.data.sources import prepare
from compress.data.streaming import workers
from compress.data.streaming.batches import ShardMixing, Stream
from compress.data.streaming.listing import Listing, ListingSpec
from compress.data.streaming.readahead import ReadAhead
from compress.data.streaming.workers import IDLE_GRACE_SECONDS, Decoders
from compress.recipe.schema import Data, Dhkd, Distill
from compress.stages import data
from compress.training import build, loop, schedule
from compress.training.batches import batches
from compress.training.teacher.logit_cache import TeacherCache
from tests.support import image_stand_in as stand_in
from tests.support.image_stand_in import jpeg
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

SIDE, NORMALIZATION = 16, Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """45 images of three classes in two shards a part, nine of them for validation."""
    root = stand_in.shards(tmp_path_factory.mktemp("set"), train=15, val=1, each=23)
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=9, workers=1)
    prepared = prepare.prepare_data(config, tmp_path_factory.mktemp("work"), base=Path("/"), report=lambda text: None)
    return data.training(prepared, config)


def place(training: TrainingData) -> ListingSpec:
    assert training.streamed is not None
    return ListingSpec(training.streamed.root, training.images.path, training.streamed.paths.path, SIDE)


def test_an_analysis_decodes_one_batch_at_a_time(
    training: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_file(models.build("resnet8", classes=3).state_dict(), tmp_path / "a.safetensors")
    record, weights = Network("resnet8", None, 3, SIDE, NORMALIZATION), File.of(tmp_path / "a.safetensors")
    pictures, index, asked, answer = build.load_images(training, "cpu"), np.arange(45), list[int](), Stream.__getitem__
    monkeypatch.setattr(Stream, "__getitem__", lambda stream, part: asked.append(len(part)) or answer(stream, part))

    whole = features.pooled(record, weights, pictures, index)
    monkeypatch.setattr(features, "BATCH", 20)
    parts = features.pooled(record, weights, pictures, index)

    assert asked == [45, 20, 20, 5] and whole.shape == (45, 64)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_decoders_answer_in_order_whatever_their_number(training: TrainingData) -> None:
    listing, random = Listing(place(training)), np.random.default_rng(0)
    asked = [(random.integers(0, 45, size), random.integers(0, 8192, size)) for size in (20, 20, 20, 7, 20, 1)]
    found = []
    for count in (1, 2):
        decoders = Decoders(place(training), augment="resized_crop", workers=count)
        found.append([batch.copy() for batch in decoders.batches(iter(asked), 20)])
        if count == 2:  # the same processes, another epoch, ended in its middle: the ring is free again
            for _ in decoders.batches(iter(asked), 20):
                break
            again = [batch.copy() for batch in decoders.batches(iter(asked), 20)]
            assert all(np.array_equal(one, other) for one, other in zip(found[0], again, strict=True))
        decoders.close()
    for (positions, numbers), one, two in zip(asked, *found, strict=True):
        assert np.array_equal(one, two) and one.shape == (len(positions), SIDE, SIDE, 3)
        expected = [
            listing.decoded(int(p), lambda content, v=v: decode_training_view(content, int(v), SIDE))
            for p, v in zip(positions, numbers, strict=True)
        ]
        assert np.array_equal(one, np.stack(expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_device_gets_the_same_views(training: TrainingData) -> None:
    index, view = torch.arange(45), torch.arange(45) * 100
    found = []
    for device in ("cpu", "cuda"):
        stream = Stream(Listing(place(training)), augment="resized_crop", workers=1, device=device)
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


def test_memory_does_not_grow_with_the_set(training: TrainingData) -> None:
    for asked, rows, count, slots in ((10**6, 256, 16, 3), (5, 8, 4, 10)):
        decoders = Decoders(place(training), augment="resized_crop", workers=count)
        job, _ = decoders._start(rows)
        assert job.slots == slots and job.ring().nbytes == slots * rows * SIDE**2 * 3, asked
        decoders.close()


def test_decoders_work_on_several_batches_at_once(training: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all that the ring holds: the one that is read and those ahead of it."""
    submitted: list[int] = []
    submit = workers._submit
    monkeypatch.setattr(
        workers, "_submit", lambda pool, job, slot, *asked: submitted.append(slot) or submit(pool, job, slot, *asked)
    )
    decoders = Decoders(place(training), augment="resized_crop", workers=1)
    asked = [(np.arange(8), np.full(8, number)) for number in range(10)]
    flight = []
    for number, _ in enumerate(decoders.batches(iter(asked), 8)):
        flight.append(len(submitted) - number)
    slots = decoders.job.slots if decoders.job is not None else 0
    decoders.close()
    assert slots >= 4 and flight == [min(slots, 10 - number) for number in range(10)]
    assert len(set(submitted[:slots])) == slots  # each in a place of its own


class Copied:
    """Stands for pixels; notes how they go to a device."""

    def __init__(self, told: list[tuple[bool, str, bool]], pinned: bool = False) -> None:
        self.told, self.pinned = told, pinned

    def pin_memory(self) -> Copied:
        return Copied(self.told, True)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Copied:
        self.told.append((self.pinned, device.type, non_blocking))
        return self


def test_pixels_go_to_a_card_through_pinned_memory(training: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, str, bool]] = []
    streams = [Stream(Listing(place(training)), augment="none", workers=1, device=device) for device in ("cuda", "cpu")]
    monkeypatch.setattr(torch, "from_numpy", lambda _: Copied(told))
    for stream in streams:
        monkeypatch.setattr(
            stream.decoders,
            "batches",
            lambda asked, rows: (np.zeros((len(index), SIDE, SIDE, 3), np.uint8) for index, _ in asked),
        )
        assert len(list(stream.batches([(torch.arange(4), torch.arange(4))] * 2, 4))) == 2
    assert told == [(True, "cuda", True)] * 2 + [(False, "cpu", False)] * 2


def fit(
    folder: Path, training: TrainingData, *, progress: RecordingProgress | None = None, epochs: int = 2
) -> tuple[list[torch.Tensor], loop.FitResult]:
    """Two epochs of DHKD by a teacher that runs on every batch; everything that was trained, and how it went."""
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
    pictures = build.load_images(training, "cpu")
    fitted = loop.fit(
        student,
        method,
        pictures,
        train=settings(epochs=epochs, batch_size=8),
        normalization=NORMALIZATION,
        taps={"pooled": "fc:in"},
        teacher=teacher,
        device="cpu",
        folder=folder,
        progress=progress or RecordingProgress(),
    )
    assert isinstance(pictures.images, Stream) and pictures.images.decoders.pool is None  # the processes are gone
    assert not (folder / "logits.npz").exists() and teacher.used == 0  # nothing is remembered
    return state_of(student, method), fitted


@pytest.mark.parametrize("at_once", [None, 1])
def test_an_epoch_that_is_interrupted_in_its_middle_ends_with_the_same_bits(training, tmp_path, monkeypatch, at_once):
    training = replace(training, shards_at_once=at_once)
    monkeypatch.setattr(loop, "CHECK_EVERY_STEPS", 2)  # looks at the clock every two steps ...
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)  # ... and finds that it is time for a checkpoint
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


def test_shards_come_in_turn_and_their_images_mixed():
    shards, index = (
        ShardMixing(torch.arange(60) // 6, 3),
        torch.arange(60)[torch.arange(60) % 6 != 2],
    )  # ten shards, of each one image for validation
    orders = [schedule.order(index, seed, epoch, shards) for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    few = torch.tensor(
        [0, 1, 18, 19, 36, 37, 54, 55]
    )  # of four shards of the ten, which are two blocks of two whatever their numbers
    assert all(
        len(shards.shard_of[schedule.order(few, 0, epoch, ShardMixing(shards.shard_of, 2))[:4]].unique()) == 2
        for epoch in range(1, 20)
    )
    assert torch.equal(orders[0], orders[1]) and len({tuple(order.tolist()) for order in orders}) == 3
    for order in orders:
        assert torch.equal(order.sort().values, index)
        blocks = [shards.shard_of[part].unique().tolist() for part in order.split(15)]
        assert [len(block) for block in blocks] == [3, 3, 3, 1] and len(
            {shard for block in blocks for shard in block}
        ) == 10
        assert len(shards.shard_of[order[:15]].unique_consecutive()) > 6  # one behind the other would be 3
    assert len({tuple(shards.shard_of[order[:15]].unique().tolist()) for order in orders}) == 3
    assert torch.equal(
        schedule.order(index, 0, 1, ShardMixing(shards.shard_of, 10)), schedule.order(index, 0, 1)
    )  # all at once


def test_shards_are_read_ahead_one_block_before_their_images(training, tmp_path, monkeypatch):
    root = stand_in.shards(tmp_path / "set", train=15, val=1, each=5)  # nine shards
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=3, workers=1, shards_at_once=2)
    prepared = prepare.prepare_data(config, tmp_path, base=Path("/"), report=lambda text: None)
    pictures = build.load_images(data.training(prepared, config), "cpu")
    stream, read = pictures.images, list[Path]()
    monkeypatch.setattr(ReadAhead, "_read_whole", lambda _, path: read.append(path))
    monkeypatch.setattr(Stream, "_pays", lambda *_: True)  # these shards are padding more than images
    order = schedule.order(pictures.train_index, 0, 1, pictures.shards)
    turns = [stream.listing.path(int(order[place])) for place in range(len(order))]
    in_turn = list(dict.fromkeys(turns))
    assert len(in_turn) == 9 and {path.suffix for path in in_turn} == {".tar"}

    for first in (0, 20):
        read.clear()
        places, asked = range(first, len(order), 4), [(order[at : at + 4], order) for at in range(first, len(order), 4)]
        for number, (index, _) in enumerate(stream.reading_ahead(iter(asked), order, places)):
            assert torch.equal(index, asked[number][0])
            begun = len(set(turns[: places[number] + 1]))
            wait_until(lambda begun=begun: bool(read) and in_turn.index(read[-1]) >= min(begun + 2, 9) - 1)
            assert in_turn.index(read[-1]) <= begun + 1
        assert (
            read == in_turn[max(len(set(turns[: first + 1])) - 2, 0) :]
        )  # each once; of an epoch that goes on those behind are left out

    monkeypatch.setenv("LOCAL_RANK", "1")  # the other processes of a machine leave it to the first
    read.clear()
    assert len(list(stream.reading_ahead(iter(asked), order, places))) == len(asked) and not read


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_reading_ahead_ends_with_its_user_and_leaves_what_is_gone_to_it(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(9_000_000))
    with ReadAhead([tmp_path / "a.tar", tmp_path / "gone.tar", tmp_path / "a.tar"]) as ahead:
        ahead.set_window(0, 2)
        wait_until(lambda: ahead.files_read == 2)
        time.sleep(0.05)
        assert ahead.files_read == 2
        ahead.set_window(0, 9)
        wait_until(lambda: ahead.files_read == 3)
    assert not ahead._thread.is_alive()


def test_reading_ahead_skips_what_training_has_left_behind(tmp_path, monkeypatch):
    read, gate = list[Path](), threading.Event()
    monkeypatch.setattr(ReadAhead, "_read_whole", lambda _, path: (read.append(path), gate.wait(20)))
    paths = [tmp_path / f"{number}.tar" for number in range(9)]
    with ReadAhead(paths) as ahead:
        ahead.set_window(0, 3)
        wait_until(lambda: len(read) == 1)  # slow storage ...
        ahead.set_window(6, 8)  # ... and training two blocks on
        gate.set()
        wait_until(lambda: ahead.files_read == 8)
        assert read == [paths[0], paths[6], paths[7]]


def test_shards_are_read_ahead_where_most_of_them_is_asked_for(tmp_path):
    root, pictures = tmp_path / "set", [jpeg(label, label, (640, 480)) for label in (0, 1, 2, 0, 1, 2)]
    root.mkdir()
    for part, count in (("train", 3), ("val", 1)):
        for number in range(count):
            with tarfile.open(root / f"{part}-{number:06d}.tar", "w") as shard:
                for place, content in enumerate(pictures):
                    stand_in.add(shard, f"{number}_{place}.jpg", content)
                    stand_in.add(shard, f"{number}_{place}.cls", b"%d" % (place % 3))
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=3, workers=1, shards_at_once=1)
    prepared = prepare.prepare_data(config, tmp_path, base=Path("/"), report=lambda text: None)
    stream = build.load_images(data.training(prepared, config), "cpu").images
    assert stream._pays(torch.arange(18)) and not stream._pays(
        torch.tensor([0, 6, 12])
    )  # an image of each shard, as with data.limit_train
    (root / "train-000001.tar").unlink()
    assert not stream._pays(torch.arange(18))


def test_shards_at_once_are_part_of_a_trainings_key_where_they_are_set(training):
    assert (
        sha256_of(training)
        == sha256_of(replace(training, shards_at_once=None))
        != sha256_of(replace(training, shards_at_once=4))
    )
    assert "shards_at_once" not in identity(training)
    assert sha256_of(replace(training, shards_at_once=4, distortion=Distortion(hue=0.1)).evaluated) == sha256_of(
        training
    )  # who trains nothing
    key = "60beddf56f2935d22c05918d6a2f39b11179b276efd535a7e63637e726854f9e"  # what the data stage's was before there was such a key in a recipe
    assert sha256_of(["data", 1, Data(source="fashion"), {}]) == key
    assert sha256_of(["data", 1, Data(source="webdataset", shards_at_once=4), {}]) != sha256_of(
        ["data", 1, Data(source="webdataset"), {}]
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_every_process_of_a_job_stops_between_two_steps(training, tmp_path, sent):
    """What a scheduler and `timeout` do. Decoders work on, and where they are gone all the same, that is part of the stop."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    expected, _ = fit(tmp_path / "whole", training)

    def told() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, sent)
        time.sleep(1)  # until the pool knows of those that are gone

    with pytest.raises(Interrupted, match="epoch 1 of 2, checkpoint kept"):
        fit(tmp_path / "broken", training, progress=RecordingProgress(1, told))
    resumed = RecordingProgress()
    found, _ = fit(tmp_path / "broken", training, progress=resumed)
    assert resumed.started == (1, 1) and same(found, expected)


def test_decoders_that_nobody_asks_end_behind_a_signal(training):
    """Those of a pool that gives up on them, for one."""
    decoders = Decoders(place(training), augment="resized_crop", workers=1)
    one = (np.arange(4), np.arange(4))
    assert len(list(decoders.batches([one], 4))) == 1
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGTERM)
    begin = time.monotonic()
    assert len(list(decoders.batches([one], 4))) == 1 and child.is_alive()
    child.join(3 * IDLE_GRACE_SECONDS)
    assert child.exitcode == 0 and time.monotonic() - begin >= IDLE_GRACE_SECONDS
    decoders.close()


def test_views_are_distorted_behind_the_decoders(training, tmp_path):
    asked = Distortion(hue=0.3, operations=2, magnitude=9)
    pictures = build.load_images(replace(training, distortion=asked), "cpu")
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
        pictures,
        train=settings(epochs=1, batch_size=8),
        normalization=NORMALIZATION,
        taps={"pooled": "fc:in"},
        teacher=cache,
        device="cpu",
        folder=tmp_path,
        progress=RecordingProgress(),
    )
    order = schedule.order(pictures.train_index, settings().seed or 0, 1)[:8]
    numbers = views.views_of_epoch(45, 1, settings().seed or 0, "resized_crop", None, SIDE, distorted=True)[order]
    listing = Listing(place(training))
    crops = [
        listing.decoded(int(p), lambda content, v=v: decode_training_view(content, int(v), SIDE))
        for p, v in zip(order, numbers, strict=True)
    ]
    assert torch.equal(
        seen[0], distort_views(torch.from_numpy(np.stack(crops)), numbers, asked)
    ) and not np.array_equal(seen[0].numpy(), np.stack(crops))


def noting(batches: Any, asked: list[int]) -> Any:
    """The same, noting how many images each batch asks for."""
    return lambda source, rows: batches((asked.append(len(one[0])) or one for one in source), rows)


def test_a_process_decodes_its_share_alone(training, monkeypatch):
    """Half a batch for each of two processes: together the batch of one."""
    pictures = build.load_images(training, "cpu")
    order, view = pictures.train_index, views.views_of_epoch(45, 1, 0, "resized_crop", None, SIDE)
    found = []
    for group in (Group(0, 1), Group(0, 2), Group(1, 2)):
        stream = Stream(pictures.images.listing, augment="resized_crop", workers=1, device="cpu")
        asked: list[int] = []
        monkeypatch.setattr(stream.decoders, "batches", noting(stream.decoders.batches, asked))
        step = type("Step", (), {"group": group})()
        found.append([pixels.clone() for _, _, _, pixels in batches(order, view, 2, 10, 4, step, stream)])
        assert asked == ([10, 6] if group.size == 1 else [5, 3])
        stream.close()
    for one, first, second in zip(*found, strict=True):
        assert torch.equal(one, torch.cat([first, second]))


def test_a_bad_image_ends_the_training_with_its_name(tmp_path):
    root = stand_in.folders(tmp_path / "set", train=4, val=1)
    config = Data(source="imagenet", root=str(root), image_size=SIDE, validation=3, workers=1)
    (tmp_path / "work").mkdir()
    prepared = data.training(
        prepare.prepare_data(config, tmp_path / "work", base=Path("/"), report=lambda text: None), config
    )
    _, _, train_index, _ = training_arrays(prepared)
    bad = Listing(place(prepared)).path(int(train_index[5]))
    bad.write_bytes(b"?" * bad.stat().st_size)
    with pytest.raises(
        StageError, match=rf"{bad.name} cannot be read \(not an image that Pillow can read\); repair or replace it"
    ):
        fit(tmp_path, prepared, epochs=1)


def test_a_lost_decoder_is_one_sentence_and_a_lost_training_takes_its_decoders_along(training, tmp_path):
    decoders = Decoders(place(training), augment="none", workers=1)
    asked = ((np.arange(8), np.zeros(8, np.int64)) for _ in range(400))
    batches = decoders.batches(asked, 8)
    assert np.array_equal(next(batches), Listing(place(training))[np.arange(8)])  # augment none: as in evaluation
    (child,) = decoders.pool._processes
    os.kill(child, signal.SIGKILL)
    with pytest.raises(StageError, match="a decode process died .* run the same command again to resume"):
        for _ in batches:
            pass
    decoders.close()

    script = tmp_path / "orphans.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom compress.data.streaming.listing import ListingSpec\nfrom compress.data.streaming.workers import Decoders\n"
        "if __name__ == '__main__':\n"
        "    decoders = Decoders(ListingSpec(*map(Path, sys.argv[1:4]), 16), augment='none', workers=1)\n"
        "    batches = decoders.batches(((np.arange(8), np.zeros(8, np.int64)) for _ in range(10**6)), 8)\n"
        "    next(batches)\n    print(*decoders.pool._processes, flush=True)\n    import time; time.sleep(60)\n"
    )
    where = place(training)
    parent = subprocess.Popen(
        [sys.executable, str(script), where.root, where.rows, where.paths], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 120
    while (
        Path(f"/proc/{child}").exists()
        and "State:\tZ" not in Path(f"/proc/{child}/status").read_text()
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert time.monotonic() < deadline
