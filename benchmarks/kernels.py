"""The project's CPU kernels compared with torch's operators, for single layers and a whole network.

    python benchmarks/kernels.py

Runs on the CPU, both sides in turns, as in training: a batch of 64 images of 32x32, in the precision that a training
takes. Measured are each BatchNorm with the sum and the activation behind it (`compress/training/kernels/norm.py`) and
each depthwise convolution (`compress/training/kernels/depthwise.py`), forward and backward apart; layers of one shape
are measured once. A round's time is the median of some calls; ratios are torch's time over the kernels', median and
range over rounds. The whole pass is a cross-entropy's, without the optimizer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import result_file
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import models
from compress.core.malloc import keep_freed_memory
from compress.models.residual_add import ResidualAdd
from compress.training.engine.choose import keep_channels_last
from compress.training.kernels import library, use_fast_kernels
from compress.training.precision import autocast, resolve_precision

NETWORKS = ("mobilenet_v2", "resnet8x4", "shufflenet_v2")
BATCH, SIDE, CLASSES, CALLS = 64, 32, 100, 3
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}

# Seconds forward and backward.
Call = Callable[[], tuple[float, float]]


@click.command()
@click.option("--network", "chosen", multiple=True, help="default: mobilenet_v2, resnet8x4 and shufflenet_v2")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(2))
@click.option(
    "--out",
    default=result_file.RESULTS / "kernels.json",
    show_default=True,
    type=click.Path(path_type=Path),
)
def main(chosen: tuple[str, ...], rounds: int, out: Path) -> None:
    """Measure, print and write."""
    made = library.load_kernels()
    if made is None:
        raise SystemExit(f"the kernels are not available here: {library.unavailable_reason()}")
    keep_freed_memory()  # as a training does
    precision = resolve_precision("auto", "cpu")
    networks = {name: _network(name, precision, rounds) for name in chosen or NETWORKS}
    for name, rows in networks.items():
        print(f"\n{name}, {precision}, {BATCH} images{'forward, ms':>44}{'backward, ms':>26}   torch / kernels, both")
        for row in rows:
            print(
                f"  {row['layer']:<42}x{row['layers']:<4}"
                + "".join(f"{row['torch'][way]:>12.3f} ->{row['kernels'][way]:>8.3f}   " for way in range(2))
                + f"{row['ratio']['median']:>8.2f}x [{row['ratio']['low']:.2f}, {row['ratio']['high']:.2f}]"
            )
    content = {
        "command": result_file.command("kernels.py"),
        "unit": "ms, [forward, backward], median of rounds",
        "batch": BATCH,
        "side": SIDE,
        "precision": precision,
        "rounds": rounds,
        "networks": networks,
        "environment": {**result_file.environment("cpu"), "compiler": made.compiler},
    }
    result_file.write(out, content)
    print(f"written: {out}")


def _network(name: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for the whole network and one for each shape of layer, the slowest under torch first."""
    pair = []
    for own in (False, True):
        torch.manual_seed(0)
        model = models.build(name, classes=CLASSES).to(memory_format=torch.channels_last).train()
        keep_channels_last(model)
        if own:
            use_fast_kernels(model, SIDE, "auto", print)
        pair.append(model)
    plain, fast = pair
    rows = []
    for layer, (paths, shape) in _layers(plain, precision).items():
        slow, quick = (_layer(model, paths[0], shape, precision) for model in pair)
        rows.append({"layer": layer, "layers": len(paths), **_compared(slow, quick, rounds)})
    rows.sort(key=lambda row: -sum(row["torch"]) * row["layers"])
    return [
        {
            "layer": "the whole network",
            "layers": 1,
            **_compared(_whole(plain, precision), _whole(fast, precision), rounds),
        },
        *rows,
    ]


def _layers(model: nn.Module, precision: str) -> dict[str, tuple[list[tuple[str, ...]], torch.Size]]:
    """Return what to measure, by its description: paths of layers that are alike, and the shape of their input.

    A path comes with those of the sum and the activation behind the layer.
    """
    # By the id of each chain's output, which is kept so that no other tensor takes its id.
    chains: dict[int, tuple[tuple[str, ...], torch.Size, Tensor]] = {}
    found: dict[str, tuple[list[tuple[str, ...]], torch.Size]] = {}

    def after(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            if isinstance(layer, nn.BatchNorm2d):
                chains[id(output)] = (path,), args[0].shape, output
            elif isinstance(layer, nn.Conv2d):
                if 1 < layer.groups == layer.in_channels:
                    add(
                        f"depthwise {layer.kernel_size[0]}x{layer.kernel_size[1]}, stride {layer.stride[0]}",
                        (path,),
                        args[0].shape,
                    )
            elif chain := chains.pop(id(args[0]), None):
                chains[id(output)] = (*chain[0], path), chain[1], output

        return hook

    def add(text: str, paths: tuple[str, ...], shape: torch.Size) -> None:
        found.setdefault(f"{text}, {shape[1]} x {shape[2]} x {shape[3]}", ([], shape))[0].append(paths)

    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm2d | nn.Conv2d | ResidualAdd | nn.ReLU | nn.ReLU6)
    }
    in_place = [layer for layer in layers.values() if getattr(layer, "inplace", False)]
    # Only here: inputs and outputs must be distinct tensors.
    for layer in in_place:
        layer.inplace = False
    hooks = [layer.register_forward_hook(after(path)) for path, layer in layers.items()]
    with torch.no_grad(), autocast("cpu", precision):
        model(torch.zeros(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    for layer in in_place:
        layer.inplace = True
    for paths, shape, _ in chains.values():
        add(" + ".join(type(layers[path]).__name__ for path in paths), paths, shape)
    return found


def _layer(model: nn.Module, paths: tuple[str, ...], shape: torch.Size, precision: str) -> Call:
    """Return a call of the layer, with the sum and the activation behind it, and all gradients."""
    layers = [model.get_submodule(path) for path in paths]
    x, kept = (
        torch.randn(shape, dtype=DTYPES[precision]).to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    inputs = [x, *([kept] if any(isinstance(layer, ResidualAdd) for layer in layers) else []), *layers[0].parameters()]

    def forward() -> Tensor:
        out = x
        for layer in layers:
            out = layer(out, kept) if isinstance(layer, ResidualAdd) else layer(out)
        return out

    with autocast("cpu", precision):
        gradient = torch.randn_like(forward())
    return lambda: _timed(forward, lambda out: torch.autograd.grad(out, inputs, gradient), precision)


def _whole(model: nn.Module, precision: str) -> Call:
    """Return a call of the network and a cross-entropy, with the gradients of the parameters."""
    x, labels = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last), torch.arange(BATCH) % CLASSES
    parameters = list(model.parameters())

    def backward(logits: Tensor) -> None:
        torch.autograd.grad(functional.cross_entropy(logits.float(), labels), parameters)

    return lambda: _timed(lambda: model(x), backward, precision)


def _timed(forward: Callable[[], Tensor], backward: Callable[[Tensor], object], precision: str) -> tuple[float, float]:
    begin = time.perf_counter()
    with autocast("cpu", precision):
        out = forward()
    middle = time.perf_counter()
    backward(out)
    return middle - begin, time.perf_counter() - middle


def _compared(plain: Call, fast: Call, rounds: int) -> dict[str, Any]:
    """Return milliseconds forward and backward of both, and the ratio of their sums.

    The first round, which chooses kernels, does not count.
    """
    sides: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for number in range(rounds + 1):
        for call, found in zip((plain, fast), sides, strict=True):
            forward, backward = zip(*(call() for _ in range(CALLS)), strict=True)
            if number:
                found.append((1e3 * statistics.median(forward), 1e3 * statistics.median(backward)))
    slow, quick = ([sum(one) for one in found] for found in sides)
    medians = [[statistics.median(way) for way in zip(*found, strict=True)] for found in sides]
    return {"torch": medians[0], "kernels": medians[1], "ratio": result_file.ratio(slow, quick)}


if __name__ == "__main__":
    main()
