"""How near a training step comes to the machine: its arithmetic against a large matrix product, and where the rest of the time goes.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --device cuda

A step is a DHKD step as training runs it (views, student, two backward passes, alignment, optimizer), the teacher's logits known; the teacher's forward
pass stands beside it, as a cold cache pays for it. Floating-point operations are counted by torch's FlopCounterMode: convolutions and matrix products, two
for a multiply-accumulate. The peak is the fastest of several large square products in the precision that the step uses, on the same device. The split is the
profiler's: on a CPU each operator's own time, on CUDA its kernels'; what no operator accounts for (Python, dispatch, launches, waiting) is the rest of the wall
time. "2 pictures" is the same step with next to no arithmetic: what a step costs at least. Networks have random weights, pictures are noise.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from compress import models
from compress.allocation import keep_freed_memory
from compress.data import views
from compress.distributed import ALONE
from compress.engine import keep_layout
from compress.kernels import quicker
from compress.methods import build_method
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.precision import autocast, resolve_precision
from compress.schema import Distill
from compress.step import Batch, Step, trainable
from export.runtime import host

PAIRS = (("resnet56", "mobilenet_v2"), ("resnet32x4", "resnet8x4"), ("resnet32x4", "shufflenet_v2"))
CLASSES, SIDE, PICTURES = 100, 32, 4096
MATRIX = {"cpu": 2048, "cuda": 8192}
PARTS = {  # what an operator's name contains -> what it is; the first that fits
    "convolutions and products": ("conv", "addmm", "aten::mm", "aten::bmm", "gemm", "cutlass", "xmma", "wgrad", "dgrad"),
    "batch normalisation": ("batch_norm", "_batchnorm", "bn_fw", "bn_bw"),
    "optimizer": ("sgd", "optimizer"),
    "other operators": ("",),
}


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", default=64, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=10, show_default=True, type=click.IntRange(3))
@click.option("--pair", "chosen", multiple=True, help="teacher:student, more than once; default: all three")
@click.option("--out", default=Path(__file__).parent / "results" / "roofline.json", type=click.Path(path_type=Path))
def main(device: str, batch: int, steps: int, chosen: tuple[str, ...], out: Path) -> None:
    """Measure all pairs, print and write."""
    keep_freed_memory()  # as a training does
    peaks = {precision: _peak(device, precision) for precision in ("float32", "bf16")}
    print("large product: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    pairs = [(one.split(":")[0], one.split(":")[1]) for one in chosen] or list(PAIRS)
    rows = [_row(teacher, student, device, batch, steps, peaks) for teacher, student in pairs]
    for row in rows:
        print(f"\n{row['teacher']} -> {row['student']}, {row['precision']}, {batch} pictures: {row['step_ms']:.1f} ms, {row['gflop']:.2f} GFLOP, "
              f"{row['gflop_per_s']:.0f} GFLOP/s, {100 * row['share_of_peak']:.0f} % of the product's")  # fmt: skip
        for name, value in row["split_ms"].items():
            print(f"  {name:<28}{value:8.2f} ms  {100 * value / row['step_ms']:4.0f} %")
        print(f"  {'(a step of 2 pictures':<28}{row['two_pictures_ms']:8.2f} ms)")
        print(f"  {'teacher, where not known':<28}{row['teacher_ms']:8.2f} ms, {row['teacher_gflop']:.2f} GFLOP, "
              f"{100 * row['teacher_share_of_peak']:.0f} % of the product's in {row['teacher_precision']}")  # fmt: skip
    cuda = device.startswith("cuda")
    content = {
        "command": "python " + " ".join(["benchmarks/roofline.py", *sys.argv[1:]]), "batch": batch, "steps": steps,
        "peak_gflop_per_s": {name: value / 1e9 for name, value in peaks.items()}, "rows": rows,
        "environment": {**host(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name() if cuda else "cpu"},
    }  # fmt: skip
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {out}")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _times(run: Callable[[], object], device: str, count: int) -> list[float]:
    """Seconds of each call, after two that are not timed."""
    found = []
    for number in range(count + 2):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        if number >= 2:
            found.append(time.perf_counter() - begin)
    return found


def _peak(device: str, precision: str) -> float:
    """FLOP/s of the fastest large product."""
    side = MATRIX[device.split(":")[0]]
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(_times(lambda: left @ left, device, 8))


def _row(teacher: str, student: str, device: str, batch: int, steps: int, peaks: dict[str, float]) -> dict:
    step = step_of(student, device)
    data = batch_of(batch, device)
    seconds = statistics.median(_times(lambda: step(data), device, steps))
    flop = _flop(lambda: step(data))
    small = batch_of(2, device)
    forward, precision = _teacher(teacher, step, data, device)
    teacher_seconds = statistics.median(_times(forward, device, steps))
    teacher_flop = _flop(forward)
    return {
        "teacher": teacher, "student": student, "precision": step.precision, "step_ms": 1e3 * seconds, "gflop": flop / 1e9,
        "gflop_per_s": flop / seconds / 1e9, "share_of_peak": flop / seconds / peaks[step.precision],
        "split_ms": _split(step, data, device, 3, 1e3 * seconds),
        "two_pictures_ms": 1e3 * statistics.median(_times(lambda: step(small), device, steps)),
        "teacher_ms": 1e3 * teacher_seconds, "teacher_gflop": teacher_flop / 1e9, "teacher_precision": precision,
        "teacher_share_of_peak": teacher_flop / teacher_seconds / peaks[precision],
    }  # fmt: skip


def _flop(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flop}) as counter:
        run()
    return int(counter.get_total_flops())


def _backward_flop(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Of each gradient that is asked for as many as of the forward pass; torch 2.15's own formula counts a depthwise convolution as a dense one."""
    return 2 * grad[0] * math.prod(grad[2:]) * math.prod(weight) * sum(rest[-1][:2])


class _Known:
    """Logits that are there already."""

    def ahead(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor], step: int = 1) -> Tensor | None:
        return None

    def answer(self, known: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        return None if known is None else known.float(), {}

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None: ...

    def save(self) -> None: ...


def step_of(student: str, device: str) -> Step:
    torch.manual_seed(0)
    model = models.build(student, classes=CLASSES).to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    keep_layout(model)
    if device == "cpu":
        quicker(model, SIDE, "auto")
    shape = outline(student, classes=CLASSES, width=None, image_size=SIDE)
    method = build_method(Distill(), student=shape, teacher=shape, train_labels=torch.zeros(1)).to(device).train()
    parameters = trainable(model, method)
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.randint(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=torch.uint8).to(device)
    precision = resolve_precision("auto", device)
    mean, spread = (torch.full((3,), value, device=device) for value in (0.5, 0.25))
    return Step(
        Tapped(model, {name: shape.taps[name] for name in method.student_taps}), method, images, torch.arange(PICTURES, device=device) % CLASSES,
        "crop_flip", SIDE, mean, spread, _Known(), optimizer, parameters, precision, ALONE,
    )  # fmt: skip


def batch_of(size: int, device: str) -> Batch:
    index, view = torch.randint(0, PICTURES, (size,), device=device), torch.randint(0, views.view_count("crop_flip", SIDE), (size,), device=device)
    one = torch.ones((), device=device)
    return Batch(index, view, torch.randn(size, CLASSES, device=device).half(), one, one.long(), size)


def _teacher(name: str, step: Step, batch: Batch, device: str) -> tuple[Callable[[], Tensor], str]:
    """A forward pass of the teacher on a batch, as the cache asks for it, and its precision."""
    model: nn.Module = models.build(name, classes=CLASSES).to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    precision = resolve_precision("auto", device)

    @torch.no_grad()
    def forward() -> Tensor:
        with autocast(device, precision):
            return model(views.to_float(step.pixels(batch.index, batch.view), step.mean, step.std))

    return forward, precision


def _split(step: Step, batch: Batch, device: str, count: int, step_ms: float) -> dict[str, float]:
    """Milliseconds a step by what they are spent on; the shares of a profiled step, which is slower, of one that is not."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        begin = time.perf_counter()
        for _ in range(count):
            step(batch)
        _wait(device)
        wall = 1e3 * (time.perf_counter() - begin)
    parts = dict.fromkeys(PARTS, 0.0)
    for event in found.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if cuda or event.key.startswith(("aten::", "_BatchNorm")):  # on a CPU operators and own kernels: the autograd engine's nodes are dispatch
            parts[next(part for part, words in PARTS.items() if any(word in event.key.lower() for word in words))] += own / 1e3
    parts["Python, dispatch, launches"] = max(wall - sum(parts.values()), 0.0)
    return {name: value / wall * step_ms for name, value in parts.items()}


if __name__ == "__main__":
    main()
