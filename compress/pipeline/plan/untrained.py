"""A network with random weights that computes as a trained one would, and images to run it on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from compress.core.records.training import CalibrationData, Network
from compress.data import calibration_arrays
from compress.data.augment import views
from compress.models.fused import fused
from compress.training import build

PLAN_IMAGES = 32  # for the int8 ranges and the timing; more improve neither
SEED = 0  # of the weights and of the noise
JITTER = 0.01  # standard deviation of the noise that makes biases of zero differ


def plan_images(pictures: CalibrationData | None, size: int) -> np.ndarray:
    """Return images, uint8 (N, size, size, 3)."""
    if pictures is not None:
        return calibration_arrays(pictures)[0]
    return np.random.default_rng(SEED).integers(0, 256, (PLAN_IMAGES, size, size, 3), dtype=np.uint8)


def untrained(network: Network, images: np.ndarray) -> nn.Module:
    """Build a network with seeded weights, in which no two tensors are equal, as after training.

    BatchNorm gets the statistics of the images, so that activations neither vanish nor grow from layer to layer: else a
    deep network computes with denormal numbers, which are slow, and int8 ranges are empty. Equal tensors would become
    one constant in the file, and its nodes would have other names. Branches are fused, as in the file that ships.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build.load_network(network, None, "cpu")
        with torch.no_grad():
            for parameter in (one for one in model.parameters() if one.requires_grad):
                parameter.add_(torch.randn_like(parameter), alpha=JITTER)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean over batches: of one batch, the batch's own
        pixels = views.to_float(
            torch.from_numpy(np.ascontiguousarray(images)), network.normalization.mean, network.normalization.std
        )
        with torch.no_grad():
            model.train()(pixels)
    return fused(model.eval(), network.side).network
