"""Weights in files: read without running code, loaded into a network, written with equal bytes for equal weights."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, StageError, UsageError

PICKLES = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model", "model_state", "net", "weights")  # where training scripts put the state dict
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
# What torch.load raises on damaged bytes, found by changing bytes at random.
DAMAGED_FILE_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
MAX_KEYS_SHOWN = 4  # in a message


def embedded_teacher(model: str) -> Path:
    """Return the file of the teacher that ships with the package for the embedded data.

    Raises:
        MissingError: There is none for this network.
    """
    path = Path(str(resources.files("compress"))) / "models" / "weights" / f"{model}-fashion.safetensors"
    if not path.is_file():
        have = (
            ", ".join(
                sorted(p.name.removesuffix("-fashion.safetensors") for p in path.parent.glob("*-fashion.safetensors"))
            )
            or "none"
        )
        raise MissingError(
            f"no embedded weights for {model} (available: {have}); "
            "train it here: remove `weights: embedded` from the candidate"
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a .safetensors, .pt, .pth or .bin file.

    Tensors are on the CPU, half precision becomes float32, and common prefixes are removed from the keys.

    Raises:
        MissingError: There is no such file.
        UsageError: The file has another ending, or is a pickle that contains code.
        StageError: The file is damaged or holds no state dict.
    """
    if not path.is_file():
        raise MissingError(
            f"weights: there is no file {path}; check the path, or copy the checkpoint there: cp CHECKPOINT {path}"
        )
    if path.suffix == ".safetensors":
        try:
            state: object = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise StageError(f"weights: {path} is not a complete safetensors file ({error}); fetch it again") from error
    elif path.suffix in PICKLES:
        state = _unwrap(_read_pickle(path), path)
    else:
        raise UsageError(f"weights: {path} ends in {path.suffix!r}; give a .safetensors, .pt, .pth or .bin file")
    assert isinstance(state, dict)
    return strip_prefixes(
        {
            key: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            for key, tensor in state.items()
        }
    )


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise _unreadable(path, "its pickle is damaged or was not written by torch.save") from error
        raise UsageError(
            f"weights: {path} contains code ({named[1]}), which is not run; if you trust its origin, convert it to "
            f'safetensors with: python -c "import torch, safetensors.torch as s; '
            f"c = torch.load('{path}', weights_only=False, map_location='cpu'); "
            f"c = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c.get('model', c)); "
            f"s.save_file({{k: v.clone() for k, v in c.items()}}, '{path.with_suffix('.safetensors')}')\""
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")) from error


def _unreadable(path: Path, reason: str) -> StageError:
    return StageError(
        f"weights: {path} could not be read as a PyTorch checkpoint ({reason}); fetch it again, or save its state dict"
    )


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved."""
    while isinstance(loaded, dict):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return {str(key): value for key, value in loaded.items()}
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            keys = _some([str(key) for key in loaded])
            raise StageError(
                f"weights: {path} has the keys {keys} and no state dict under {', '.join(WRAPPERS)}; "
                "save the state dict alone"
            )
        loaded = inner
    raise StageError(f"weights: {path} holds a {type(loaded).__name__}, not a state dict; save `model.state_dict()`")


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers if every key has them."""
    while state:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def load_state(model: nn.Module, state: dict[str, Tensor], *, source: str, new_head: bool = False) -> tuple[str, ...]:
    """Load a state dict into a network; every key and shape must match.

    Missing `num_batches_tracked` counters are tolerated: BatchNorm with a fixed momentum does not read them.

    Args:
        model: The network to load into.
        state: The state dict, possibly with other names for the same layers.
        source: What the error message calls the state dict.
        new_head: Whether the last Linear stays fresh if the checkpoint has another number of classes.

    Returns:
        The keys that keep their fresh initialization.

    Raises:
        StageError: Keys are missing, unexpected or of another shape, or values are not finite.
    """
    expected = model.state_dict()
    given = _renamed(strip_prefixes(state), expected)
    wrong = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    head = _head(model)
    other_head = (
        bool(wrong)
        and set(wrong) <= set(head)
        and all(given[key].shape[1:] == expected[key].shape[1:] for key in wrong)
    )
    fresh = tuple(wrong) if new_head and other_head else ()
    wrong = [key for key in wrong if key not in fresh]
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected and not key.endswith("num_batches_tracked")]
    if wrong or missing or unexpected:
        parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        parts += [f"{len(unexpected)} unexpected ({_some(unexpected)})"] if unexpected else []
        shapes = [f"{key} is {_shape(given[key])} in the file, {_shape(expected[key])} in the network" for key in wrong]
        parts += [f"{len(wrong)} of another shape ({_some(shapes)})"] if wrong else []
        what = "for another number of classes" if other_head and not (missing or unexpected) else "of another network"
        raise StageError(f"{source} does not fit {type(model).__name__}: {', '.join(parts)}; it is a checkpoint {what}")
    bad = [key for key in expected if key in given and not torch.isfinite(given[key]).all()]
    if bad:
        raise StageError(f"{source} holds values that are not finite in {_some(bad)}; take an earlier checkpoint")
    model.load_state_dict(
        {key: tensor for key, tensor in given.items() if key in expected and key not in fresh}, strict=False
    )
    return fresh


def _renamed(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys that the network does not have to another name for the same layer that it still needs."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        options = _other_names(key) if key not in expected else ()
        renamed[
            next(
                (option for option in options if option in expected and option not in state and option not in renamed),
                key,
            )
        ] = tensor
    return renamed


def _other_names(key: str) -> Iterator[str]:
    """Yield other names for a layer, with up to two renames: wide ResNets have `block1.layer.0.convShortcut`.

    Some packages begin every part of a name with an underscore (`_blocks.0._bn1.weight`).
    """
    plain = re.sub(r"(^|\.)_", r"\1", key)
    yield plain
    once = [plain.replace(old, new, 1) for old, new in RENAMES if old in plain]
    yield from once
    yield from (name.replace(old, new, 1) for name in once for old, new in RENAMES if old in name)


def _head(model: nn.Module) -> tuple[str, ...]:
    """Return the keys of the last Linear, which gives the logits; if there is none, those of the last convolution."""
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    paths = [path for path, module in layers if isinstance(module, nn.Linear)] or [path for path, _ in layers]
    return (f"{paths[-1]}.weight", f"{paths[-1]}.bias") if paths else ()


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a scalar"


def _some(items: list[str]) -> str:
    return ", ".join(items[:MAX_KEYS_SHOWN]) + (
        f" and {len(items) - MAX_KEYS_SHOWN} more" if len(items) > MAX_KEYS_SHOWN else ""
    )


def save_state(model: nn.Module, path: Path, half: bool = False) -> None:
    """Write the weights as safetensors: keys without prefixes, CPU tensors, equal bytes for equal weights.

    Args:
        model: The network.
        path: File to write.
        half: Whether to store convolution and linear weights in float16. Vectors (BatchNorm, biases) stay float32: they
            are small and have a wide range.
    """
    state = strip_prefixes({key: tensor.detach().cpu() for key, tensor in model.state_dict().items()})
    tensors: dict[str, Tensor] = {}
    for key in sorted(state):
        tensor = state[key].half() if half and state[key].is_floating_point() and state[key].dim() > 1 else state[key]
        tensors[key] = tensor.clone(memory_format=torch.contiguous_format)  # the same bytes for channels_last
    # Not save_file: its files are readable by their owner alone, whatever the umask is.
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
