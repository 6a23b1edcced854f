"""The cache of teacher logits: the same student with and without it, and no teacher run when it is full."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import models
from compress.core.records.base import File
from compress.core.records.training import Distortion, Network, Normalization, Trained, TrainingData
from compress.data import npy
from compress.methods import build_method
from compress.models import checkpoints
from compress.recipe.schema import Dhkd, Distill, ResolvedSchedule, ResolvedTrain
from compress.training import build, distill
from compress.training.loop import fit
from compress.training.precision import autocast
from compress.training.teacher import logit_cache, signals
from compress.training.teacher.logit_cache import TeacherCache
from compress.training.teacher.signals import teacher_cache, teacher_source
from tests.support.quiet import Quiet

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, CLASSES, COUNT = 16, 4, 60
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
RESNET = Network("resnet8", None, CLASSES, SIDE, NORMALIZATION)
MOBILE = Network("mobilenet_v2", 0.1, CLASSES, SIDE, NORMALIZATION)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    labels = (np.arange(COUNT) % CLASSES).astype(np.int64)
    return TrainingData(
        npy.write_array(tmp_path / "i.npy", images),
        npy.write_array(tmp_path / "l.npy", labels),
        tuple("abcd"),
        SIDE,
        "crop_flip",
        8,
        0,
    )


@pytest.fixture(params=["resnet8", "mobilenet_v2"])
def teacher(tmp_path: Path, request: pytest.FixtureRequest) -> Trained:
    network = RESNET if request.param == "resnet8" else MOBILE
    torch.manual_seed(1)
    checkpoints.save_state(
        models.build(network.model, classes=CLASSES, width=network.width), tmp_path / "t.safetensors"
    )
    return Trained(network, File.of(tmp_path / "t.safetensors"), 0.5, 1, 1, 1, 1.0)


def cache_of(
    teacher: Trained,
    data: TrainingData,
    folder: Path | None,
    warn: Callable[[str], None] = pytest.fail,
    device: str = "cpu",
) -> TeacherCache:
    return teacher_cache(teacher, data, COUNT, device=device, cache=folder, warn=warn)


def train_student(
    cache: TeacherCache,
    data: TrainingData,
    work: Path,
    *,
    seed: int = 0,
    views: int | None = 2,
    method: str = "dhkd",
    network: Network = RESNET,
) -> list[Tensor]:
    """Student and auxiliary head after two epochs."""
    work.mkdir()
    torch.manual_seed(3)
    student = build.load_network(network, None, "cpu")
    shape = build.outline_of(network)
    built = build_method(
        Distill(method=method, dhkd=Dhkd(hidden=8)),
        student=shape,
        teacher=build.outline_of(RESNET),
        train_labels=torch.zeros(1),
    )
    config = ResolvedTrain(
        epochs=2,
        batch_size=16,
        lr=0.01,
        seed=seed,
        precision="float32",
        views=views,
        schedule=ResolvedSchedule(warmup_epochs=0.0),
    )
    fit(
        student,
        built,
        build.load_images(data, "cpu"),
        train=config,
        normalization=NORMALIZATION,
        taps=shape.taps,
        teacher=cache,
        device="cpu",
        folder=work,
        progress=Quiet(),
    )
    return [value.clone() for module in (student, built) for value in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.slow
def test_a_cached_run_equals_an_uncached_one_bit_for_bit(tmp_path, data, teacher, monkeypatch, bf16):
    monkeypatch.setattr("compress.training.precision.cpu_has_bf16", lambda: bf16)
    with monkeypatch.context() as patch:
        patch.setattr(logit_cache, "MEMORY_LIMIT", 0)
        none = cache_of(teacher, data, None)
    assert not none.enabled and none.used == 0
    plain = train_student(none, data, tmp_path / "1")
    assert none.rows_run == 2 * 52 and none.used == 0

    filling = cache_of(teacher, data, tmp_path / "cache")
    assert same(train_student(filling, data, tmp_path / "2"), plain) and filling.rows_run == 2 * 52 == filling.used
    full = cache_of(teacher, data, tmp_path / "cache")
    assert same(train_student(full, data, tmp_path / "3"), plain)
    assert full.rows_run == 0


@pytest.fixture
def teachers_maps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that receives the first convolution's output of every network that `build.load_network` makes."""
    made, found = build.load_network, list[Tensor]()

    def network(record: Network, weights: File | None, device: str) -> torch.nn.Module:
        model = made(record, weights, device)
        if weights is not None:  # a teacher
            first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
            first.register_forward_hook(lambda module, args, out: found.append(out))
        return model

    monkeypatch.setattr(signals, "load_network", network)
    return found


@pytest.mark.parametrize("teacher", ["resnet8"], indirect=True)
def test_a_full_cache_never_runs_the_network(tmp_path, data, teacher, teachers_maps):
    train_student(cache_of(teacher, data, tmp_path / "cache"), data, tmp_path / "1")
    assert sum(len(maps) for maps in teachers_maps) >= 2 * 52
    teachers_maps.clear()
    train_student(cache_of(teacher, data, tmp_path / "cache"), data, tmp_path / "2")
    assert not teachers_maps


@pytest.mark.parametrize("teacher", ["resnet8"], indirect=True)
@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)], ids=["float32", "bf16"])
@pytest.mark.parametrize("method", ["kd", "at"])
def test_a_teacher_computes_in_bfloat16_where_the_cpu_does(
    data, teacher, teachers_maps, monkeypatch, method, bf16, dtype
):
    """As a cache of logits, and as a network whose maps are read; what it answers is rounded to no bfloat16."""
    monkeypatch.setattr("compress.training.precision.cpu_has_bf16", lambda: bf16)
    shape = build.outline_of(RESNET)
    built = build_method(Distill(method=method), student=shape, teacher=shape, train_labels=torch.zeros(1))
    teaching = teacher_source(teacher, built, shape.taps, data, COUNT, device="cpu", cache=None, warn=pytest.fail)
    assert isinstance(teaching, TeacherCache) == (method == "kd")
    pixels = torch.zeros(16, SIDE, SIDE, 3, dtype=torch.uint8)
    logits, maps = teaching.forward(None, pixels)
    assert [one.dtype for one in teachers_maps] == [dtype]
    assert all(value.dtype == torch.float32 for value in (logits, *maps.values()) if value is not None) and bool(
        maps
    ) == (method == "at")


@pytest.mark.parametrize("teacher", ["resnet8"], indirect=True)
def test_distorted_views_are_cached_like_others(tmp_path, data, teacher, monkeypatch):
    plain = train_student(cache_of(teacher, data, None), data, tmp_path / "plain")
    data = dataclasses.replace(data, distortion=Distortion(0.4, 0.4, 0.4, 0.1, operations=2, magnitude=9))
    with monkeypatch.context() as patch:
        patch.setattr(logit_cache, "MEMORY_LIMIT", 0)
        none = cache_of(teacher, data, None)
    uncached = train_student(none, data, tmp_path / "none")
    assert not same(uncached, plain)
    for expected in (2 * 52, 0):
        cache = cache_of(teacher, data, tmp_path / "cache")
        assert same(train_student(cache, data, tmp_path / str(expected)), uncached) and cache.rows_run == expected


@pytest.mark.parametrize("teacher", ["resnet8"], indirect=True)
def test_another_seed_method_and_student_never_run_the_teacher(tmp_path, data, teacher):
    train_student(cache_of(teacher, data, tmp_path / "cache"), data, tmp_path / "1")
    for number, (seed, method, network) in enumerate(
        [(5, "dhkd", RESNET), (0, "kd", RESNET), (9, "kd", MOBILE), (0, "dhkd", MOBILE)]
    ):
        cache = cache_of(teacher, data, tmp_path / "cache")
        train_student(cache, data, tmp_path / f"again{number}", seed=seed, method=method, network=network)
        assert cache.rows_run == 0 < cache.used, (seed, method, network.model)
    (file,) = (tmp_path / "cache" / "logits").glob("*/logits.npz")
    with np.load(file) as stored:
        assert stored["logits"].dtype == np.float16 and stored["logits"].shape == (104, CLASSES)
    assert not list(file.parent.glob("*.tmp"))


@pytest.mark.parametrize("teacher", ["resnet8"], indirect=True)
def test_other_weights_images_views_or_devices_have_their_own_disk_copy(tmp_path, data, teacher, monkeypatch):
    other = tmp_path / "other.safetensors"
    torch.manual_seed(2)
    checkpoints.save_state(models.build("resnet8", classes=CLASSES), other)
    images = np.load(data.images.path)
    moved = dataclasses.replace(data, images=npy.write_array(tmp_path / "moved.npy", images[::-1]))
    rescaled = dataclasses.replace(
        teacher, network=dataclasses.replace(RESNET, normalization=Normalization((0.0,) * 3, (1.0,) * 3))
    )
    monkeypatch.setattr("compress.training.precision.cpu_has_bf16", lambda: False)
    files = [cache_of(teacher, data, tmp_path).file]
    files.append(cache_of(dataclasses.replace(teacher, weights=File.of(other)), data, tmp_path).file)
    files.append(cache_of(teacher, moved, tmp_path).file)
    files.append(cache_of(rescaled, data, tmp_path).file)
    files.append(cache_of(teacher, dataclasses.replace(data, augment="crop"), tmp_path).file)
    files += [
        cache_of(teacher, dataclasses.replace(data, distortion=one), tmp_path).file
        for one in (Distortion(hue=0.1), Distortion(hue=0.2))
    ]
    with monkeypatch.context() as patch:
        patch.setattr("compress.training.precision.cpu_has_bf16", lambda: True)
        files.append(cache_of(teacher, data, tmp_path).file)
    files.append(cache_of(teacher, dataclasses.replace(data, image_size=SIDE - 4), tmp_path).file)
    files.append(cache_of(teacher, data, tmp_path, device="meta").file)  # as a card's, whose kernels round otherwise
    with monkeypatch.context() as patch:
        patch.setattr(signals, "LOGITS_VERSION", signals.LOGITS_VERSION + 1)
        files.append(cache_of(teacher, data, tmp_path).file)
    assert len(set(files)) == 11 and cache_of(teacher, data, tmp_path, device="cpu:0").file == files[0]
    again = dataclasses.replace(teacher, seconds=7.0, origin="elsewhere")
    assert cache_of(again, data, tmp_path).file == files[0]


# --- the cache alone, over a function of the pixels


def answers(raw: Tensor) -> Tensor:
    return raw.float().mean((1, 2)).repeat(1, 2)[:, :CLASSES] / 3


def small(folder: Path | None, warn: Callable[[str], None] = pytest.fail) -> TeacherCache:
    return TeacherCache(
        answers, images=10, views=3, classes=CLASSES, device="cpu", folder=folder, warn=warn
    ).ensure_loaded()


def batch(*index: int, view: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    places = torch.tensor(index)
    pixels = (places[:, None, None, None] * 20 + view + torch.arange(3)).expand(-1, 4, 4, 3).to(torch.uint8)
    return places, torch.full_like(places, view), pixels


def ask(cache: TeacherCache, index: Tensor, view: Tensor, pixels: Tensor) -> Tensor:
    """Logits of a batch whose pixels are known by picture."""
    row = {int(picture): place for place, picture in enumerate(index)}
    return cache.prefetch_logits(index, view, lambda some, _: pixels[[row[int(picture)] for picture in some]]).float()


def test_only_unknown_rows_run_and_logits_have_the_precision_of_float16():
    cache = small(None)
    first = ask(cache, *batch(1, 2, 3))
    assert first.dtype == torch.float32 and torch.equal(first, answers(batch(1, 2, 3)[2]).half().float())
    mixed = ask(cache, *batch(3, 4, 1))
    assert cache.rows_run == 4
    assert torch.equal(mixed, answers(batch(3, 4, 1)[2]).half().float())
    ask(cache, *batch(3, view=1))
    assert cache.rows_run == 5 == cache.used


def test_a_view_that_is_asked_for_twice_at_once_runs_once():
    cache = small(None)
    ask(cache, *batch(5))
    found = ask(cache, *batch(4, 5, 1, 4, 4))
    assert cache.rows_run == 3 == cache.used
    assert torch.equal(found, answers(batch(4, 5, 1, 4, 4)[2]).half().float())
    assert torch.equal(ask(cache, *batch(1, 4, 5)), answers(batch(1, 4, 5)[2]).half().float()) and cache.rows_run == 3


def test_logits_are_clamped_to_float16():
    wild = torch.tensor([[1e6, -1e30, 3.0]])
    cache = TeacherCache(
        lambda raw: wild.expand(len(raw), 3),
        images=2,
        views=1,
        classes=3,
        device="cpu",
        folder=None,
        warn=pytest.fail,
    )
    assert ask(cache, *batch(0)).tolist() == [[65504.0, -65504.0, 3.0]]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_logits_do_not_depend_on_the_other_rows_computed(threads, precision):
    """GEMM kernels differ by rows and threads, with many classes in bits that float16 does not round away."""
    torch.manual_seed(1)
    model, classes = torch.nn.Linear(4 * 4 * 3, 4000).requires_grad_(False), 4000
    images = torch.randint(0, 256, (64, 4, 4, 3), dtype=torch.uint8)
    index = torch.arange(64)

    def forward(raw: Tensor) -> Tensor:
        with autocast("cpu", precision):
            return model(raw.flatten(1) / 255).float()

    def asked(cache: TeacherCache, *, known: int = 0) -> Tensor:
        return cache.prefetch_logits(index[known:], index[known:] * 0, lambda some, _: images[some])

    def made(remember: bool) -> TeacherCache:
        return TeacherCache(
            forward,
            images=64,
            views=1,
            classes=classes,
            device="cpu",
            folder=None,
            warn=pytest.fail,
            remember=remember,
        )

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = asked(made(False))
        for unknown in (1, 2, 3, 5, 11, 19, 27, 52):
            cache = made(True)
            asked(cache, known=unknown)
            assert torch.equal(asked(cache), whole) and cache.rows_run == 64, unknown
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "gib", "side", "largest"),
    [
        ("cuda", 8, 32, 1024),
        ("cuda", 24, 28, 1024),
        ("cuda", 24, 64, 256),
        ("cuda", 24, 56, 332),
        ("cuda", 24, 224, 20),
        ("cuda", 80, 32, 4096),
        ("cuda", 80, 224, 80),
        ("cpu", 0, 224, 64),
    ],
)
def test_a_gpu_runs_fewer_large_images_at_once(monkeypatch, device, gib, side, largest):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
    sizes: list[int] = []
    cache = TeacherCache(
        lambda raw: (sizes.append(len(raw)), answers(raw))[1],
        images=5000,
        views=1,
        classes=CLASSES,
        device=device,
        folder=None,
        warn=pytest.fail,
        remember=False,
        image_size=side,
    )
    count = 5000 if largest == 4096 else 1100
    index = torch.arange(count)
    logits = cache.prefetch_logits(index, index, lambda some, _: torch.zeros(len(some), 2, 2, 3, dtype=torch.uint8))
    assert max(sizes) == largest and cache.rows_run == count and len(logits) == count
    even = 16 if device == "cpu" else largest // 4  # of a card four numbers of rows, whatever is not known
    assert sum(sizes) < count + even and not any(size % even for size in sizes)


def test_a_teacher_on_the_cpu_is_not_prefetched_far_ahead():
    sizes: list[int] = []
    cache = TeacherCache(
        lambda raw: (sizes.append(len(raw)), answers(raw))[1],
        images=5000,
        views=1,
        classes=CLASSES,
        device="cuda",
        folder=None,
        warn=pytest.fail,
        remember=False,
        runs_on="cpu",
    )
    index = torch.arange(130)
    cache.prefetch_logits(index, index, lambda some, _: torch.zeros(len(some), 2, 2, 3, dtype=torch.uint8))
    assert sizes == [64, 64, 16] and cache.prefetch_limit == 0


def test_a_disk_copy_that_found_no_gpu_memory_is_loaded_later(tmp_path, monkeypatch):
    cache = small(tmp_path)
    ask(cache, *batch(0, 1))
    cache.save()
    said: list[str] = []
    other = small(None, said.append)
    other.file = tmp_path / "logits.npz"
    ask(other, *batch(2))
    with monkeypatch.context() as patch:
        patch.setattr(other, "_store_new", full)
        other.save()
    assert "cannot be written (no room)" in said[0]
    other.save()
    assert small(tmp_path).used == 3


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_beyond_the_memory_limit_the_teacher_runs(monkeypatch):
    monkeypatch.setattr(logit_cache, "MEMORY_LIMIT", 10 * 3 * 4 + 4 * CLASSES * 2)  # the table and four rows
    said: list[str] = []
    cache = small(None, said.append)
    assert cache.capacity == 4
    ask(cache, *batch(0, 1, 2))
    assert not said
    mixed = ask(cache, *batch(2, 5, 6, 0))
    assert torch.equal(mixed, answers(batch(2, 5, 6, 0)[2]).half().float())
    assert (cache.rows_run, cache.used) == (5, 3)
    ask(cache, *batch(4))
    ask(cache, *batch(7))
    ask(cache, *batch(4, 0, 1, 2))
    assert (cache.rows_run, cache.used) == (7, 4)
    assert len(said) == 1 and "3 rows fill the 0 MiB that they may take; for other views the teacher runs" in said[0]


def test_the_size_of_the_cache_is_printed_or_that_it_is_too_large(data, monkeypatch):
    train = ResolvedTrain(epochs=3, lr=0.1, seed=0, views=2)
    assert distill._cache_cost(52, data, train, small(None)) == (
        "teacher logits: at most 104 rows (0.0 MiB with their table) for 2 views per image"
    )
    monkeypatch.setattr(logit_cache, "MEMORY_LIMIT", 10 * 3 * 4 + 90 * 2 * CLASSES)
    assert distill._cache_cost(52, data, train, small(None)).endswith(
        "at most 90 rows (0.0 MiB with their table) for 2 views per image, the limit of 0 MiB; "
        "for the rest the teacher runs"
    )
    monkeypatch.setattr(logit_cache, "MEMORY_LIMIT", 3 * 2**20)
    large = TeacherCache(answers, images=2**17, views=8, classes=CLASSES, device="cpu", folder=None, warn=pytest.fail)
    assert distill._cache_cost(52, data, train, large) == (
        "teacher logits: the table for 131,072 images with 8 views each would take 4 MiB, "
        "more than the limit of 3 MiB; "
        "nothing is cached, the teacher runs at every step"
    )


def test_a_disk_copy_larger_than_the_limit_is_loaded_in_part(tmp_path, monkeypatch):
    cache = small(tmp_path)
    ask(cache, *batch(*range(8)))
    cache.save()
    monkeypatch.setattr(logit_cache, "MEMORY_LIMIT", 10 * 3 * 4 + 4 * CLASSES * 2)
    less = small(tmp_path, lambda text: None)  # that it is full
    assert less.used == 4
    assert torch.equal(ask(less, *batch(*range(8))), answers(batch(*range(8))[2]).half().float()) and less.rows_run == 4


def test_saving_writes_only_what_is_new(tmp_path):
    cache = small(tmp_path)
    cache.save()
    assert not (tmp_path / "logits.npz").exists()
    ask(cache, *batch(1, 2))
    cache.save()
    before = (tmp_path / "logits.npz").stat().st_mtime_ns
    again = small(tmp_path)
    ask(again, *batch(2, 1))
    again.save()
    assert again.rows_run == 0 and (tmp_path / "logits.npz").stat().st_mtime_ns == before


def test_two_concurrent_runs_keep_the_logits_of_both(tmp_path):
    long, short = small(tmp_path), small(tmp_path)
    ask(long, *batch(*range(10)))
    ask(short, *batch(1))
    ask(short, *batch(1, 2, view=2))
    for cache in (long, short, long):
        cache.save()
    third = small(tmp_path)
    assert third.used == 12
    ask(third, *batch(*range(10)))
    assert (
        torch.equal(ask(third, *batch(1, 2, view=2)), answers(batch(1, 2, view=2)[2]).half().float())
        and third.rows_run == 0
    )


def test_a_disk_copy_that_cannot_be_written_is_reported_and_training_continues(tmp_path):
    said: list[str] = []
    cache = small(tmp_path, said.append)
    ask(cache, *batch(1, 2))
    (tmp_path / "logits.npz.tmp").mkdir()
    cache.save()
    cache.save()  # tried again, said once
    assert (
        len(said) == 1
        and "logits.npz cannot be written" in said[0]
        and said[0].endswith("a later run asks the teacher again")
    )
    (tmp_path / "logits.npz.tmp").rmdir()
    cache.save()
    assert small(tmp_path).used == 2 and len(said) == 1


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with np.load(path) as stored:
        place = content.find(stored["logits"].tobytes())
    content[place] ^= 0x01
    path.write_bytes(bytes(content))


def changed(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with np.load(path) as stored:
            content = dict(stored)
        np.savez(path, **{**content, **arrays})

    return write


def without_views(path: Path) -> None:
    np.savez(path, index=np.zeros(1, np.int32), logits=np.zeros((1, CLASSES), np.float16))


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        flipped,
        without_views,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 not a zip"),
        changed(index=np.array([0, 99], np.int32)),
        changed(view=np.array([0, -1], np.int32)),
        changed(view=np.zeros(1, np.int32)),
        changed(logits=np.zeros((2, 9), np.float16)),
        changed(logits=np.zeros((2, CLASSES), np.float32)),
        changed(index=np.array(["a", "b"], dtype=object)),
    ],
)
def test_a_damaged_disk_copy_is_reported_ignored_and_replaced(tmp_path, damage):
    cache = small(tmp_path)
    ask(cache, *batch(1, 2))
    cache.save()
    damage(tmp_path / "logits.npz")
    said: list[str] = []
    again = small(tmp_path, said.append)
    assert len(said) == 1 and "logits.npz cannot be used" in said[0] and "the teacher runs again" in said[0]
    assert torch.equal(ask(again, *batch(1, 2)), answers(batch(1, 2)[2]).half().float()) and again.rows_run == 2
    again.save()
    assert len(said) == 1  # of one damaged file once
    third = small(tmp_path)
    ask(third, *batch(2, 1))
    assert third.rows_run == 0
