"""Names of layers in checkpoints: prefixes that wrappers leave, and other names for the same layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

PREFIXES = ("module.", "_orig_mod.", "model.")  # left by DataParallel, torch.compile and wrapper classes
# Other names for the same layers in the checkpoints of the distillation benchmarks.
RENAMES = (
    ("classifier.0.", "classifier."),
    ("linear.", "fc."),
    ("fc.", "classifier."),
    ("classifier.", "fc."),
    ("shortcut.", "downsample."),
    ("fc.", "classifier.1."),  # EfficientNet-Lite
    ("convShortcut.", "shortcut."),  # wide ResNets
    (".layer.", "."),
    ("model.", "blocks."),  # MobileNetV1
)
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of averaged weights; nothing reads them


def is_counter(key: str) -> bool:
    """Return whether a key counts batches. Such a key may be missing: BatchNorm with a fixed momentum ignores it."""
    return key.endswith(COUNTERS)


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers if every key has them."""
    while state:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys that the network does not have to another name for the same layer that it still needs.

    The order of the keys stays.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        options = _other_names(key) if key not in expected else ()
        found[
            next(
                (option for option in options if option in expected and option not in state and option not in found),
                key,
            )
        ] = tensor
    return found


def _other_names(key: str) -> Iterator[str]:
    """Yield other names for a layer, with up to two renames: wide ResNets have `block1.layer.0.convShortcut`.

    Some packages begin every part of a name with an underscore (`_blocks.0._bn1.weight`).
    """
    plain = re.sub(r"(^|\.)_", r"\1", key)
    yield plain
    once = [plain.replace(old, new, 1) for old, new in RENAMES if old in plain]
    yield from once
    yield from (name.replace(old, new, 1) for name in once for old, new in RENAMES if old in name)


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the path of the layer that gives the logits: the last Linear; if there is none, the last convolution.

    timm's networks name theirs; some average the answers of two.
    """
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    layers = {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    known = tuple(path for path in ((named,) if isinstance(named, str) else named or ()) if path in layers)
    if known:
        return known
    paths = [path for path, module in layers.items() if isinstance(module, nn.Linear)] or list(layers)
    return tuple(paths[-1:])


def head_keys(model: nn.Module) -> tuple[str, ...]:
    """Return the keys of the layers that give the logits; see `head_paths`."""
    return tuple(f"{path}.{part}" for path in head_paths(model) for part in ("weight", "bias"))
