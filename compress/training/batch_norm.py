"""BatchNorm's statistics: recomputed from training images, kept from the pretrained weights, or those of a batch.

A training keeps running averages of each batch's statistics. After few steps these lag behind the weights: with
EfficientNet's momentum of 0.01, a hundred steps replace 63 % of the pretrained statistics. The network is then better
than its evaluation shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from compress.data.augment import views
from compress.training.precision import without_tf32

# Training views that statistics are recomputed from, or the whole set where it has fewer images.
VIEWS = 2048
# Images in one forward pass, up to REFERENCE_SIDE pixels; of larger images fewer, but never below SMALLEST. The same on
# every device, because the batches decide the statistics.
BATCH, SMALLEST, REFERENCE_SIDE = 64, 16, 224
# What only normalises.
PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def tracked_layers(network: nn.Module) -> list[_BatchNorm]:
    """Return the network's BatchNorms that have running statistics, in order, each once."""
    layers = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [layer for layer in layers if layer.running_mean is not None and layer.running_var is not None]


def freeze(network: nn.Module) -> None:
    """Let the network's BatchNorms use their running statistics in training too; their weights still train."""
    for layer in tracked_layers(network):
        layer.eval()


def fixed_batches(index: Tensor, image_size: int) -> Sequence[Tensor]:
    """Split images (M,) into batches whose sizes differ by at most one and depend on nothing but M and the side."""
    rows = max(SMALLEST, min(BATCH, BATCH * REFERENCE_SIDE**2 // image_size**2))
    return torch.tensor_split(index, max(1, -(-len(index) // rows)))


@torch.no_grad()
def recompute(network: nn.Module, batches: Iterable[Tensor], mean: Tensor, std: Tensor) -> None:
    """Replace running statistics by those of these images, computed with the weights as they are.

    A layer's mean and population variance are combined exactly over the batches, in float64. Only BatchNorms are in
    training mode meanwhile: nothing is dropped. Source: Wu and Johnson 2021, "Rethinking Batch in BatchNorm", 3.2.

    Args:
        network: the network that ships, on the device; its mode is restored.
        batches: pixels uint8 (N, H, W, 3), N * H * W > 1.
        mean: float32 (3,).
        std: float32 (3,).
    """
    layers = tracked_layers(network)
    if not layers:
        return
    found: dict[_BatchNorm, list[tuple[int, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def collect(layer: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args[0].dtype == torch.float64 else args[0].float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        variance, average = torch.var_mean(x, dim=dims, correction=0)
        found[layer].append((x.numel() // x.shape[1], average, variance))  # type: ignore[index]

    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    try:
        with _batch_statistics(network, layers), without_tf32():
            for pixels in batches:
                network(views.to_float(pixels, mean, std))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, parts in found.items():
        if parts:
            _set_statistics(layer, parts)


def _set_statistics(layer: _BatchNorm, parts: list[tuple[int, Tensor, Tensor]]) -> None:
    """Set the layer's statistics to those of all values, from each batch's count, mean and population variance."""
    counts, averages, spreads = zip(*parts, strict=True)
    # On the CPU, because not every device has float64.
    means, variances = (torch.stack(values).cpu().double() for values in (averages, spreads))
    share = torch.tensor(counts, dtype=torch.float64)[:, None]
    share /= share.sum()
    average = (share * means).sum(0)
    variance = (share * (variances + (means - average) ** 2)).sum(0)
    assert layer.running_mean is not None and layer.running_var is not None  # it is tracked
    layer.running_mean.copy_(average)
    layer.running_var.copy_(variance)


@torch.no_grad()
def predict_by_batch(
    network: nn.Module, images: Tensor, order: Tensor, image_size: int, mean: Tensor, std: Tensor
) -> Tensor:
    """Return logits float32 (N, K) as training computes them: each BatchNorm uses the statistics of the batch.

    It shows what running statistics cost. Nothing of the network changes.

    Args:
        network: on the device.
        images: stored images, uint8 (N, S, S, 3); each is seen through the evaluation view.
        order: a permutation int64 (N,) that mixes the classes; batches are taken along it.
        image_size: side of that view in pixels.
        mean: float32 (3,).
        std: float32 (3,).
    """
    out: list[Tensor] = []
    with _batch_statistics(network, tracked_layers(network)), without_tf32():
        for part in fixed_batches(order, image_size):
            pixels = views.evaluation_view(images[part.to(images.device)], image_size).to(mean.device)
            out.append(network(views.to_float(pixels, mean, std)).float())
    logits = torch.cat(out)
    return logits[torch.argsort(order).to(logits.device)]


@contextmanager
def _batch_statistics(network: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let these layers use their batch's statistics and change nothing; everything else is in evaluation mode.

    `forward` is replaced: it writes no buffer, and a SyncBatchNorm asks no other process. The CPU kernels replace it as
    well, and may compute a layer in the module behind it, and a subclass may do more than normalise, such as timm's,
    which activates too; there the layer only has to be in training mode, and its buffers are put back.
    """
    modes = {module: module.training for module in network.modules()}
    buffers = [(value, value.clone()) for layer in layers for value in layer.buffers()]
    network.eval()
    own = [layer for layer in layers if "forward" not in layer.__dict__ and type(layer).forward in PLAIN_FORWARDS]
    try:
        for layer in layers:
            layer.training = True  # not the modules in it
        for layer in own:
            layer.forward = partial(_normalize, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in own:
            layer.__dict__.pop("forward", None)
        for value, before in buffers:
            value.copy_(before)
        for module, mode in modes.items():
            module.training = mode


def _normalize(layer: _BatchNorm, x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
