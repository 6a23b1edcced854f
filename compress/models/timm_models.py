"""Networks of the package timm by name, `timm/NAME`; timm is optional and imported on first use.

Their classifier, stages and the input that their weights were trained with are read from timm's own configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from compress.core.errors import MissingError, UsageError
from compress.models import catalog
from compress.models.catalog import NetworkInfo, did_you_mean
from compress.models.custom import averaged_map, averages, called_pool, module_calls
from compress.models.layer_names import head_paths, is_counter, strip_prefixes
from compress.models.network_table import Constants
from compress.models.tap_tables import Roles

PACKAGE = "timm>=1.0"
PRETRAINED = "pretrained"  # in `weights`: those that timm takes by default
SMALLEST_STRIDE = 4  # of the first stage; maps before it belong to the stem
# What a failed download raises below timm: errors of the system, of the hub's client, of its HTTP library.
DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, LookupError)


@dataclass(frozen=True)
class PublishedInput:
    """What a network's published weights were trained with.

    Attributes:
        weights: timm's name of these weights.
        image_size: Side of the images in pixels.
        normalization: Mean and deviation of pixels in [0, 1].
        certain: Whether the weights are known; a file may be of any that timm has for this network.
    """

    weights: str
    image_size: int
    normalization: Constants
    certain: bool


def timm() -> Any:
    """Return the package. Raises MissingError where it is not installed."""
    try:
        import timm as package
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise MissingError(f"networks named timm/NAME need the package timm: pip install '{PACKAGE}'") from error
    return package


def version() -> str:
    """Return the version of the package, which decides how its networks are built."""
    return f"timm {timm().__version__}"


def build(name: str, classes: int, image_size: int | None) -> nn.Module:
    """Build a network with fresh weights; see `_create`."""
    return _create(_architecture(name), classes, image_size, pretrained=False)


def _create(architecture: str, classes: int, image_size: int | None, *, pretrained: bool) -> nn.Module:
    """Build a network of timm; those that take images of one size only are built for `image_size`.

    Activations are switched to out-of-place, so that a later one cannot overwrite a tapped tensor.
    """
    package = timm()
    config = package.models.get_pretrained_cfg(architecture)
    sizes = ({"img_size": image_size},) if image_size and config is not None and config.fixed_input_size else ()
    model: nn.Module | None = None
    for more in (*sizes, {}):
        with suppress(TypeError):  # of a network that has no such option
            model = package.create_model(architecture, pretrained=pretrained, num_classes=classes, **more)
            break
    if model is None:
        raise UsageError(f"model: timm/{architecture} cannot be built as a classifier of {classes} classes")
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    model.traced_sizes = ((image_size,) if image_size else ()) + _sizes(config)  # type: ignore[assignment]
    return model


def _sizes(config: Any) -> tuple[int, ...]:
    return () if config is None else (int(config.input_size[-1]),)


def _architecture(name: str) -> str:
    """Return timm's name of a network. Raises UsageError if timm has none of this name."""
    package, architecture = timm(), name.removeprefix(catalog.TIMM)
    if not package.is_model(architecture):
        hint = did_you_mean(architecture, tuple(package.list_models()))
        raise UsageError(f"model: {version()} has no network {architecture!r}{hint}; timm.list_models() lists all")
    return architecture


def tags(name: str) -> tuple[str, ...]:
    """Return timm's names of a network's published weights, the default first."""
    package, architecture = timm(), _architecture(name)
    listed = package.list_models(architecture, pretrained=True, include_tags=True)
    found = [full.partition(".")[2] for full in listed if full.partition(".")[0] == architecture]
    default = getattr(package.models.get_pretrained_cfg(architecture), "tag", None)
    return tuple(sorted((tag for tag in found if tag), key=lambda tag: tag != default))


def resolve_tag(name: str, weights: str) -> str:
    """Return the name of published weights, those by default for `pretrained`. Raises UsageError if there are none."""
    known = tags(name)
    if not known:
        raise UsageError(f"weights: timm has no published weights of {name}; give the path of a file, or none")
    if weights == PRETRAINED:
        return known[0]
    if weights not in known:
        offered = ", ".join((PRETRAINED, *known[:5])) + (", ..." if known[5:] else "")
        hint = did_you_mean(weights, known)
        raise UsageError(f"weights: {name} has no weights {weights!r}{hint}; it has {offered}, or the path of a file")
    return weights


def published_input(name: str, weights: str) -> PublishedInput | None:
    """Return what weights were trained with; None for fresh ones, and where timm does not know it.

    Args:
        name: The network.
        weights: The recipe's `weights`. A file is taken for weights that timm has by default, unless its name has the
            name of others.
    """
    if weights == "none":
        return None
    package, architecture = timm(), _architecture(name)
    known = tags(name)
    if catalog.is_checkpoint(weights):
        named = [tag for tag in known if tag and tag in weights]
        tag = max(named, key=len) if named else known[0] if known else ""
    else:
        named, tag = [weights], resolve_tag(name, weights)
    configs = {
        one: package.models.get_pretrained_cfg(f"{architecture}.{one}" if one else architecture) for one in known
    }
    config = configs.get(tag) or package.models.get_pretrained_cfg(architecture)
    if config is None:
        return None
    alike = len({(one.mean, one.std) for one in configs.values()}) == 1
    constants = (_three(config.mean), _three(config.std))
    return PublishedInput(tag, int(config.input_size[-1]), constants, bool(named) or alike)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def pretrained(name: str, weights: str, classes: int, image_size: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network with published weights, which timm downloads into its cache if they are absent.

    Returns:
        The network, and the keys of the classifier where it is fresh, because the weights have other classes.

    Raises:
        MissingError: The weights are neither cached nor can they be downloaded.
        UsageError: timm has no such weights.
    """
    architecture, tag = _architecture(name), resolve_tag(name, weights)
    full = f"{architecture}.{tag}"
    try:
        model = _create(full, classes, image_size, pretrained=True)
    except DOWNLOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingError(
            f"weights: {full} could not be downloaded ({reason}); fetch the file on a machine with a network "
            "connection, copy it here, and name it in `weights`: "
            f'python -c "import timm, torch; '
            f"torch.save(timm.create_model('{full}', pretrained=True).state_dict(), '{full}.pth')\""
        ) from error
    same = timm().models.get_pretrained_cfg(full).num_classes == classes
    return model, () if same else _head_keys(model)


def _head_keys(model: nn.Module) -> tuple[str, ...]:
    paths = tuple(f"{path}." for path in head_paths(model))
    return tuple(key for key in model.state_dict() if key.startswith(paths))


def is_timm(model: nn.Module) -> bool:
    """Return whether a network is built by timm."""
    return type(model).__module__.startswith("timm.")


def converted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Bring the state dict of one of timm's networks into the form of `model`, with timm's own conversion.

    It renames the layers of the authors' own checkpoints and resizes position embeddings. Weights without a classifier
    get an empty one, which is one for other classes. What does not become the network's is returned as it is.
    """
    expected, heads = model.state_dict(), _head_keys(model)
    body = [key for key in expected if key not in heads and not is_counter(key)]

    def lacking(given: Mapping[str, Tensor]) -> int:
        return sum(key not in given or given[key].shape != expected[key].shape for key in body)

    best = dict(state)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if lacking(best) and convert is not None:
        with suppress(Exception):  # it is written for checkpoints of this network alone
            found = {key: value for key, value in convert(strip_prefixes(dict(state)), model).items()}
            best = found if lacking(found) < lacking(best) else best
    if not lacking(best) and not any(key in best for key in heads):
        best |= {key: expected[key].new_zeros((0, *expected[key].shape[1:]), device="cpu") for key in heads}
    return best


def describe(model: nn.Module, name: str) -> NetworkInfo:
    """Describe a built network: its classifier by timm's configuration, its stages by timm's list of features.

    Stages are the maps (N, C, H, W) from stride 4 on; networks of tokens have none. Where two classifiers are averaged
    there is no single one to take the place of, so only logits, stages and the pooled vector can be read.
    """
    heads = head_paths(model)
    calls = module_calls(model, getattr(model, "traced_sizes", ()))
    linear = heads[0]
    stages = tuple(f"{path}:out" for path in _stages(model, {call.path: call.shape for call in calls if call.only}))
    info = replace(catalog.info(name), linear=linear, classifier=linear)
    if len(heads) > 1 or not isinstance(model.get_submodule(linear), nn.Linear):
        block = linear.rpartition(".")[0]
        normed = bool(block) and hasattr(model.get_submodule(block), "bn")  # fused, the vector behind it is gone
        vector = f"{block if normed else linear}:in"
        vector += "" if isinstance(model.get_submodule(linear), nn.Linear) else "[mean]"
        return replace(
            info, classifier="", pooled=vector, roles=Roles(stages, stages, (), "", "", pool=None) if stages else None
        )
    pool = called_pool(model, calls)
    averaged = f"{pool}:in" if pool else averaged_map(model, calls, linear) or ""
    averaged = averaged if stages else ""  # the only map of a network of tokens is its patches
    return replace(info, roles=Roles(stages, stages, (), averaged, averaged, pool=pool))


def _stages(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the modules of timm's list of features whose output is a map with the channels that the list says."""
    listed: Any = getattr(model, "feature_info", ())
    found = []
    for feature in getattr(listed, "info", listed) or ():
        path, channels, stride = feature.get("module"), feature.get("num_chs"), feature.get("reduction") or 0
        shape = shapes.get(path, ())
        if stride >= SMALLEST_STRIDE and len(shape) == 4 and shape[1] == channels and shape[2] == shape[3]:
            found.append(path)
    return found


def check_pooling(name: str, image_size: int) -> None:
    """Raise UsageError if the classifier's input is not the mean over the pooled map, on fresh weights and noise."""
    model = build(name, 3, image_size).eval()
    if not averages(model, describe(model, name), image_size):
        raise UsageError(f"{name}: its classifier does not read the mean over its last map; choose another method")
