"""Recorded and replayed steps, with a tape in place of a CUDA graph: the same bits, or a fallback with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.data import npy
from compress.data.augment import views
from compress.data.streaming.batches import Stream
from compress.methods import build_method
from compress.models import checkpoints
from compress.recipe.schema import Crd, Dhkd, Distill, Fitnet, ResolvedSchedule, ResolvedTrain, ReviewKd
from compress.training import batches, build, loop, session
from compress.training.engine import choose, cuda_graph, recorder
from compress.training.engine.cuda_graph import CudaGraphRecorder
from compress.training.engine.recorder import WARM_UP_STEPS, RecordedStep
from compress.training.step import Step
from compress.training.teacher import logit_cache
from compress.training.teacher.logit_cache import TeacherCache
from compress.training.teacher.signals import teacher_source
from tests.support.cuda_graph_tape import Tapes, Watch
from tests.support.quiet import Quiet

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, CLASSES, COUNT, VALIDATION, BATCH = 16, 4, 44, 8, 8  # four whole batches an epoch and one of half the size
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
STUDENT = Network("resnet8", None, CLASSES, SIDE, NORMALIZATION)
DHKD = Distill(dhkd=Dhkd(hidden=12, dropout=0.3, head="nonlinear", align="all", ramp_epochs=3))
METHODS = {
    "dhkd": DHKD,
    "dhkd, shared": Distill(dhkd=Dhkd(hidden=12, dropout=0.3, head="nonlinear", align="shared")),
    "fitnet": Distill(method="fitnet", fitnet=Fitnet(mode="two_stage", hint_epochs=2)),
    "reviewkd": Distill(method="reviewkd", reviewkd=ReviewKd(warmup_epochs=3)),
    "crd": Distill(method="crd", crd=Crd(negatives=8, width=4)),
}
EPOCHS = 4


class Held(Stream):
    """Pictures in memory, served as a stream's."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.shards = images, None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, asked: Iterable[tuple[Tensor, Tensor]], rows: int) -> Iterator[Tensor]:
        return (views.apply_views(self.images, index, view, "crop_flip", SIDE) for index, view in asked)

    def close(self) -> None: ...


@dataclass
class Run:
    state: list[Tensor]
    rows: list[dict[str, float]]
    said: list[str]
    recorded: RecordedStep | None
    teaching: Any
    student: nn.Module


@pytest.fixture
def tapes(monkeypatch) -> list[Tapes]:
    """The CPU records, on tapes; each training's."""
    made: list[Tapes] = []
    monkeypatch.setitem(choose.RECORDERS, "cpu", lambda: made.append(Tapes()) or made[-1])
    return made


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Trains resnet8 by a method and an engine."""
    torch.manual_seed(1)
    checkpoints.save_state(models.build("resnet8", classes=CLASSES), tmp_path / "t.safetensors")
    teacher = Trained(STUDENT, File.of(tmp_path / "t.safetensors"), 0.5, 1, 1, 1, 1.0)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    labels = (np.arange(COUNT) % CLASSES).astype(np.int64)
    data = TrainingData(
        npy.write_array(tmp_path / "i.npy", images),
        npy.write_array(tmp_path / "l.npy", labels),
        tuple("abcd"),
        SIDE,
        "crop_flip",
        VALIDATION,
        0,
    )

    def run(
        name: str,
        distill: Distill = DHKD,
        *,
        streamed: bool = False,
        device: str = "cpu",
        wrap: Callable[[nn.Module], None] = lambda _: None,
    ) -> Run:
        torch.manual_seed(3)
        pictures = build.load_images(data, device)
        student = build.load_network(STUDENT, None, device)
        wrap(student)
        known = build.outline_of(STUDENT, build.load_network(STUDENT, teacher.weights, "cpu"))
        method = build_method(
            distill,
            student=build.outline_of(STUDENT),
            teacher=known,
            train_labels=pictures.labels,
            train_index=pictures.train_index,
        ).to(device)
        teaching = teacher_source(teacher, method, known.taps, data, COUNT, device=device, cache=None, warn=pytest.fail)
        if streamed:
            pictures = replace(pictures, images=Held(pictures.images), streamed_validation=pictures.validation())
        runs: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(session, "choose_engine", lambda *args: runs.append(choose.choose_engine(*args)) or runs[-1])
            progress, folder = Quiet(), tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            config = ResolvedTrain(
                epochs=EPOCHS,
                batch_size=BATCH,
                lr=0.05,
                seed=5,
                precision="float32",
                schedule=ResolvedSchedule(warmup_epochs=1.0),
                engine=name,
            )
            fitted = loop.fit(
                student,
                method,
                pictures,
                train=config,
                normalization=NORMALIZATION,
                taps=build.outline_of(STUDENT).taps,
                teacher=teaching,
                device=device,
                folder=folder,
                progress=progress,
            )
        rows = [{key: value for key, value in row.items() if key != "images_per_second"} for row in fitted.history]
        state = [value.clone() for module in (student, method) for value in module.state_dict().values()]
        return Run(
            state, rows, progress.said, runs[0] if isinstance(runs[0], RecordedStep) else None, teaching, student
        )

    return run


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True)) and one.rows == other.rows


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_a_recorded_training_ends_with_the_same_bits(trained, tapes, name):
    # Under a dispatch mode torch may take another path: without it ReviewKD's last bits differ from the tape's.
    with Watch():
        plain, replayed = trained("eager", METHODS[name]), trained("graph", METHODS[name])

    phases = 2 if name == "fitnet" else 1
    assert same(plain, replayed) and not replayed.said
    assert plain.recorded is None and replayed.recorded is not None
    assert (
        replayed.recorded.replays == 4 * EPOCHS - WARM_UP_STEPS * phases
    )  # short batches and those before a recording run as they are
    assert [one.recordings for one in tapes] == [phases]
    assert all(p.grad is None for p in replayed.student.parameters())


def test_streamed_images_and_their_teacher_are_replayed(trained, tapes):
    plain, replayed = trained("eager", streamed=True), trained("graph", streamed=True)

    assert same(plain, replayed) and replayed.recorded.replays
    assert plain.teaching.rows_run == replayed.teaching.rows_run == EPOCHS * (COUNT - VALIDATION)


def test_a_learning_rate_in_a_tensor_gives_the_same_bits(trained, tapes):
    in_tensor = trained("eager")
    choose.RECORDERS.pop("cpu")
    for one, other in zip(trained("eager").state, in_tensor.state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_leaves_the_device_is_not_recorded(trained, monkeypatch):
    monkeypatch.setitem(choose.RECORDERS, "cpu", lambda: pytest.fail("recorded"))
    monkeypatch.setattr(TeacherCache, "recordable", property(lambda _: False, lambda *_: None), raising=False)
    assert trained("graph").recorded is None


def test_a_failed_recording_changes_nothing_and_warns_why(trained, monkeypatch):
    tapes = Tapes(broken=True)
    monkeypatch.setitem(choose.RECORDERS, "cpu", lambda: tapes)
    plain, failed = trained("eager"), trained("graph")

    assert same(plain, failed) and failed.recorded.failed and not failed.recorded.replays
    assert failed.said == [
        "train.engine: this step cannot be recorded (operation not permitted); it runs without, slower"
    ]
    assert (tapes.recordings, tapes.freed) == (1, 1)


@pytest.mark.parametrize("name", ["eager", "graph"])
def test_views_cut_ahead_equal_those_that_a_step_cuts(trained, tapes, monkeypatch, name):
    """As on a card, whose steps are too short for the launches that cutting takes."""
    monkeypatch.setitem(batches.PREFETCH_STEPS, "cpu", 3)
    cut, calls = Step.crop, list[int]()
    monkeypatch.setattr(Step, "crop", lambda self, index, view: calls.append(len(index)) or cut(self, index, view))
    ahead = trained(name)
    assert len(calls) == EPOCHS * (
        2 + 1
    )  # five steps an epoch are two windows for the student, and the teacher is asked once
    monkeypatch.setattr(logit_cache, "PREFETCH_PIXELS", 3 * BATCH * SIDE**2)
    calls.clear()
    assert same(ahead, trained(name)) and len(calls) == EPOCHS * 2 * 2  # larger pictures: asked for each window
    monkeypatch.setattr(batches, "MAX_PRECUT_BYTES", 3 * BATCH * SIDE**2 * 3 - 1)
    assert same(ahead, trained(name))  # the second window of an epoch is shorter, but cut like the first
    if name == "eager":  # a recorded step cuts without being asked
        assert len(calls) == EPOCHS * (2 * 2 + 2 + 5)  # with those before


def waiting(student: nn.Module) -> None:
    """Makes the network look at its pictures."""
    student.register_forward_pre_hook(lambda _, args: None if bool(args[0].sum() > -1e9) else pytest.fail("never"))


def test_a_step_that_waits_is_not_recorded(trained, tapes):
    plain, failed = trained("eager", wrap=waiting), trained("graph", wrap=waiting)

    assert same(plain, failed) and failed.recorded.failed and not tapes[0].recordings
    assert failed.said == [
        "train.engine: this step cannot be recorded (it waits for the device); it runs without, slower"
    ]


def test_full_device_memory_is_reported_in_one_sentence():
    assert (
        recorder.failure_reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."))
        == "the device's memory is full"
    )
    assert (
        recorder.failure_reason(RuntimeError("\n  one \n two")) == "one"
        and recorder.failure_reason(RuntimeError()) == "RuntimeError"
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("same_kernels")
def test_a_gpu_keeps_working_after_a_failed_graph(trained, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    plain, waits = trained("eager", device="cuda", wrap=waiting), trained("graph", device="cuda", wrap=waiting)
    with monkeypatch.context() as patch:
        patch.setattr(CudaGraphRecorder, "waits", lambda self, run: (self.warm_up(run), False))
        failed = trained("graph", device="cuda", wrap=waiting)
    assert (
        "waits for the device" in waits.said[0]
        and "cannot be recorded" in failed.said[0]
        and "waits" not in failed.said[0]
    )
    for one, other, third in zip(plain.state, waits.state, failed.state, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.005)
        torch.testing.assert_close(one, third, rtol=0.01, atol=0.005)
    torch.cuda.empty_cache()
    assert trained("graph", device="cuda").recorded.replays == 4 * EPOCHS - WARM_UP_STEPS


# --- CUDA graphs: what torch is told where it has no card


class Card:
    """Stands for `torch.cuda` and what belongs to it; notes what is asked of it."""

    def __init__(self, *, ends: bool) -> None:
        self.asked: list[str] = []
        self.stream, self.ends = "outer", ends

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        self.stream = stream  # left so by torch 2.11
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def end(self, device: int, pool: Any) -> None:
        self.asked.append(f"end {pool}")
        if not self.ends:
            raise RuntimeError("not currently recording to mempool_id")


@pytest.mark.parametrize("ends", [True, False], ids=["torch 2.11", "torch 2.15"])
def test_a_failed_graph_restores_streams_generators_and_pools(monkeypatch, ends):
    card = Card(ends=ends)
    generator = SimpleNamespace(
        clone_state=lambda: "clone", graphsafe_set_state=lambda state: card.asked.append(f"state {state}")
    )
    for name, value in {
        "Stream": lambda: "side",
        "CUDAGraph": lambda: SimpleNamespace(reset=lambda: card.asked.append("reset")),
        "graph_pool_handle": lambda: (0, 7),
        "current_stream": lambda: card.stream,
        "set_stream": lambda stream: setattr(card, "stream", stream),
        "graph": card.graph,
        "current_device": lambda: 0,
        "default_generators": (generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", card.end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda device, pool: card.asked.append(f"release {pool}"), raising=False
    )
    monkeypatch.setattr(cuda_graph, "_FAILED_GRAPHS", [])

    def step() -> dict[str, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="previous error") as raised:
        CudaGraphRecorder().record(step)

    assert "not permitted" in str(raised.value.__context__)
    assert card.stream == "outer" and len(cuda_graph._FAILED_GRAPHS) == 1
    assert card.asked == ["reset", "state clone", "end (0, 7)", *(["release (0, 7)"] if ends else [])]


@pytest.mark.parametrize(
    "text", ["called a synchronizing CUDA operation (Triggered internally at ...)", "something else"]
)
def test_torchs_sync_debug_mode_tells_whether_a_step_waits(monkeypatch, text):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(CudaGraphRecorder, "warm_up", lambda _, run: run())

    def step() -> dict[str, Tensor]:
        warnings.warn(text, stacklevel=1)
        return {}

    assert CudaGraphRecorder().warm_up_watching(step) == ({}, "synchronizing" in text)
    assert modes == [0, "warn", 0]
