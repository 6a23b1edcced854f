"""Training uses bfloat16, the CPU kernels, kept memory and rare reads of the losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.core import malloc
from compress.recipe.schema import Distill
from compress.training import loop
from compress.training.engine import choose
from compress.training.kernels import TORCH, library
from tests.support.tiny_training import VALIDATION, Net, RecordingProgress, fit, image_set, settings, student_and_method

pytestmark = pytest.mark.usefixtures("one_thread")
NONE = Distill(method="none")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_a_step_computes_the_student_in_the_trainings_precision(tmp_path, precision, dtype):
    student, method = student_and_method()
    seen: list[tuple[bool, int, torch.dtype]] = []
    student.conv.register_forward_hook(lambda module, args, out: seen.append((module.training, len(out), out.dtype)))
    fit(tmp_path, student, method, config=settings(epochs=1, precision=precision))
    assert seen[-4:] == [
        (True, 16, dtype),
        (True, 16, dtype),
        (True, 8, dtype),
        (False, VALIDATION, torch.float32),
    ]  # validated as it ships


class Depthwise(Net):
    """With a convolution whose gradients go by another path."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.depthwise(x))


def replaced(student: nn.Module) -> set[str]:
    """Modules that compute by another path than their class's."""
    return {name for name, module in student.named_modules() if {"forward", "_conv_forward"} & module.__dict__.keys()}


@pytest.mark.parametrize("name", ["auto", "eager"])
def test_training_on_a_cpu_uses_the_c_kernels(tmp_path, name):
    if library.unavailable_reason() is not None:
        pytest.skip(f"no kernels: {library.unavailable_reason()}")
    student, method = student_and_method(NONE, net=Depthwise())
    during: list[set[str]] = []
    fitted = fit(
        tmp_path,
        student,
        method,
        config=settings(epochs=1, engine=name),
        progress=RecordingProgress(1, lambda: during.append(replaced(student))),
    )
    made = library.load_kernels()
    assert (
        made is not None and fitted.kernels == (made.compiler if name == "auto" else TORCH) and made.compiler != TORCH
    )
    assert during == [{"depthwise", "bn"} if name == "auto" else {"depthwise"}] and not replaced(student)


def test_malloc_is_configured_before_the_first_step(tmp_path, monkeypatch):
    for variable in [name for name in malloc.os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(variable)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        malloc,
        "ctypes",
        SimpleNamespace(CDLL=lambda _: SimpleNamespace(mallopt=lambda *option: told.append(option))),
    )
    before: list[set[tuple[int, int]]] = []
    fit(
        tmp_path,
        *student_and_method(NONE),
        config=settings(epochs=1),
        progress=RecordingProgress(1, lambda: before.append(set(told))),
    )
    assert before == [
        {
            (malloc.M_MMAP_THRESHOLD, malloc.LARGEST_MMAP_THRESHOLD),
            (malloc.M_TRIM_THRESHOLD, malloc.NEVER),
        }
    ]


class Reads(TorchFunctionMode):
    """Counts what brings a tensor's numbers to Python, which waits for a device."""

    NAMES = (
        "item",
        "tolist",
        "numpy",
        "cpu",
        "__float__",
        "__bool__",
        "__int__",
        "__index__",
        "__array__",
        "equal",
        "allclose",
        "is_nonzero",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def reads(
    folder: Path, distill: Distill, steps: int, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[int]]:
    """Of an epoch of so many steps: in all of the training, and behind each step."""
    folder.mkdir()
    behind: list[int] = []
    with monkeypatch.context() as patch, Reads() as mode:
        patch.setattr(loop, "time", SimpleNamespace(monotonic=clock))
        patch.setattr(loop, "CHECK_EVERY_STEPS", 1)
        progress = RecordingProgress()
        patch.setattr(progress, "step", lambda images, losses: behind.append(mode.count))
        fit(
            folder,
            *student_and_method(distill),
            config=settings(epochs=1, batch_size=4),
            data=image_set(VALIDATION + 4 * steps),
            progress=progress,
        )
    assert len(behind) == steps
    return mode.count, behind


@pytest.mark.parametrize("distill", [NONE, Distill(method="kd"), Distill()], ids=["none", "kd", "dhkd"])
def test_a_step_reads_no_loss(tmp_path, monkeypatch, distill):
    """Losses are not read while the clock stands still. At most 52 images: the teacher knows no more."""
    few, many = (reads(tmp_path / str(steps), distill, steps, lambda: 0.0, monkeypatch) for steps in (2, 10))
    assert few[0] == many[0] > 0 and len(set(many[1])) == 1


def test_in_a_long_epoch_losses_are_read_every_few_seconds(tmp_path, monkeypatch):
    now = iter(range(10**6))  # a second each time that it is asked
    _, behind = reads(tmp_path / "long", NONE, 10, lambda: float(next(now)), monkeypatch)
    assert 1 < len(set(behind)) < 10


class Recorded:
    """A `recorder.Recorder` that records nothing: a replay is the step itself."""

    def warm_up(self, run: Callable[[], Any]) -> Any:
        return run()

    def warm_up_watching(self, run: Callable[[], Any]) -> tuple[Any, bool]:
        return run(), False

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run

    def free(self) -> None: ...


def test_a_long_training_is_compiled_where_steps_are_recorded_and_a_short_one_is_not(tmp_path, monkeypatch):
    """Three epochs of three steps; a stand-in compiles."""
    made: list[tuple[Any, int]] = []
    monkeypatch.setitem(choose.RECORDERS, "cpu", Recorded)
    monkeypatch.setattr(choose, "compile_step", lambda step, size, *_: made.append((step, size)) or step)
    for long, name, expected in ((9, "auto", 1), (10, "auto", 0), (9, "graph", 0), (10, "compile", 1)):
        made.clear()
        folder = tmp_path / f"{long}-{name}"
        folder.mkdir()
        monkeypatch.setattr(choose, "MIN_STEPS_TO_COMPILE", long)
        fit(folder, *student_and_method(NONE), config=settings(engine=name))
        assert [size for _, size in made] == [16] * expected, (long, name)


@pytest.mark.parametrize(("steps", "compiles"), [(1_000, False), (49_999, False), (50_000, True), (10**6, True)])
def test_auto_compiles_from_the_measured_number_of_steps_on(monkeypatch, steps, compiles):
    """From as many steps on as the documentation says."""
    step: Any = SimpleNamespace(
        group=SimpleNamespace(size=1),
        labels=torch.zeros(1),
        method=SimpleNamespace(recordable=True, phase=None),
        teacher=None,
    )
    fast: Any = object()
    monkeypatch.setitem(choose.RECORDERS, "cpu", Recorded)
    monkeypatch.setattr(choose, "compile_step", lambda *_: fast)
    run: Any = choose.choose_engine("auto", step, 16, steps, None, pytest.fail)
    assert run.step is (fast if compiles else step) and run.other is step
