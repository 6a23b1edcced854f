"""Engines: a compiled training ends as an eager one; what cannot be compiled runs eagerly with a warning."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress import models
from compress.core import malloc
from compress.core.records.training import Distortion, Network, Normalization
from compress.data.augment import views
from compress.methods import Method, Outline, build_method
from compress.recipe.schema import Dhkd, Distill, Fitnet, ResolvedSchedule, ResolvedTrain
from compress.training import build, loop, session
from compress.training.engine import choose, compile, recorder
from compress.training.evaluation import ImageSet
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache
from tests.support.quiet import Quiet

SIDE, CLASSES, COUNT = 8, 3, 40
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SHAPE = Outline("net", CLASSES, {"pooled": (6,)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def pictures(device: str = "cpu") -> ImageSet:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), generator=generator).to(torch.uint8)
    parts = (images, torch.arange(COUNT) % CLASSES, torch.arange(COUNT), torch.arange(0))
    return ImageSet(*(part.to(device) for part in parts), "crop_flip", SIDE)


def settings(name: str, **changes: Any) -> ResolvedTrain:
    values = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 0.05,
        "seed": 7,
        "precision": "float32",
        "schedule": ResolvedSchedule(warmup_epochs=0.0),
        "engine": name,
    }
    return ResolvedTrain(**{**values, **changes})


def trained(
    folder: Path, name: str, *, align: Any = "all", taps: str = "fc:in", device: str = "cpu", dropout: float = 0.3
) -> tuple[list[Tensor], list[str], nn.Module]:
    """Weights after two epochs of three batches, the last one short, what was said, and the student."""
    (folder / name).mkdir(parents=True)
    torch.manual_seed(11)
    net = Net().eval().requires_grad_(False).to(device)
    cache = TeacherCache(
        lambda raw: net(views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std)).float(),
        images=COUNT,
        views=18,
        classes=CLASSES,
        device=device,
        folder=None,
        warn=lambda text: None,
    )
    student = Net().to(device=device, memory_format=torch.channels_last)
    student.drop.p = dropout
    distill = Distill(dhkd=Dhkd(hidden=12, dropout=dropout, head="nonlinear", align=align))
    method: Method = build_method(distill, student=SHAPE, teacher=SHAPE, train_labels=torch.zeros(1)).to(device)
    progress = Quiet()
    loop.fit(
        student,
        method,
        pictures(device),
        train=settings(name),
        normalization=NORMALIZATION,
        taps={"pooled": taps},
        teacher=cache,
        device=device,
        folder=folder / name,
        progress=progress,
    )
    return (
        [value.clone() for module in (student, method) for value in module.state_dict().values()],
        progress.said,
        student,
    )


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("align", ["all", "shared"])
@pytest.mark.slow
def test_a_compiled_student_trains_to_the_same_bits(tmp_path, monkeypatch, align):
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(compile, "BACKEND", backend)
    plain, compiling = (trained(tmp_path, name, align=align) for name in ("eager", "compile"))

    assert graphs and max(graphs) > 3 and not compiling[1]
    assert same(plain[0], compiling[0])
    assert "forward" not in compiling[2].fc.__dict__


@pytest.mark.parametrize(
    ("backend", "dropout"),
    [
        ("aot_eager", 0.3),
        pytest.param(
            "inductor",
            0.0,
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")],
        ),
    ],
)
def test_two_backward_passes_go_through_one_compiled_graph(tmp_path, monkeypatch, backend, dropout):
    """inductor draws its own numbers for dropout."""
    monkeypatch.setattr(compile, "BACKEND", backend)
    plain, compiling = (trained(tmp_path, name, dropout=dropout) for name in ("eager", "compile"))

    assert not compiling[1]
    for one, other in zip(plain[0], compiling[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_phase_moves_only_parameters_that_its_loss_reaches(tmp_path, monkeypatch):
    """In FitNet's first stage a compiled graph gives zeros to layers above the hint, which weight decay would move."""
    monkeypatch.setattr(compile, "BACKEND", "aot_eager")
    started: dict[str, Tensor] = {}
    states: dict[tuple[str, int], dict[str, Tensor]] = {}
    shape = build.outline_of(Network("resnet8", None, CLASSES, SIDE, NORMALIZATION))
    taps = shape.taps
    distill = Distill(method="fitnet", fitnet=Fitnet(mode="two_stage", hint_epochs=1))
    for name, epochs in itertools.product(("eager", "compile"), (1, 2)):
        torch.manual_seed(11)
        student, teacher = (
            models.build("resnet8", classes=CLASSES).to(memory_format=torch.channels_last) for _ in range(2)
        )
        method = build_method(distill, student=shape, teacher=shape, train_labels=torch.zeros(1))
        started = {key: value.clone() for key, value in student.state_dict().items()}
        progress = Quiet()
        teaching = TeacherNetwork(
            teacher,
            {tap: taps[tap] for tap in method.teacher_taps},
            lambda raw: views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std),
            nullcontext,
            batch_stats=False,
            logits="own",
        )
        (tmp_path / f"{name}{epochs}").mkdir()
        loop.fit(
            student,
            method,
            pictures(),
            train=settings(name, epochs=epochs, weight_decay=0.1),
            normalization=NORMALIZATION,
            taps=taps,
            teacher=teaching,
            device="cpu",
            folder=tmp_path / f"{name}{epochs}",
            progress=progress,
        )
        assert not progress.said
        states[name, epochs] = {key: value.clone() for key, value in student.state_dict().items()}

    for name in ("eager", "compile"):
        weights = [key for key in started if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert {key.split(".")[0] for key in weights if not torch.equal(states[name, 1][key], started[key])} == {
            "conv1",
            "bn1",
            "layer1",
            "layer2",
        }
    for key, value in states["eager", 2].items():
        torch.testing.assert_close(value, states["compile", 2][key], rtol=1e-3, atol=1e-4)


def test_compiled_code_is_released_after_training(tmp_path, monkeypatch):
    """torch compiles a function a limited number of times, so each training must start anew; export works as before."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(compile, "BACKEND", backend)
    counts, student = [], nn.Module()
    for number in range(3):
        with torch._dynamo.config.patch(recompile_limit=1):
            *_, student = trained(tmp_path / str(number), "compile")
        counts.append(len(graphs))
    assert counts[0] and counts == [counts[0], 2 * counts[0], 3 * counts[0]]
    x = torch.zeros(2, 3, SIDE, SIDE)
    torch.testing.assert_close(torch.export.export(student.eval(), (x,)).module()(x), student(x))


def test_a_step_that_cannot_be_compiled_runs_eagerly_with_a_warning(tmp_path, monkeypatch):
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(compile, "BACKEND", broken)
    plain, compiling = (trained(tmp_path, name) for name in ("eager", "compile"))

    assert len(compiling[1]) == 1 and "no compiler here" in compiling[1][0] and "\n" not in compiling[1][0]
    assert same(plain[0], compiling[0])

    def unlinked(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        def first_launch(*args: Any) -> Any:
            raise subprocess.CalledProcessError(1, ["gcc"])

        return first_launch

    monkeypatch.setattr(compile, "BACKEND", unlinked)
    _, said, _ = trained(tmp_path / "unlinked", "compile")
    assert len(said) == 1 and "gcc" in said[0]
    assert "not known apart" in trained(tmp_path / "other", "compile", taps="drop:out")[1][0]


@pytest.mark.parametrize("name", ["auto", "graph", "eager"])
def test_a_cpu_compiles_and_records_only_when_asked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(choose, "MIN_STEPS_TO_COMPILE", 1)
    monkeypatch.setattr(choose, "compile_step", lambda *_: pytest.fail("compiled"))
    asked = (
        ["train.engine: graph does nothing here (nothing is recorded on cpu); steps run as they are"]
        if name == "graph"
        else []
    )
    assert trained(tmp_path, name)[1] == asked


@pytest.mark.gpu
@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize(("name", "dropout"), [("graph", 0.3), ("auto", 0.0)])
def test_compiled_and_recorded_on_cuda(tmp_path, monkeypatch, name, dropout):
    """A graph draws the numbers for dropout that a step without it draws; a compiled network draws its own."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    monkeypatch.setattr(choose, "MIN_STEPS_TO_COMPILE", 1)
    monkeypatch.setattr(recorder, "WARM_UP_STEPS", 2)
    runs: list[Any] = []
    monkeypatch.setattr(session, "choose_engine", lambda *args: runs.append(choose.choose_engine(*args)) or runs[-1])
    plain, fast = (trained(tmp_path, one, device="cuda", dropout=dropout) for one in ("eager", name))
    assert not fast[1] and runs[1].replays == 2  # of four whole batches
    for one, other in zip(plain[0], fast[0], strict=True):  # sums in another order, products of TF32
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.005)


# --- what costs a CPU time


def test_gradients_leave_the_global_pooling_in_its_maps_layout():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    layouts: list[bool] = []
    model[2].register_full_backward_hook(
        lambda module, into, out: layouts.append(out[0].is_contiguous(memory_format=torch.channels_last))
    )
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    off = choose.keep_channels_last(model)
    kept = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    off()

    assert layouts[1] and same(list(plain), list(kept))
    assert not model[3]._forward_pre_hooks


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_freed_by_a_step_is_reused_by_the_next():
    code = (
        "import resource, sys\nimport torch\nfrom compress.core.malloc import keep_freed_memory\n"
        "torch.set_num_threads(1)\nkeep_freed_memory()\n"
        "def use():\n    for _ in range(20):\n        one, other = torch.ones(2**20), torch.ones(2**21)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        # The least of seven, because other processes share the kernel.
        "counts = [use() for _ in range(8)]\n"
        "print(min(after - before for before, after in zip(counts, counts[1:])))\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3000  # 60,000 pages are asked for


def test_malloc_settings_of_the_environment_are_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _: pytest.fail("changed"))
    malloc.keep_freed_memory()


class Operators(TorchDispatchMode):
    """How many run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def effort(count: int, augment: str, distortion: Distortion | None, folder: Path) -> tuple[int, int]:
    """Count torch's operators and the Python calls of a training by one batch of `count` images, teacher included."""
    images, labels, index, nothing = (
        torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8),
        torch.arange(count) % CLASSES,
        torch.arange(count),
        torch.arange(0),
    )
    every = views.view_count(augment, SIDE, distorted=distortion is not None)
    answers = TeacherCache(
        lambda raw: raw.float().mean((1, 2)),
        images=count,
        views=every,
        classes=CLASSES,
        device="cpu",
        folder=None,
        warn=pytest.fail,
    )
    method = build_method(Distill(dhkd=Dhkd(hidden=12)), student=SHAPE, teacher=SHAPE, train_labels=torch.zeros(1))
    calls = itertools.count()
    folder.mkdir()
    sys.setprofile(lambda frame, event, arg: next(calls) if event == "call" else None)
    try:
        with Operators() as operators:
            loop.fit(
                Net(),
                method,
                ImageSet(images, labels, index, nothing, augment, SIDE, distortion=distortion),
                train=settings("auto", epochs=1, batch_size=count),
                normalization=NORMALIZATION,
                taps={"pooled": "fc:in"},
                teacher=answers,
                device="cpu",
                folder=folder,
                progress=Quiet(),
            )
    finally:
        sys.setprofile(None)
    return operators.count, next(calls)


@pytest.mark.parametrize(
    ("augment", "distortion"),
    [
        ("crop_flip", None),
        ("resized_crop", None),
        ("crop_flip", Distortion(0.4, 0.4, 0.4, 0.1, operations=2, magnitude=9)),
    ],
)
def test_more_images_cost_no_more_python_calls(tmp_path, augment, distortion):
    found = {
        count: [effort(count, augment, distortion, tmp_path / f"{count}-{turn}") for turn in range(3)]
        for count in (8, 64)
    }
    few, many = (
        [min(values) for values in zip(*turns, strict=True)] for turns in found.values()
    )  # the first one prepares what the others find
    assert few[0] > 0 and all(
        more - less < 56 for more, less in zip(many, few, strict=True)
    )  # one call or operator a picture would be 56 more
