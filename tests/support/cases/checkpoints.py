"""Checkpoints as training scripts leave them, of torchvision's resnet18 with ten classes.

`raw` and `averaged` weights differ by one in every floating-point number. Each file was met in public.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import models

NETWORK, CLASSES = "torchvision/resnet18", 10
State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    """Return a state dict with a prefix before every key."""
    return {prefix + key: tensor for key, tensor in state.items()}


def averaged_of(state: State) -> State:
    """Return other weights for the same keys: those of an exponential moving average, say."""
    return {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def raw_weights() -> State:
    """Return fresh weights of the network that all files are of."""
    return models.build(NETWORK, classes=CLASSES).state_dict()


def contents(raw: State) -> dict[str, Any]:
    """Return what is in each file, by its name."""
    ema = averaged_of(raw)
    arguments = argparse.Namespace(lr=0.1)
    average = {**under("module.", ema), "n_averaged": torch.tensor(5)}
    lightning = {"epoch": 1, "pytorch-lightning_version": "2.5"}
    return {
        "timm.pth.tar": {"epoch": 3, "state_dict": raw, "state_dict_ema": ema, "metric": 71.0},
        "timm_args.pth.tar": {
            "epoch": 3,
            "state_dict": raw,
            "state_dict_ema": ema,
            "args": arguments,
            "optimizer": {"state": {}},
        },
        "torchvision_reference.pth": {
            "model": under("module.", raw),
            "model_ema": average,
            "args": arguments,
            "epoch": 1,
        },
        "ema_only.pth": {"model_ema": average, "epoch": 1},
        "lightning.ckpt": {"state_dict": under("model.", raw), **lightning},
        "lightning_loss.ckpt": {
            "state_dict": {**under("model.", raw), "criterion.weight": torch.ones(CLASSES)},
            "epoch": 1,
        },
        "lightning_net.ckpt": {"state_dict": under("net.", raw), "epoch": 1},
        "two_networks.ckpt": {"state_dict": {**under("student.", raw), **under("teacher.", ema)}},
        "ddp_compiled.pth": under("module._orig_mod.", raw),
    }


def write(folder: Path) -> State:
    """Write every file into a folder, and return the raw weights."""
    raw = raw_weights()
    for name, content in contents(raw).items():
        torch.save(content, folder / name)
    return raw
