"""A training step compared with what the machine can do: its arithmetic, and where the rest of the time goes.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --device cuda

Runs on CPU or CUDA. A step is a DHKD step as training runs it (views, student, two backward passes, alignment,
optimizer) with the teacher's logits cached; the teacher's forward pass stands beside it, as a cold cache pays for it.
The engine is the one that 240 epochs on 50,000 images get; if that is not the plain step, the plain one's time is
shown, too. Floating-point operations are counted by torch's FlopCounterMode: convolutions and matrix products, two for
a multiply-accumulate. The peak is the fastest of several large products and dense 3x3 convolutions in the precision of
the step, on the same device. The split is the profiler's: on a CPU each operator's own time, on CUDA the kernels'; the
rest of the wall time is Python, dispatch, launches and waiting. "Moved" is what the plain step's operators read and
write, tensor by tensor without views: what memory would carry without any cache or fusion, beside the time of a large
copy of as many bytes. "2 images" is the same step, not compiled, with next to no arithmetic: the least that it costs.
Networks have random weights, images are noise.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import peaks
import result_file
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from compress import models
from compress.core.distributed import ALONE
from compress.core.malloc import keep_freed_memory
from compress.data.augment import views
from compress.methods import build_method
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.recipe.schema import Distill
from compress.training import forward_batch
from compress.training.engine import choose, recorder
from compress.training.kernels import use_fast_kernels
from compress.training.optimization import LearningRate, sgd
from compress.training.precision import autocast, resolve_precision
from compress.training.step import Batch, Step, trainable

PAIRS = (("resnet56", "mobilenet_v2"), ("resnet32x4", "resnet8x4"), ("resnet32x4", "shufflenet_v2"))
CLASSES, SIDE, IMAGES = 100, 32, 4096
# Steps of the training whose engine is measured.
STEPS = 240 * 782
# Steps before the timed ones: kernels are chosen, a graph is recorded and replayed.
WARM_UP_STEPS = recorder.WARM_UP_STEPS + 2
# By what an operator is, what its name contains; the first that fits counts.
PARTS = {
    "compiled, fused": ("triton", "compiledfx"),
    "convolutions and products": (
        "conv",
        "addmm",
        "aten::mm",
        "aten::bmm",
        "gemm",
        "cutlass",
        "xmma",
        "nvjet",
        "wgrad",
        "dgrad",
        "fprop",
    ),
    "batch normalisation": ("batch_norm", "_batchnorm", "bn_fw", "bn_bw"),
    "optimizer": ("sgd", "optimizer"),
    "other operators": ("",),
}
CPU_EVENTS = ("aten::", "_BatchNorm", "## Call CompiledFx")


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--engine",
    "name",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "graph", "compile", "eager")),
    help="train.engine",
)
@click.option("--batch", default=64, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=10, show_default=True, type=click.IntRange(3))
@click.option("--pair", "chosen", multiple=True, help="teacher:student, more than once; default: all three")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="default: benchmarks/results/roofline-<device>.json, -<engine> unless that is auto",
)
def main(device: str, name: str, batch: int, steps: int, chosen: tuple[str, ...], out: Path | None) -> None:
    """Measure all pairs, print and write."""
    keep_freed_memory()  # as a training does
    found = {precision: peaks.rates(device, precision) for precision in peaks.DTYPES}
    best = {precision: max(rates.values()) for precision, rates in found.items()}
    rate = peaks.copying(device)
    print(f"a large copy: {rate / 1e9:.1f} GB/s")
    for precision, rates in found.items():
        print(f"peak in {precision}: {best[precision] / 1e9:.0f} GFLOP/s, the {max(rates, key=lambda one: rates[one])}")
    pairs = [(one.split(":")[0], one.split(":")[1]) for one in chosen] or list(PAIRS)
    rows = [_row(teacher, student, device, name, batch, steps, best) for teacher, student in pairs]
    for row in rows:
        _show(row, batch, rate)
    content = {
        "command": result_file.command("roofline.py"),
        "batch": batch,
        "steps": steps,
        "engine": name,
        "peak_gflop_per_s": {precision: value / 1e9 for precision, value in best.items()},
        "kernels_gflop_per_s": {
            precision: {one: value / 1e9 for one, value in rates.items()} for precision, rates in found.items()
        },
        "copy_gb_per_s": rate / 1e9,
        "rows": rows,
        "environment": result_file.environment(device),
    }
    path = out or result_file.path("roofline", device, name)
    result_file.write(path, content)
    print(f"written: {path}")


def _show(row: dict, batch: int, rate: float) -> None:
    print(
        f"\n{row['teacher']} -> {row['student']}, {row['precision']}, {batch} images: {row['step_ms']:.1f} ms, "
        f"{row['gflop']:.2f} GFLOP, {row['gflop_per_s']:.0f} GFLOP/s, {100 * row['share_of_peak']:.0f} % of the peak"
    )
    for name, value in row["split_ms"].items():
        print(f"  {name:<28}{value:8.2f} ms  {100 * value / row['step_ms']:4.0f} %")
    if row["plain_step_ms"] is not None:
        print(f"  {'(neither recorded nor compiled':<31}{row['plain_step_ms']:5.2f} ms)")
    print(
        f"  {'moved':<28}{row['moved_gb']:8.2f} GB by {row['operators']} operators, "
        f"{1e12 * row['moved_gb'] / rate:.1f} ms at a copy's rate"
    )
    print(f"  {'(a step of 2 images':<28}{row['two_pictures_ms']:8.2f} ms)")
    print(
        f"  {'teacher, if not cached':<28}{row['teacher_ms']:8.2f} ms, {row['teacher_gflop']:.2f} GFLOP, "
        f"{100 * row['teacher_share_of_peak']:.0f} % of the peak in {row['teacher_precision']}"
    )
    for text in row["said"]:
        print(f"  {text}")


def _row(teacher: str, student: str, device: str, name: str, batch: int, steps: int, best: dict[str, float]) -> dict:
    step, said = step_of(student, device, name), list[str]()
    data, small = (_cut(step, batch_of(size, device)) for size in (batch, 2))
    plain = _median(lambda: step(data), device, steps)
    # Counted on the plain step: a gradient that an engine computes in a roundabout way is more arithmetic, but not more
    # use.
    usual = step_of(student, device, "eager")
    flop, (moved, operators) = _flop(lambda: usual(data)), _traffic(lambda: usual(data))
    assert isinstance(step.network, Tapped)
    classifier = choose.classifier_of(
        step.network.model, outline(student, classes=CLASSES, width=None, image_size=SIDE).taps
    )
    few = choose.choose_engine(
        "graph" if name != "eager" and device.startswith("cuda") else "eager", step, 2, STEPS, classifier, said.append
    )
    two = _median(lambda: few(small), device, steps)
    run = choose.choose_engine(name, step, batch, STEPS, classifier, said.append)
    seconds = plain if run is step else _median(lambda: run(data), device, steps)
    split = _split(run, data, device, 3, 1e3 * seconds)
    # On CUDA the teacher runs ahead of the steps, in large batches.
    rows = forward_batch.rows_at_once(device, SIDE) if device.startswith("cuda") else batch
    forward, precision = _teacher(teacher, step, batch_of(rows, device), device)
    teacher_seconds, teacher_flop = (
        value * batch / rows for value in (_median(forward, device, steps), _flop(forward))
    )
    return {
        "teacher": teacher,
        "student": student,
        "precision": step.precision,
        "step_ms": 1e3 * seconds,
        "gflop": flop / 1e9,
        "gflop_per_s": flop / seconds / 1e9,
        "share_of_peak": flop / seconds / best[step.precision],
        "split_ms": split,
        "plain_step_ms": None if run is step else 1e3 * plain,
        "two_pictures_ms": 1e3 * two,
        "moved_gb": moved / 1e9,
        "operators": operators,
        "said": list(dict.fromkeys(said)),
        "teacher_ms": 1e3 * teacher_seconds,
        "teacher_gflop": teacher_flop / 1e9,
        "teacher_precision": precision,
        "teacher_share_of_peak": teacher_flop / teacher_seconds / best[precision],
    }


def _median(run: Callable[[], object], device: str, count: int) -> float:
    return statistics.median(peaks.times(run, device, count, WARM_UP_STEPS))


def _flop(run: Callable[[], object]) -> int:
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flop}
    ) as counter:
        run()
    return int(counter.get_total_flops())


def _backward_flop(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Return the operations of a backward pass: those of the forward pass for each gradient that is needed.

    torch 2.15's own formula counts a depthwise convolution as a dense one.
    """
    return 2 * grad[0] * math.prod(grad[2:]) * math.prod(weight) * sum(rest[-1][:2])


class _Traffic(TorchDispatchMode):
    """Counts operators and the bytes that they read and write; views are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            self.bytes += sum(value.nbytes for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor))
        return out


def _traffic(run: Callable[[], object]) -> tuple[int, int]:
    with _Traffic() as found:
        run()
    return found.bytes, found.operators


class _CachedTeacher:
    """A source of logits that are cached already."""

    recordable, prefetch_limit = True, 0

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        return None

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return None if cached_logits is None else cached_logits.float(), {}

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None: ...

    def save(self) -> None: ...


def step_of(student: str, device: str, name: str = "auto") -> Step:
    """Return a training step of the student under the engine of this name."""
    torch.manual_seed(0)
    model = models.build(student, classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    choose.keep_channels_last(model)
    if device == "cpu":
        use_fast_kernels(model, SIDE, name, print)
    shape = outline(student, classes=CLASSES, width=None, image_size=SIDE)
    method = build_method(Distill(), student=shape, teacher=shape, train_labels=torch.zeros(1)).to(device).train()
    parameters = trainable(model, method)
    optimizer = sgd(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    LearningRate(optimizer, device, recorded=torch.device(device).type in choose.RECORDERS).set(0.01)
    images = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8).to(device)
    precision = resolve_precision("auto", device)
    mean, spread = (torch.full((3,), value, device=device) for value in (0.5, 0.25))
    return Step(
        Tapped(model, {name: shape.taps[name] for name in method.student_taps}),
        method,
        images,
        torch.arange(IMAGES, device=device) % CLASSES,
        "crop_flip",
        SIDE,
        mean,
        spread,
        _CachedTeacher(),
        optimizer,
        parameters,
        precision,
        ALONE,
    )


def batch_of(size: int, device: str) -> Batch:
    """Return a batch of random images and views with cached logits."""
    index, view = (
        torch.randint(0, IMAGES, (size,), device=device),
        torch.randint(0, views.view_count("crop_flip", SIDE), (size,), device=device),
    )
    one = torch.ones((), device=device)
    return Batch(index, view, torch.randn(size, CLASSES, device=device).half(), one, one.long(), size)


def _cut(step: Step, batch: Batch) -> Batch:
    """Cut the batch's views on CUDA, where training cuts them for many steps at once, outside of the step."""
    return replace(batch, pixels=step.crop(batch.index, batch.view)) if batch.index.is_cuda else batch


def _teacher(name: str, step: Step, batch: Batch, device: str) -> tuple[Callable[[], Tensor], str]:
    """Return a forward pass of the teacher on a batch, as the cache runs it, and its precision."""
    model = models.build(name, classes=CLASSES).to(device).to(memory_format=torch.channels_last).eval()
    precision = resolve_precision("auto", device)

    @torch.no_grad()
    def forward() -> Tensor:
        with autocast(device, precision):
            return model(views.to_float(step.pixels(batch.index, batch.view), step.mean, step.std))

    return forward, precision


def _split(run: choose.StepRunner, batch: Batch, device: str, count: int, step_ms: float) -> dict[str, float]:
    """Return milliseconds a step by what they are spent on: a profiled step's shares of an unprofiled step's time."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        begin = time.perf_counter()
        for _ in range(count):
            run(batch)
        peaks.wait(device)
        wall = 1e3 * (time.perf_counter() - begin)
    parts = dict.fromkeys(PARTS, 0.0)
    for event in found.key_averages():
        if cuda:
            # Kernels alone: the operator that launched one reports the same time again, and so does a range around
            # several.
            counts = event.device_type == DeviceType.CUDA and not event.is_user_annotation
            own = event.self_device_time_total
        else:  # operators, own kernels and compiled graphs; the autograd engine's nodes are dispatch
            counts, own = event.key.startswith(CPU_EVENTS), event.self_cpu_time_total
        if counts:
            parts[next(part for part, words in PARTS.items() if any(word in event.key.lower() for word in words))] += (
                own / 1e3
            )
    parts["Python, dispatch, launches"] = max(wall - sum(parts.values()), 0.0)
    return {name: value / wall * step_ms for name, value in parts.items() if value or name != "compiled, fused"}


if __name__ == "__main__":
    main()
