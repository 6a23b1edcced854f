"""Training steps in float32 and in bf16: whether `train.precision: auto` chooses the faster one on this machine.

    python benchmarks/precision.py

Runs on CPU or CUDA, both precisions in turns. The rule reads CPU flags, never a clock
(`compress/training/precision.py`); this script reads the clock and names the networks for which the rule's choice is
the slower one. Measured are plain cross-entropy steps on noise at 32x32, batch 64: forward, backward and SGD, with the
kernels that a training on a CPU uses (`compress/training/kernels`).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import result_file
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import models
from compress.training.kernels import use_fast_kernels
from compress.training.precision import autocast, resolve_precision

NETWORKS = ("resnet20", "resnet56", "resnet8x4", "resnet32x4", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
BATCH, SIDE, CLASSES = 64, 32, 100


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1), help="a round")
@click.option("--network", "chosen", multiple=True, help="default: seven of the catalogue")
@click.option("--out", type=click.Path(path_type=Path), help="default: benchmarks/results/precision-<device>.json")
def main(device: str, rounds: int, steps: int, chosen: tuple[str, ...], out: Path | None) -> None:
    """Measure, print and write."""
    rows = [_row(name, device, rounds, steps) for name in chosen or NETWORKS]
    print(f"{'network':<16}{'float32':>10}{'bf16':>10}   bf16 over float32    auto")
    for row in rows:
        ratio = row["bf16_over_float32"]
        note = "" if row["right"] else "   the slower one"
        print(
            f"{row['network']:<16}{row['float32']:>10.0f}{row['bf16']:>10.0f}   "
            f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]   {row['auto']}{note}"
        )
    content = {
        "command": result_file.command("precision.py"),
        "unit": "pictures/s, median over rounds",
        "batch": BATCH,
        "rows": rows,
        "environment": result_file.environment(device),
    }
    path = out or result_file.path("precision", device)
    result_file.write(path, content)
    print(f"written: {path}")


def _row(name: str, device: str, rounds: int, steps: int) -> dict:
    torch.manual_seed(0)
    model = models.build(name, classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    if device == "cpu":
        use_fast_kernels(model, SIDE, "auto", print)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    pixels = torch.randn(BATCH, 3, SIDE, SIDE, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=device) % CLASSES
    speeds: dict[str, list[float]] = {"float32": [], "bf16": []}
    for number in range(rounds + 1):
        for precision, values in speeds.items():
            seconds = _timed(model, optimizer, pixels, labels, device, precision, steps)
            if number:  # the first round chooses kernels
                values.append(steps * BATCH / seconds)
    ratio = result_file.ratio(speeds["bf16"], speeds["float32"])
    auto = resolve_precision("auto", device)
    right = (ratio["median"] > 1) == (auto == "bf16") or ratio["low"] <= 1 <= ratio["high"]
    return {
        "network": name,
        "float32": statistics.median(speeds["float32"]),
        "bf16": statistics.median(speeds["bf16"]),
        "bf16_over_float32": ratio,
        "auto": auto,
        "right": right,
    }


def _timed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    device: str,
    precision: str,
    steps: int,
) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        with autocast(device, precision):
            logits = model(pixels)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
