"""A linear probe: the last layer alone, fitted to the features of pretrained weights, before anything is fine-tuned.

A fresh last layer gives fine-tuning large, random gradients that distort good features. A fitted one does not, and its
accuracy is the floor that fine-tuning should not fall below. Source: Kumar et al. 2022, "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.core.distributed import ALONE, Group
from compress.core.records.training import Network, Normalization
from compress.core.store import Context
from compress.data import stratified
from compress.data.augment import views
from compress.data.streaming.batches import Stream
from compress.models.input_adapter import InputAdapter, inner_network
from compress.recipe.schema import ResolvedTrain
from compress.training import forward_batch
from compress.training.class_balance import probe_weights
from compress.training.evaluation import ImageSet
from compress.training.precision import without_tf32

# Weights of the squared norm of the layer's weights, beside the mean loss; each fit starts from the one before.
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
ITERATIONS = 100
# Images that the layer is fitted to: at most MOST_IMAGES, and fewer where features times classes are many, but always
# MIN_PER_CLASS of a class.
MOST_IMAGES, MOST_PRODUCTS, MIN_PER_CLASS = 20_000, 4e9, 4
# A random stream of its own, beside those of the validation split, calibration, limit_test and shares.
PROBE_STREAM = 4


@dataclass(frozen=True)
class LinearProbe:
    """A fitted last layer.

    Attributes:
        images: how many it was fitted to.
        penalty: the one of PENALTIES with the lowest loss on the validation images.
        right: validation images that it classifies correctly; None without any.
        weight: float32 (K, d), on the CPU.
        bias: float32 (K,), on the CPU.
    """

    images: int
    penalty: float
    right: int | None
    weight: Tensor
    bias: Tensor


def probe_of(
    model: nn.Module,
    head: str | None,
    image_set: ImageSet,
    network: Network,
    train: ResolvedTrain,
    context: Context,
    classes: Sequence[str],
) -> LinearProbe | None:
    """Fit the network's fresh last layer before it is fine-tuned, where `train.probe` says so; return the probe.

    Args:
        model: the network, on the device.
        head: path of its last layer where pretrained weights left it fresh, else None.
        image_set: that it will train on.
        network: its record.
        train: the resolved settings.
        context: the stage's console and processes.
        classes: their names.
    """
    if head is None or not train.probe:
        return None
    probe = fit_probe(
        model,
        head,
        image_set,
        network.normalization,
        seed=train.seed,
        threads=train.threads,
        group=context.group,
        class_weights=probe_weights(train, image_set, classes),
    )
    if not context.group.is_main:
        return probe
    if probe is None:
        context.console.notice(f"{network.model}: its last layer is no Linear over a vector, so training starts fresh")
    elif probe.right is not None:
        reached = f"{100 * probe.right / len(image_set.validation_index):.1f} %"
        context.console.line(f"{network.model}: a last layer alone reaches {reached} on the validation images")
    return probe


def fit_probe(
    model: nn.Module,
    head: str,
    image_set: ImageSet,
    normalization: Normalization,
    *,
    seed: int,
    threads: int | None,
    group: Group = ALONE,
    class_weights: Tensor | None = None,
) -> LinearProbe | None:
    """Fit the network's last layer on rank 0 and set it on every rank; all other weights stay.

    Args:
        model: the network, on the device.
        head: path of the last layer in the network itself, without an adapter.
        image_set: training images to fit to, validation images to choose the penalty by.
        normalization: the network's.
        seed: draws the images where there are too many.
        threads: CPU threads; None: torch's choice.
        group: the processes that train the network.
        class_weights: float32 (K,), of the losses that fit the layer and choose the penalty; None: all count alike.

    Returns:
        The probe; None where the last layer is no Linear over one vector an image, and nothing is changed.
    """
    layer = inner_network(model).get_submodule(head)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    probe: LinearProbe | None = None
    if group.is_main:
        with _threads(threads):
            weights = None if class_weights is None else class_weights.cpu().double()
            probe = _fitted(model, layer, image_set, normalization, seed, weights)
    probe = group.broadcast(probe)
    if probe is not None:
        with torch.no_grad():
            layer.weight.copy_(probe.weight)
            layer.bias.copy_(probe.bias)
    return probe


def _fitted(
    model: nn.Module,
    layer: nn.Linear,
    image_set: ImageSet,
    normalization: Normalization,
    seed: int,
    class_weights: Tensor | None,
) -> LinearProbe | None:
    index = _chosen(image_set, layer, seed)
    features = _features(model, layer, (image_set.images, index), image_set, normalization)
    if features is None:
        return None
    shown = torch.arange(len(image_set.validation_index))
    held = _features(model, layer, (image_set.validation(), shown), image_set, normalization)
    order = model.order.cpu() if isinstance(model, InputAdapter) and model.order is not None else None
    labels, wanted = (image_set.labels[part].cpu() for part in (index, image_set.validation_index))
    targets = labels if order is None else order[labels]
    mean, spread = features.mean(0), features.std(0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    weights, judging = (None if class_weights is None else class_weights[part] for part in (labels, wanted))
    fits = regress((features - mean) / spread, targets, layer.out_features, PENALTIES, weights)
    best: tuple[float, LinearProbe] | None = None
    for penalty, (weight, bias) in zip(PENALTIES, fits, strict=True):
        weight = weight / spread
        bias = bias - weight @ mean
        loss, right = abs(penalty - 0.01), None  # without validation images a middle penalty
        if held is not None and len(wanted):
            logits = held @ weight.T + bias
            logits = logits if order is None else logits[:, order]
            loss = float(_mean_loss(logits, wanted, judging))
            right = int((logits.argmax(dim=1) == wanted).sum())
        if best is None or loss < best[0]:
            best = loss, LinearProbe(len(index), penalty, right, weight.float(), bias.float())
    assert best is not None  # there are penalties
    return best[1]


def regress(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], weights: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight (K, d) and bias (K,) of multinomial logistic regression for each penalty, by L-BFGS.

    They minimise the mean cross-entropy plus penalty / 2 times the squared norm of the weights.

    Args:
        features: float64 (N, d), standardised.
        labels: int64 (N,).
        classes: K.
        penalties: from the strongest on, so that each fit starts near its end.
        weights: of the images, (N,); None: all count alike.
    """
    weight = features.new_zeros(classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(classes).requires_grad_()
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
        )

        def loss(optimizer: torch.optim.Optimizer = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            fit = _mean_loss(features @ weight.T + bias, labels, weights)
            value = fit + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield weight.detach().clone(), bias.detach().clone()


def _mean_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of images, each times its weight."""
    if weights is None:
        return functional.cross_entropy(logits, labels)
    return (functional.cross_entropy(logits, labels, reduction="none") * weights).mean()


def _chosen(image_set: ImageSet, layer: nn.Linear, seed: int) -> Tensor:
    """Return the labelled training images that the layer is fitted to."""
    index = image_set.train_index
    index = index[image_set.labels[index] >= 0]
    allowed = MOST_PRODUCTS / (layer.in_features * layer.out_features)
    count = round(min(MOST_IMAGES, max(allowed, MIN_PER_CLASS * layer.out_features)))
    chosen = stratified(image_set.labels[index].cpu().numpy(), count, seed, PROBE_STREAM)
    return index[torch.from_numpy(chosen).to(index.device)]


@torch.no_grad()
def _features(
    model: nn.Module,
    layer: nn.Linear,
    source: tuple[Tensor | Stream, Tensor],
    image_set: ImageSet,
    normalization: Normalization,
) -> Tensor | None:
    """Return the layer's inputs for some images, float64 (N, d) on the CPU; None where they are no vectors.

    Images are seen as in evaluation; the model's mode is restored.
    """
    device, seen = image_set.labels.device, list[Tensor]()
    mean, std = (torch.tensor(values, device=device) for values in (normalization.mean, normalization.std))
    images, index = source
    rows = forward_batch.rows_at_once(device, image_set.image_size)

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].float().cpu())

    training, hook = model.training, layer.register_forward_pre_hook(keep)
    model.eval()
    try:
        with without_tf32():
            for part in torch.split(index, rows):
                pixels = views.evaluation_view(images[part], image_set.image_size).to(device)
                model(views.to_float(pixels, mean, std))
    finally:
        hook.remove()
        model.train(training)
    if not seen or any(value.dim() != 2 for value in seen) or sum(map(len, seen)) != len(index):
        return None
    return torch.cat(seen).double()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
