"""torchvision's networks for larger pictures, and their pretrained weights. torchvision is imported when one is built."""

from __future__ import annotations

import http.client
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, UsageError
from compress.models.catalog import NetworkInfo, did_you_mean
from compress.models.checkpoints import read_state


def build(network: NetworkInfo, classes: int) -> nn.Module:
    """torchvision's network with fresh weights; activations are switched to out-of-place, so that a tap keeps what it saw."""
    from torchvision.models import get_model

    model = get_model(_torchvision_name(network.name), weights=None, num_classes=classes)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return model


def pretrained_state(network: NetworkInfo, weights_name: str) -> dict[str, Tensor]:
    """The named weights from torch's cache folder, downloaded into it where they are absent.

    Raises UsageError for an unknown weights name, MissingError where the download fails.
    """
    from torchvision.models import get_model_weights

    if weights_name not in network.pretrained:
        offered = (
            f"it has {', '.join(network.pretrained)}" if network.pretrained else "no weights come with this network"
        )
        hint = did_you_mean(weights_name, network.pretrained)
        raise UsageError(
            f"weights: {network.name} has no weights {weights_name!r}{hint}; {offered}, or give the path of a file"
        )
    url = get_model_weights(_torchvision_name(network.name))[weights_name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        _download(url, path, network.name)
    return read_state(path)


def _download(url: str, path: Path, name: str) -> None:
    """Fetch a file whose name carries the start of its sha256, as torchvision's do."""
    hash_prefix = path.stem.rsplit("-", 1)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash does not match
        raise MissingError(
            f"the weights of {name} could not be downloaded ({error}); fetch them where there is a network and put them there: "
            f"curl -L --create-dirs -o {path} {url}"
        ) from error


def _torchvision_name(name: str) -> str:
    return name.removeprefix("torchvision/")
