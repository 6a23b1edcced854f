"""Shards mixed a few at a time, and read ahead of the images that training needs."""

from __future__ import annotations

import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from compress.data.sources import prepare
from compress.data.streaming.batches import ShardMixing, Stream
from compress.data.streaming.readahead import ReadAhead
from compress.recipe.schema import Data
from compress.stages import data
from compress.training import build, schedule
from tests.support import image_stand_in
from tests.support.image_stand_in import jpeg
from tests.support.streamed_set import SIDE


def test_images_are_mixed_within_blocks_of_shards():
    # Ten shards; one image of each is for validation.
    shards, index = (
        ShardMixing(torch.arange(60) // 6, 3),
        torch.arange(60)[torch.arange(60) % 6 != 2],
    )
    orders = [schedule.order(index, seed, epoch, shards) for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    # Images of four shards of the ten: two blocks of two, whatever their numbers.
    few = torch.tensor([0, 1, 18, 19, 36, 37, 54, 55])
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
        assert len(shards.shard_of[order[:15]].unique_consecutive()) > 6  # 3 if shards were not mixed
    assert len({tuple(shards.shard_of[order[:15]].unique().tolist()) for order in orders}) == 3
    # Mixing all shards at once is plain shuffling.
    assert torch.equal(schedule.order(index, 0, 1, ShardMixing(shards.shard_of, 10)), schedule.order(index, 0, 1))


def test_shards_are_read_one_block_ahead(training, tmp_path, monkeypatch):
    root = image_stand_in.shards(tmp_path / "set", train=15, val=1, each=5)  # nine shards
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=3, workers=1, shards_at_once=2)
    prepared = prepare.prepare_data(config, tmp_path, base=Path("/"), report=lambda text: None)
    loaded = build.load_images(data.training(prepared, config), "cpu")
    stream, read = loaded.images, list[Path]()
    monkeypatch.setattr(ReadAhead, "_read_whole", lambda _, path: read.append(path))
    monkeypatch.setattr(Stream, "_pays", lambda *_: True)  # these shards are mostly padding
    order = schedule.order(loaded.train_index, 0, 1, loaded.shards)
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
        # Each once; when an epoch is resumed, shards that it has passed are skipped.
        assert read == in_turn[max(len(set(turns[: first + 1])) - 2, 0) :]

    monkeypatch.setenv("LOCAL_RANK", "1")  # only the first process of a machine reads ahead
    read.clear()
    assert len(list(stream.reading_ahead(iter(asked), order, places))) == len(asked) and not read


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_read_ahead_stops_with_its_context_and_skips_missing_files(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(9_000_000))
    with ReadAhead([tmp_path / "a.tar", tmp_path / "gone.tar", tmp_path / "a.tar"]) as ahead:
        ahead.set_window(0, 2)
        wait_until(lambda: ahead.files_read == 2)
        time.sleep(0.05)
        assert ahead.files_read == 2
        ahead.set_window(0, 9)
        wait_until(lambda: ahead.files_read == 3)
    assert not ahead._thread.is_alive()


def test_read_ahead_skips_shards_that_training_has_passed(tmp_path, monkeypatch):
    read, gate = list[Path](), threading.Event()
    monkeypatch.setattr(ReadAhead, "_read_whole", lambda _, path: (read.append(path), gate.wait(20)))
    paths = [tmp_path / f"{number}.tar" for number in range(9)]
    with ReadAhead(paths) as ahead:
        ahead.set_window(0, 3)
        wait_until(lambda: len(read) == 1)  # slow storage ...
        ahead.set_window(6, 8)  # ... and training two blocks further
        gate.set()
        wait_until(lambda: ahead.files_read == 8)
        assert read == [paths[0], paths[6], paths[7]]


def test_shards_are_read_ahead_only_if_most_of_their_bytes_are_used(tmp_path):
    root, loaded = tmp_path / "set", [jpeg(label, label, (640, 480)) for label in (0, 1, 2, 0, 1, 2)]
    root.mkdir()
    for part, count in (("train", 3), ("val", 1)):
        for number in range(count):
            with tarfile.open(root / f"{part}-{number:06d}.tar", "w") as shard:
                for place, content in enumerate(loaded):
                    image_stand_in.add(shard, f"{number}_{place}.jpg", content)
                    image_stand_in.add(shard, f"{number}_{place}.cls", b"%d" % (place % 3))
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=3, workers=1, shards_at_once=1)
    prepared = prepare.prepare_data(config, tmp_path, base=Path("/"), report=lambda text: None)
    stream = build.load_images(data.training(prepared, config), "cpu").images
    # One image of each shard, as with data.limit_train.
    assert stream._pays(torch.arange(18)) and not stream._pays(torch.tensor([0, 6, 12]))
    (root / "train-000001.tar").unlink()
    assert not stream._pays(torch.arange(18))
