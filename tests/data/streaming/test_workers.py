"""Decode processes: the same views whoever decodes them, bounded memory, and an orderly end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import StageError
from compress.core.records.training import TrainingData
from compress.data.augment.crops import decode_training_view
from compress.data.streaming import workers
from compress.data.streaming.listing import Listing
from compress.data.streaming.workers import IDLE_GRACE_SECONDS, Decoders
from tests.support.streamed_set import SIDE, listing_spec


def test_batches_are_in_order_with_any_number_of_workers(training: TrainingData) -> None:
    listing, random = Listing(listing_spec(training)), np.random.default_rng(0)
    asked = [(random.integers(0, 45, size), random.integers(0, 8192, size)) for size in (20, 20, 20, 7, 20, 1)]
    found = []
    for count in (1, 2):
        decoders = Decoders(listing_spec(training), augment="resized_crop", workers=count)
        found.append([batch.copy() for batch in decoders.batches(iter(asked), 20)])
        if count == 2:  # an epoch that ends in its middle leaves the ring free
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


def test_workers_cut_the_parts_that_the_scale_names(training: TrainingData) -> None:
    listing, scale = Listing(listing_spec(training)), (0.6, 0.7)
    decoders = Decoders(listing_spec(training), augment="resized_crop", workers=1, crop_scale=scale)
    (batch,) = decoders.batches(iter([(np.array([3]), np.array([9]))]), 1)
    batch = batch.copy()
    decoders.close()
    expected = listing.decoded(3, lambda content: decode_training_view(content, 9, SIDE, scale))
    assert np.array_equal(batch[0], expected)
    assert not np.array_equal(batch[0], listing.decoded(3, lambda content: decode_training_view(content, 9, SIDE)))


def test_memory_does_not_grow_with_the_set(training: TrainingData) -> None:
    for asked, rows, count, slots in ((10**6, 256, 16, 3), (5, 8, 4, 10)):
        decoders = Decoders(listing_spec(training), augment="resized_crop", workers=count)
        job, _ = decoders._start(rows)
        assert job.slots == slots and job.ring().nbytes == slots * rows * SIDE**2 * 3, asked
        decoders.close()


def test_workers_decode_as_many_batches_as_the_ring_holds(
    training: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the batch being read and those ahead of it."""
    submitted: list[int] = []
    submit = workers._submit
    monkeypatch.setattr(
        workers, "_submit", lambda pool, job, slot, *asked: submitted.append(slot) or submit(pool, job, slot, *asked)
    )
    decoders = Decoders(listing_spec(training), augment="resized_crop", workers=1)
    asked = [(np.arange(8), np.full(8, number)) for number in range(10)]
    flight = []
    for number, _ in enumerate(decoders.batches(iter(asked), 8)):
        flight.append(len(submitted) - number)
    slots = decoders.job.slots if decoders.job is not None else 0
    decoders.close()
    assert slots >= 4 and flight == [min(slots, 10 - number) for number in range(10)]
    assert len(set(submitted[:slots])) == slots  # each in its own slot


@pytest.mark.slow
def test_an_idle_worker_exits_after_sigterm(training):
    """For example, those of a pool that has given up on them."""
    decoders = Decoders(listing_spec(training), augment="resized_crop", workers=1)
    one = (np.arange(4), np.arange(4))
    assert len(list(decoders.batches([one], 4))) == 1
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGTERM)
    begin = time.monotonic()
    assert len(list(decoders.batches([one], 4))) == 1 and child.is_alive()
    child.join(3 * IDLE_GRACE_SECONDS)
    assert child.exitcode == 0 and time.monotonic() - begin >= IDLE_GRACE_SECONDS
    decoders.close()


def test_a_killed_worker_is_an_error_and_a_killed_training_ends_its_workers(training, tmp_path):
    decoders = Decoders(listing_spec(training), augment="none", workers=1)
    asked = ((np.arange(8), np.zeros(8, np.int64)) for _ in range(400))
    batches = decoders.batches(asked, 8)
    # Without augmentation, views are evaluation views.
    assert np.array_equal(next(batches), Listing(listing_spec(training))[np.arange(8)])
    (child,) = decoders.pool._processes
    os.kill(child, signal.SIGKILL)
    with pytest.raises(StageError, match="a decode process died .* run the same command again to resume"):
        for _ in batches:
            pass
    decoders.close()

    script = tmp_path / "orphans.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from compress.data.streaming.listing import ListingSpec\n"
        "from compress.data.streaming.workers import Decoders\n"
        "if __name__ == '__main__':\n"
        "    decoders = Decoders(ListingSpec(*map(Path, sys.argv[1:4]), 16), augment='none', workers=1)\n"
        "    batches = decoders.batches(((np.arange(8), np.zeros(8, np.int64)) for _ in range(10**6)), 8)\n"
        "    next(batches)\n    print(*decoders.pool._processes, flush=True)\n    import time; time.sleep(60)\n"
    )
    where = listing_spec(training)
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
