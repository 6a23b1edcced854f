"""Networks of torchvision for larger images, and their pretrained weights; torchvision is imported on first use."""

from __future__ import annotations

import http.client
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, UsageError
from compress.models.catalog import NetworkInfo, did_you_mean
from compress.models.checkpoints import read_state


def build(network: NetworkInfo, classes: int) -> nn.Module:
    """Build a torchvision network with fresh weights.

    Activations are switched to out-of-place, so that a later one cannot overwrite a tapped tensor.
    """
    from torchvision.models import get_model

    model: nn.Module = get_model(_torchvision_name(network.name), weights=None, num_classes=classes)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return model


def pretrained_state(network: NetworkInfo, weights_name: str) -> dict[str, Tensor]:
    """Load the named weights from torch's cache folder, downloading them if they are absent.

    Raises:
        UsageError: The weights name is unknown.
        MissingError: The download failed.
    """
    from torchvision.models import get_model_weights

    if weights_name not in network.pretrained:
        offered = (
            f"it has {', '.join(network.pretrained)}" if network.pretrained else "this network has no published weights"
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
    """Download a file whose name contains the start of its sha256, as torchvision's do."""
    hash_prefix = path.stem.rsplit("-", 1)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash does not match
        raise MissingError(
            f"the weights of {name} could not be downloaded ({error}); fetch them on a machine with a network "
            f"connection and put them there: curl -L --create-dirs -o {path} {url}"
        ) from error


def _torchvision_name(name: str) -> str:
    return name.removeprefix("torchvision/")
